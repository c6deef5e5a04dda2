"""`portattn tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from portattn.dispatch import profile as profiles
from portattn.dispatch import select

ARGUMENTS = ("tune", "--device", "cpu", "--kernel", "cpu.decode", "--problem", "d64-float32-decode")


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "profiles"
    monkeypatch.setattr(profiles, "overlay_path", lambda name: folder / f"{name}.yaml")
    select.forget()
    yield folder
    select.forget()


def test_it_measures_writes_and_shows_before_and_after(
    run: Any, run_json: Any, configuration: Path
) -> None:
    result = run(*ARGUMENTS, "--budget", "4")
    assert result.exit_code == 0, result.output
    for shown in ("before", "after", "float64 0.", "GB/s", "torch_sdpa", "cpu.decode"):
        assert shown in result.stdout
    (file,) = configuration.iterdir()
    assert f"written {file}" in result.stdout
    assert run("profile", "validate", str(file)).exit_code == 0
    decision = run_json(
        *("explain", "--device", "cpu", "--dtype", "float32", "--operation", "decode"),
        *("--head-dim", "64", "--backend", "cpu"),
    )
    assert decision["config_source"].endswith("rule 1, tuned")
    assert decision["measured_us"] > 0


def test_json_holds_the_outcomes(run_json: Any) -> None:
    report = run_json(*ARGUMENTS, "--budget", "4", "--no-calibrate")
    assert report["rates"] == []
    (outcome,) = report["outcomes"]
    assert outcome["tried"] >= 1
    assert {standing["backend"] for standing in outcome["standings"]} >= {"cpu", "torch_sdpa"}
    assert report["open"] == []
    assert report["overlay"].endswith(".yaml")


def test_no_budget_leaves_everything_open(run: Any, configuration: Path) -> None:
    result = run(*ARGUMENTS, "--budget", "0", "--no-calibrate")
    assert result.exit_code == 0
    assert "nothing is lost, the same command goes on" in result.stdout
    assert not configuration.exists()


def test_unknown_names_are_refused(run: Any) -> None:
    for option, value in (("--kernel", "cpu.sideways"), ("--problem", "decode-d77")):
        result = run("tune", "--device", "cpu", option, value, "--no-calibrate")
        assert result.exit_code == 1
        assert value in result.stderr and "must be" in result.stderr


def test_warm_runs_the_rules_and_measures_nothing(run_json: Any, configuration: Path) -> None:
    done = run_json("tune", "--device", "cpu", "--warm")
    assert {item["kernel"] for item in done} >= {"cpu.forward", "cpu.backward", "cpu.decode"}
    assert all(item["reason"] is None for item in done)
    assert not configuration.exists()
