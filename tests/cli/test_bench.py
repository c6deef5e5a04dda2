"""`portattn bench`: what it measures, and that it refuses to time a wrong answer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from portattn.cli.bench.check import error_ratio
from portattn.cli.bench.grid import Case, inputs
from portattn.cli.bench.measure import interleave, summarise
from portattn.cli.bench.peers import Portattn
from portattn.cli.bench.peers_torch import TorchSdpa
from portattn.cli.bench.report import document, tables
from portattn.cli.bench.run import run_case
from portattn.dispatch.capability import Rejection
from portattn.errors import NoBackendError

CPU = torch.device("cpu")
SMALL = [
    "--device",
    "cpu",
    "--dtype",
    "bfloat16",
    "--seqlen",
    "32,80",
    "--head-dim",
    "16",
    "--rounds",
    "2",
]


@pytest.mark.parametrize("operation", ["forward", "backward", "decode"])
@pytest.mark.parametrize("causal", [False, True])
def test_measures_portattn_and_torch(run_json: Any, operation: str, causal: bool) -> None:
    flags = ["--operation", operation, "--kv-heads", "2", *(["--causal"] if causal else [])]
    found = run_json("bench", *SMALL, *flags)
    assert found["machine"]["device"]
    assert found["versions"]["torch"] == torch.__version__
    timed = [item for item in found["results"] if item["seconds"] is not None]
    assert {item["peer"] for item in timed} >= {"portattn", "torch_sdpa"}
    assert {item["case"]["seqlen"] for item in timed} == {32, 80}
    assert all(item["error_over_allowed"] <= 1 for item in timed)
    assert all(item["seconds"]["median"] > 0 for item in timed)


def test_writes_json_and_a_picture(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output, plot = tmp_path / "result.json", tmp_path / "result.png"
    done = run("bench", *SMALL, "--output", str(output), "--plot", str(plot))
    assert done.exit_code == 0
    assert json.loads(output.read_text(encoding="utf-8"))["results"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_little(self: TorchSdpa, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal) + 1e-3

    monkeypatch.setattr(TorchSdpa, "attend", off_by_a_little)
    case = Case("forward", "float32", 1, 100, 2, 2, 16, True)
    (result,) = run_case(case, [TorchSdpa()], CPU, rounds=1)
    assert result.timing is None
    assert result.reason is not None
    assert result.reason.startswith("wrong: ")
    assert "wrong" in tables([result])[str(case)][0][-1]
    assert document([result], {"date": "today"})["date"] == "today"


def test_a_refusal_of_portattn_fails_the_command(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Portattn, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        raise NoBackendError("this", "that", [Rejection("cpu", ("the reason",))])

    monkeypatch.setattr(Portattn, "attend", refuse)
    done = run("bench", *SMALL)
    assert done.exit_code == 1
    assert "the reason" in done.stdout


@pytest.mark.parametrize("operation", ["forward", "backward", "decode"])
@pytest.mark.parametrize("causal", [False, True])
def test_checks_a_block_at_each_end(operation: Any, causal: bool) -> None:
    case = Case(operation, "float32", 2, 150, 4, 2, 16, causal)
    tensors = inputs(case, CPU)
    assert error_ratio(case, tensors, Portattn("reference").attend, "bshd") <= 1

    def wrong_at_the_end(q: Tensor, k: Tensor, v: Tensor, masked: bool) -> Tensor:
        out = Portattn("reference").attend(q, k, v, masked)
        weight = torch.ones_like(out)
        weight[:, -1] = 1.01
        return out * weight

    assert error_ratio(case, tensors, wrong_at_the_end, "bshd") > 1


def test_samples_take_turns() -> None:
    order: list[str] = []
    calls = {"one": lambda: order.append("one"), "two": lambda: order.append("two")}
    timings = interleave(calls, CPU, rounds=3)
    assert set(timings) == {"one", "two"}
    changes = sum(left != right for left, right in itertools.pairwise(order))
    assert changes >= 5
    assert timings["one"].samples == 3


def test_summary_is_median_and_quartiles() -> None:
    timing = summarise([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (timing.lower, timing.median, timing.upper) == (2.0, 3.0, 4.0)


def test_counts_arithmetic_and_bytes() -> None:
    full = Case("forward", "float16", 2, 128, 8, 4, 64, False)
    assert full.flops == 4 * 2 * 8 * 128 * 128 * 64
    assert Case("forward", "float16", 2, 128, 8, 4, 64, True).flops == full.flops / 2
    assert Case("backward", "float16", 2, 128, 8, 4, 64, False).flops == full.flops * 2.5
    assert Case("decode", "float16", 2, 128, 8, 4, 64, True).kv_bytes == 2 * 2 * 128 * 4 * 64 * 2
