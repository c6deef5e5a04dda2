"""tune(): what it finds, what it never takes, and that it keeps to its budget."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from portattn import tuning
from portattn.dispatch import profile as profiles
from portattn.dispatch import select
from portattn.dispatch.device import Device
from portattn.errors import ArgumentError
from tests.tuning.fake import PROBLEM, TARGET, FakeBackend, NarrowBackend, PrunedBackend

DELAYS = {16: 0.006, 32: 0.001, 64: 0.006, 1024: 0.012}


def run(here: Device, **options: Any) -> tuning.Report:
    return tuning.tune(here, among=(TARGET,), **{"budget": 60.0, **options})


def config_now(here: Device) -> dict[str, int]:
    profiles.forget()
    return dict(profiles.rule(profiles.for_device(here), "cpu.decode", PROBLEM).config)


def test_the_fastest_is_found_written_and_obeyed(
    here: Device, install: Any, configuration: Path
) -> None:
    install(FakeBackend(DELAYS))
    before = profiles.for_device(here)
    assert profiles.rule(before, "cpu.decode", PROBLEM).config == {"block_n": 1024}
    report = run(here)
    (outcome,) = report.outcomes
    old, best = outcome.before("cpu"), outcome.best("cpu")
    assert old is not None and best is not None
    assert (old.config, best.config) == ({"block_n": 1024}, {"block_n": 32})
    assert old.us > 12_000 > best.us > 1_000
    assert report.overlay == configuration / f"{before.name}.yaml"
    assert not report.open and not report.interrupted
    now = profiles.for_device(here)
    rule = profiles.rule(now, "cpu.decode", PROBLEM)
    assert rule.config == {"block_n": 32}
    assert rule.source.endswith("rule 1, tuned")
    # A problem of another class keeps what it had.
    for changes, size in (({"batch": 3}, 1024), ({"batch": 3, "seqlen_q": 100}, 64)):
        other = profiles.rule(now, "cpu.decode", replace(PROBLEM, **changes))  # type: ignore[arg-type]
        assert other.config == {"block_n": size}
    # Every other backend was measured in the same rounds, and the order follows the times.
    times = {name: profiles.measured_us(now, name, PROBLEM) for name in ("cpu", "torch_sdpa")}
    assert times["cpu"] is not None and times["torch_sdpa"] is not None
    assert times["cpu"] == pytest.approx(best.us, rel=1e-3)


def test_dispatch_obeys_a_measured_time_against_the_profiles_order(
    here: Device, install: Any
) -> None:
    install(FakeBackend(dict.fromkeys(DELAYS, 0.02)))
    assert select.select(PROBLEM, here).backend == "cpu"
    run(here)
    assert select.select(PROBLEM, here).candidates == ("torch_sdpa", "cpu", "reference")


def damaged(out: torch.Tensor) -> torch.Tensor:
    return out * 1.001


def poisoned(out: torch.Tensor) -> torch.Tensor:
    return out.index_fill(0, torch.tensor([0]), float("nan"))


def crashed(out: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("out of resources: shared memory")


@pytest.mark.parametrize(
    ("damage", "says"),
    [(damaged, "wrong"), (poisoned, "wrong"), (crashed, "out of resources")],
)
def test_a_wrong_candidate_is_never_written(
    here: Device, install: Any, damage: Any, says: str
) -> None:
    install(FakeBackend(DELAYS, {32: damage}))  # the fastest
    report = run(here)
    (outcome,) = report.outcomes
    best = outcome.best("cpu")
    assert best is not None and best.config["block_n"] in (16, 64)
    ((kernel, config, reason, _),) = outcome.refused
    assert (kernel, config) == ("cpu.decode", {"block_n": 32})
    assert says in reason
    assert report.overlay is not None
    assert "block_n: 32" not in report.overlay.read_text()


def test_a_candidate_that_turns_wrong_later_is_not_written(here: Device, install: Any) -> None:
    """Each is checked again before the final rounds, in the process that times it."""
    fake = install(FakeBackend(DELAYS))
    interrupt = KeyboardInterrupt

    def stop(step: tuning.Step) -> None:
        if step.text.startswith("round 2"):
            raise interrupt

    assert run(here, progress=stop).interrupted
    fake.damage[32] = damaged
    (outcome,) = run(here).outcomes
    best = outcome.best("cpu")
    assert best is not None and best.config["block_n"] != 32
    assert config_now(here) == best.config


def test_a_wrong_configuration_in_use_is_replaced(here: Device, install: Any) -> None:
    install(FakeBackend(DELAYS, {1024: damaged}))
    (outcome,) = run(here).outcomes
    assert outcome.before("cpu") is None
    assert config_now(here) == {"block_n": 32}


def test_nothing_is_written_when_every_candidate_is_wrong(
    here: Device, install: Any, configuration: Path
) -> None:
    install(FakeBackend(DELAYS, dict.fromkeys(DELAYS, damaged)))
    report = run(here)
    assert not report.outcomes
    assert report.open == (TARGET.name,)
    assert not configuration.exists()


def test_a_gain_within_the_noise_changes_nothing(here: Device, install: Any) -> None:
    install(FakeBackend(dict.fromkeys(DELAYS, 0.004)))
    (outcome,) = run(here).outcomes
    best = outcome.best("cpu")
    assert best is not None
    before = outcome.before("cpu")
    assert before is not None
    assert best.config == {"block_n": 1024} or best.score < 0.98 * before.score


def test_what_a_device_cant_take_is_not_tried_and_the_reason_is_shown(
    here: Device, install: Any
) -> None:
    fake = install(PrunedBackend(DELAYS))
    (outcome,) = run(here).outcomes
    assert set(fake.calls) == {16, 32}
    ((kernel, config, reason, more),) = outcome.refused  # and 1024, for the same reason
    assert (kernel, config, more) == ("cpu.decode", {"block_n": 64}, 1)
    assert reason == "cpu.decode needs 8 KiB of shared memory, there are 4"
    assert outcome.before("cpu") is None
    assert config_now(here) == {"block_n": 32}


def test_a_backend_narrows_the_space(here: Device, install: Any) -> None:
    fake = install(NarrowBackend(DELAYS))
    run(here)
    assert set(fake.calls) == {64, 1024}  # and what ran before
    assert config_now(here) == {"block_n": 64}


def test_a_space_beyond_the_legal_values_is_an_error(here: Device, install: Any) -> None:
    fake = install(NarrowBackend(DELAYS))
    fake.offers = (64, 48)
    with pytest.raises(ValueError, match="block_n=48, which it doesn't declare"):
        run(here)


@pytest.mark.parametrize("budget", [0.0, 0.25, 0.6])
def test_nothing_begins_after_the_budget(here: Device, install: Any, budget: float) -> None:
    begun: list[float] = []
    start = time.monotonic()
    fake = FakeBackend(dict.fromkeys(DELAYS, 0.05))
    fake.at_call = lambda number: begun.append(time.monotonic() - start)
    install(fake)
    run(here, budget=budget)
    # A check, or a sample of one call, may just have begun: it is of at most three calls.
    assert all(moment < budget + 0.25 for moment in begun)
    assert bool(begun) == bool(budget)


def test_more_time_later_looks_further(here: Device, install: Any) -> None:
    fake = install(FakeBackend({16: 0.001, 32: 0.05, 64: 0.05, 1024: 0.05}))
    while not run(here, budget=0.2).outcomes:
        assert 16 not in fake.calls
    run(here, budget=60.0)
    assert config_now(here) == {"block_n": 16}
    calls = len(fake.calls)
    report = run(here, budget=60.0)  # everything was tried
    assert len(fake.calls) == calls
    assert report.outcomes[0].best("cpu").config == {"block_n": 16}  # type: ignore[union-attr]
    run(here, budget=60.0, again=True)
    assert len(fake.calls) > calls


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kernels": ["cpu.sideways"]}, "must be one of cpu.decode"),
        ({"kernels": ["triton.decode"]}, "must be one of cpu.decode"),
        ({"problems": ["decode-d77"]}, "must be words of one of decode-small"),
    ],
)
def test_unknown_choices_name_what_is_there(
    here: Device, install: Any, options: dict[str, Any], says: str
) -> None:
    install(FakeBackend())
    with pytest.raises(ArgumentError, match=says):
        run(here, **options)


def test_words_choose_targets(here: Device) -> None:
    names = [target.name for target in tuning.usual(here)]
    assert len(set(names)) == len(names)
    chosen = tuning.targets.chosen(tuning.usual(here), ["decode-float32", "forward-d64"])
    assert {target.name for target in chosen} == {
        name
        for name in names
        if ("decode" in name and "float32" in name) or ("forward" in name and "d64" in name)
    }


@pytest.mark.parametrize(
    "device",
    [
        Device("cpu", "intel", "avx2", "c"),
        Device("cuda", "nvidia", "sm_90a", "NVIDIA H100", 0, 80 * 2**30, 132),
        Device("cuda", "nvidia", "sm_75", "Tesla T4", 0, 15 * 2**30, 40),
    ],
    ids=str,
)
def test_a_target_is_of_the_class_that_it_decides(device: Device) -> None:
    targets = tuning.usual(device)
    for target in targets:
        assert target.when.holds(target.problem)
        assert not any(when.holds(target.problem) for when in target.kindred)
        # No other target's rule stands in its way.
        assert [t.name for t in targets if _same_operation(t, target)] == [target.name]


def _same_operation(other: tuning.Target, target: tuning.Target) -> bool:
    same = other.problem.operation == target.problem.operation
    return same and other.when.holds(target.problem)
