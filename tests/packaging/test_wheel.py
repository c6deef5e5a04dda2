"""The wheel made from the sdist holds every source and works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("backends", "dispatch", "hwconfigs")
SUFFIXES = {".py", ".yaml", ".c", ".h", ".cu", ".cuh", ".typed"}

ONE_CALL = """
import portattn, torch
q = torch.randn(1, 4, 2, 8)
assert portattn.attention(q, q, q, causal=True).shape == q.shape
print(portattn.__file__)
print(portattn.explain(q, q, q).backend)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `python -m build` makes from the sdist it made first."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel and this one's libraries."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "-q"]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # A path in a .pth file gives the libraries without running the checkout's own .pth file.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def test_wheel_holds_every_source(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert not set(_sources()) - packed
    assert not [name for name in packed if name.startswith((*LINKED, "tests", "tools"))]


def test_wheel_works_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    done = away_from_the_checkout([installed / "python", "-c", ONE_CALL], tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[0]).is_relative_to(installed.parent)


def test_wheel_installs_the_command(installed: Path, tmp_path: Path) -> None:
    done = away_from_the_checkout([installed / "portattn", "profile", "list"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nvidia-v100" in done.stdout


def away_from_the_checkout(
    command: list[str | Path], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command that can find only what is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def _sources() -> Iterator[str]:
    """Names in the wheel of all that the tree's folders hold."""
    for folder in ("portattn", *LINKED):
        for file in (ROOT / folder).rglob("*"):
            inside = file.relative_to(ROOT)
            if file.suffix not in SUFFIXES or file.is_dir():
                continue
            if folder == "portattn":
                if inside.parts[1] not in LINKED:
                    yield inside.as_posix()
            else:
                yield f"portattn/{inside.as_posix()}"
