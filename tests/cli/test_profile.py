"""`portattn profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from portattn.dispatch import profile as profiles


def test_list_names_every_profile(run: Any, run_json: Any) -> None:
    result = run("profile", "list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in profiles.names())
    assert [item["name"] for item in run_json("profile", "list")] == list(profiles.names())


def test_path_and_show_give_the_file(run: Any) -> None:
    name = profiles.names()[0]
    file = Path(run("profile", "path", name).stdout.strip())
    assert file.read_text(encoding="utf-8").rstrip() == run("profile", "show", name).stdout.rstrip()


def test_validate_accepts_a_copy_of_a_shipped_profile(run: Any, tmp_path: Path) -> None:
    name = profiles.names()[0]
    copy = tmp_path / "copy.yaml"
    copy.write_text(profiles.path(name).read_text(encoding="utf-8"), encoding="utf-8")
    result = run("profile", "validate", str(copy))
    assert result.exit_code == 0
    assert name in result.stdout


def test_validate_accepts_an_overlay(run: Any, tmp_path: Path) -> None:
    name = profiles.names()[0]
    file = tmp_path / "overlay.yaml"
    file.write_text(f"schema: 1\nname: {name}\ndevice: {{bandwidth_gbs: 10}}\n", encoding="utf-8")
    file.chmod(0o600)
    result = run("profile", "validate", str(file))
    assert result.exit_code == 0, result.output
    assert f"overlay of {name}" in result.stdout


def test_validate_names_file_line_and_key(run: Any, tmp_path: Path) -> None:
    name = profiles.names()[0]
    text = profiles.path(name).read_text(encoding="utf-8").rstrip()
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"{text}\nnonsense: 1\n", encoding="utf-8")
    result = run("profile", "validate", str(broken))
    assert result.exit_code == 1
    assert "broken.yaml" in result.stderr
    assert "nonsense" in result.stderr


def test_unknown_profile_is_refused(run: Any) -> None:
    for command in ("show", "path"):
        result = run("profile", command, "../secrets")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
