"""The suites of `portattn bench`: every kind of row is checked, bounded in time and kept."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from portattn.cli.bench import monitor, report, session, suites
from portattn.cli.bench.check import error_ratio
from portattn.cli.bench.grid import Case, inputs
from portattn.cli.bench.libraries import Library, kind
from portattn.cli.bench.measure import Timing, interleave
from portattn.cli.bench.pages import Pages, paged
from portattn.cli.bench.peers import Portattn
from portattn.cli.bench.peers_all import PEERS
from portattn.cli.bench.run import Result, run_case

CPU = torch.device("cpu")
LENGTHS = (70, 5, 130, 1)


def mix(operation: Any, **changes: Any) -> Case:
    case = Case(operation, "float32", len(LENGTHS), max(LENGTHS), 4, 2, 16, True, LENGTHS)
    return replace(case, **changes)


KINDS = [
    mix("forward"),
    mix("backward"),
    mix("decode", page_size=16),
    mix("decode", page_size=16, queries=3, lengths=(70, 5, 130, 3)),
    replace(mix("decode", lengths=()), batch=2),
]


@pytest.mark.parametrize("case", KINDS, ids=kind)
def test_times_every_kind_of_row(case: Case) -> None:
    (result,) = run_case(case, [Portattn("cpu")], CPU, rounds=1)
    assert result.reason is None
    assert result.timing is not None
    assert result.kernel is not None and result.kernel.startswith("cpu: ")


class SkipsAKey(Portattn):
    """Wrong in one key of the longest sequence only."""

    def pager(self, pages: Pages, case: Case) -> Callable[[Tensor], Tensor]:
        longest = max(pages.counts)
        shorter = tuple(count - (count == longest) for count in pages.counts)
        lengths = torch.tensor(shorter, dtype=torch.int32)
        return super().pager(replace(pages, lengths=lengths, counts=shorter), case)


def test_finds_one_missing_key_of_a_paged_cache() -> None:
    (result,) = run_case(mix("decode", page_size=16), [SkipsAKey("cpu")], CPU, rounds=1)
    assert result.timing is None
    assert result.wrong


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_finds_sequences_that_see_each_other(operation: Any) -> None:
    case = mix(operation, causal=False)
    joined = Portattn("cpu").attend  # one sequence of all tokens
    assert error_ratio(case, inputs(case, CPU), joined, "bshd") > 1


def test_pages_hold_every_token_once() -> None:
    k, v = torch.randn(2, 1, sum(LENGTHS), 2, 8).unbind()
    pages = paged(k, v, LENGTHS, 16)
    start = 0
    for row, count in zip(pages.table, LENGTHS, strict=True):
        for store, tokens in ((pages.k, k), (pages.v, v)):
            held = store[row.long()].flatten(0, 1)[:count]
            assert torch.equal(held, tokens[0, start : start + count])
        start += count


def test_counts_pairs_of_mixes() -> None:
    causal = mix("decode", page_size=16, queries=3, lengths=(10, 4), batch=2)
    pairs = (8 + 9 + 10) + (2 + 3 + 4)
    assert causal.flops == 4 * pairs * 4 * 16
    assert mix("forward").flops == 4 * sum(n * n for n in LENGTHS) / 2 * 4 * 16
    assert causal.kv_bytes == 2 * 14 * 2 * 16 * 4


def test_suites_hold_the_rows_of_the_goals() -> None:
    forward = suites.cases("forward")
    assert len(forward) == 16
    assert all(case.batch * case.seqlen == 16384 for case in forward)
    assert all(case.heads * case.head_dim == 2048 for case in forward)
    paged_rows = suites.cases("paged")
    assert {case.page_size for case in paged_rows} == {16, 64, 256}
    assert len(paged_rows) == 3 * len(suites.cases("decode")) == 15
    everything = [case for name in suites.names() for case in suites.cases(name)]
    assert len({(case.suite, str(case)) for case in everything}) == len(everything)
    assert all(max(case.key_counts) == case.seqlen for case in everything)


def run_session(cases: list[Case], budget: float, peers: list[Any]) -> tuple[Any, list[int]]:
    kept: list[int] = []
    found = session.run(
        cases,
        peers,
        CPU,
        1,
        budget,
        lambda so_far: kept.append(len(so_far.results)),
        lambda _: None,
    )
    return found, kept


@pytest.fixture
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = session.ceilings.Ceilings(1.0, 1.0, "float32")
    monkeypatch.setattr(session.ceilings, "measure", lambda device: found)


@pytest.mark.usefixtures("quick_ceilings")
def test_keeps_what_was_measured_before_an_interruption() -> None:
    class Interrupted(Portattn):
        def reason_against(self, case: Case, device: torch.device) -> str | None:
            if case.operation == "backward":
                raise KeyboardInterrupt
            return None

    found, kept = run_session(KINDS, math.inf, [Interrupted("cpu")])
    assert [result.case for result in found.results] == KINDS[:1]
    assert kept == [1, 1]


@pytest.mark.usefixtures("quick_ceilings")
def test_a_spent_budget_is_a_reason() -> None:
    found, _ = run_session(KINDS, 0.0, [Portattn("cpu")])
    assert [result.reason for result in found.results] == [session.SPENT] * len(KINDS)


@pytest.mark.usefixtures("quick_ceilings")
def test_one_command_measures_a_suite(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "cases", lambda name: KINDS)
    output = tmp_path / "results" / "rows.json"
    flags = ["--device", "cpu", "--suite", "decode", "--rows", "page 16", "--rounds", "1"]
    done = run("bench", *flags, "--output", str(output))
    assert done.exit_code == 0, done.output
    written = json.loads(output.read_text(encoding="utf-8"))
    assert {row["case"]["page_size"] for row in written["results"]} == {16}
    names = {row["peer"] for row in written["results"] if row["seconds"] is not None}
    assert names >= {"portattn", "portattn:cpu"}
    assert {peer.name for peer in PEERS} <= {row["peer"] for row in written["results"]}
    assert written["ceilings"]
    assert [file.name for file in output.parent.iterdir() if file.suffix == ".json"] == [
        output.name
    ]


@pytest.mark.parametrize("flags", [["--suite", "nothing"], ["--suite", "decode", "--rows", "xyz"]])
def test_refuses_what_is_not_there(run: Any, flags: list[str]) -> None:
    assert run("bench", "--device", "cpu", *flags).exit_code == 2


def test_an_error_of_a_library_is_the_reason_of_its_row() -> None:
    class Broken(Library):
        name, module, kinds = "broken", "torch", frozenset({"forward"})

        def reason_against(self, case: Case, device: torch.device) -> str | None:
            return None

        def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
            raise AssertionError("no such\nkernel")

    broken, fine = run_case(KINDS[-1], [Broken(), Portattn("cpu")], CPU, rounds=1)
    assert broken.reason == "NotImplementedError: broken has no call for a contiguous cache"
    assert fine.timing is not None


def test_rounds_end_at_the_deadline() -> None:
    timings = interleave({"one": lambda: None}, CPU, 1000, deadline=0.0, fewest=3)
    assert timings["one"].samples == 3


def test_ratio_is_of_the_best_on_either_side() -> None:
    times = {"portattn": 4.0, "portattn:cpu": 2.0, "torch_sdpa": 3.0, "flash_attn": 5.0}
    results = [
        Result(KINDS[0], name, Timing(seconds, seconds, seconds, 1))
        for name, seconds in times.items()
    ]
    ((_, ours, theirs, ratio),) = report.ratios(results)
    assert ours.startswith("portattn:cpu") and theirs.startswith("torch_sdpa")
    assert ratio == "1.500"


def test_samples_the_device_until_the_end() -> None:
    program = [sys.executable, "-c", "print('1980, 2619, 45, 312.5')"]
    with monitor.Monitor(program) as sampled:
        for _ in range(1000):
            found = sampled.take()
            if found is not None:
                break
            time.sleep(0.01)
    assert found is not None and found["celsius"] == {"min": 45.0, "median": 45.0, "max": 45.0}
    with monitor.Monitor(None) as absent:
        assert absent.take() is None and absent.source is None


def test_reads_what_nvidia_smi_prints() -> None:
    assert monitor.parse("1980, 2619, 45, 312.54\n") == [1980.0, 2619.0, 45.0, 312.54]
    assert monitor.parse("1980, 2619, 45, [N/A]\n") is None
