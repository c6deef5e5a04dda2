"""`portattn bench --verify`: the cases of the suite, from the wheel, and a file to send back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from portattn.cli.bench import verify
from portattn.cli.bench.grid import Case as Row
from portattn.conformance.cases import CASES
from portattn.dispatch import registry

CHOSEN = ("causal 5x40", "cache of 2 queries", "varlen paged", "sinks")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "CASES", [case for case in CASES if case.name in CHOSEN])
    tiny = [Row("forward", "float16", 1, 32, 2, 2, 16, True, suite="verify")]
    monkeypatch.setattr(verify, "rows", lambda: tiny)


def test_writes_outcomes_and_times(run_json: Any, small: None, tmp_path: Path) -> None:
    path = tmp_path / "sent.json"
    flags = ["--device", "cpu", "--rounds", "2", "--output", str(path), "--backend", "cpu"]
    run_json("bench", "--verify", *flags)
    found = json.loads(path.read_text())
    counts = found["conformance"]["counts"]["cpu"]
    assert counts["failed"] == 0 and counts["passed"] >= 3 * len(CHOSEN)
    timed = {item["peer"] for item in found["results"] if item["seconds"] is not None}
    assert any(name.startswith("portattn") for name in timed) and "torch_sdpa" in timed


def test_a_wrong_answer_is_a_failure(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registry.load("cpu")
    right = type(backend).forward

    def wrong(self: Any, *given: Any) -> Any:
        out, lse = right(self, *given)
        return out * 1.01, lse

    monkeypatch.setattr(type(backend), "forward", wrong)
    outcomes = list(verify.conformance(["cpu"], torch.device("cpu"), lambda text: None))
    failed = [one for one in outcomes if one.outcome == "failed"]
    assert {one.case for one in failed} >= {"causal 5x40", "sinks"}
    assert all("out" in one.detail for one in failed)
    assert {one.operation for one in failed} == {"forward"}
