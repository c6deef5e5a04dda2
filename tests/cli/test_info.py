"""`portattn info` and `portattn doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from portattn.dispatch import profile as profiles
from portattn.dispatch import registry


def test_info_lists_devices_backends_and_versions(run: Any) -> None:
    result = run("info")
    assert result.exit_code == 0
    for name in registry.names():
        assert name in result.stdout
    assert "torch" in result.stdout


def test_info_json(run_json: Any) -> None:
    document = run_json("info")
    assert any(device["type"] == "cpu" for device in document["devices"])
    assert {item["backend"] for item in document["backends"]} == set(registry.names())
    on_cpu = {item["backend"]: item["reason"] for item in document["backends"]}
    assert on_cpu["reference"] is None
    assert document["versions"]["portattn"]


def test_doctor_finds_nothing_broken_here(
    run_json: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTATTN_CACHE_DIR", str(tmp_path / "new"))
    findings = run_json("doctor")
    assert {finding["state"] for finding in findings} <= {"ok", "warn"}
    assert all(finding["advice"] for finding in findings if finding["state"] == "warn")


def test_doctor_refuses_a_cache_folder_that_others_can_write(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("PORTATTN_CACHE_DIR", str(folder))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    (finding,) = [found for found in json.loads(result.stdout) if found["state"] == "fail"]
    assert "written by others" in finding["found"]
    assert "chmod 700" in finding["advice"]


def test_doctor_names_what_is_wrong_with_a_profile(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    shipped = profiles.path(profiles.names()[0]).read_text(encoding="utf-8").rstrip()
    file.write_text(f"{shipped}\nnonsense: true\n", encoding="utf-8")
    monkeypatch.setenv("PORTATTN_PROFILE", str(file))
    result = run("doctor")
    assert result.exit_code == 1
    assert "nonsense" in result.stdout
