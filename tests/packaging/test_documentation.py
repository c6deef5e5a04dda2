"""What the documentation shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from portattn.cli.app import app
from portattn.dispatch import profile as profiles

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks in a language."""
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every explain and profile command on any page; the others depend on the machine."""
    lines = [
        line.removeprefix("$ portattn ").partition("#")[0].strip()
        for page in PAGES
        for block in blocks(page, "console")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line.split()[0] in {"explain", "profile"}]


def test_ten_lines_of_use_run() -> None:
    (program,) = blocks(ROOT / "README.md", "python")
    exec(compile(program, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [line for line in commands() if "mine.yaml" not in line])
def test_commands_run(command: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.output


def test_example_of_a_profile_is_valid(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "docs" / "profiles.md", "yaml")
    file = tmp_path / "example.yaml"
    file.write_text(example, encoding="utf-8")
    assert profiles.load_file(file).name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
