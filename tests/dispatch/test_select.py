"""The order of candidates: preference, measured times, and probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.dispatch import registry, select
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import NoBackendError
from portattn.explain import as_dict, render

PROBLEM = AttentionProblem("forward", "dense", torch.float32, 1, 64, 64, 2, 2, 16, 16, 0.25)
HERE = devices.of(torch.device("cpu"))
THREE = ("torch_sdpa", "cpu", "reference")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PORTATTN_BACKEND", raising=False)
    select.forget()
    yield
    select.forget()


Profile = Callable[..., profiles.HardwareProfile]


@pytest.fixture
def profile(write: Callable[..., Path]) -> Profile:
    """A profile that prefers THREE in order and measured some of them."""

    def make(**times: float) -> profiles.HardwareProfile:
        order = ", ".join(THREE)
        lines = [
            "schema: 1",
            "name: timed",
            "match: {type: cpu}",
            "device: {cores: 2, tflops: {float32: 0.001}, bandwidth_gbs: 20}",
            f"preference: {{forward: [{order}], backward: [{order}], decode: [{order}]}}",
            "measured:" if times else "",
            *(
                f"  - {{backend: {name}, operation: forward, when: {{}}, microseconds: {time}}}"
                for name, time in times.items()
            ),
        ]
        return profiles.load_file(write("\n".join(lines) + "\n"))

    return make


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ({}, THREE),
        ({"reference": 1.0}, THREE),
        ({"torch_sdpa": 9.0, "cpu": 5.0}, ("cpu", "torch_sdpa", "reference")),
        ({"cpu": 5.0, "reference": 2.0}, ("torch_sdpa", "reference", "cpu")),
        ({"torch_sdpa": 9.0, "reference": 2.0}, ("reference", "cpu", "torch_sdpa")),
        (
            {"torch_sdpa": 3.0, "cpu": 2.0, "reference": 1.0},
            ("reference", "cpu", "torch_sdpa"),
        ),
    ],
)
def test_measured_candidates_are_ordered_among_themselves(
    profile: Profile, times: dict[str, float], order: tuple[str, ...]
) -> None:
    decision = select.select(PROBLEM, HERE, profile=profile(**times))
    assert decision.candidates == order
    assert decision.backend == order[0]
    assert {time.backend: time.measured_us for time in decision.times} == {
        name: times.get(name) for name in order
    }


def test_every_candidate_has_a_time_in_what_is_shown(profile: Profile) -> None:
    decision = select.select(PROBLEM, HERE, profile=profile(cpu=12.34))
    # 2 products x 2 x 2 heads x 64 x 64 x 16 operations at a GFLOP/s.
    assert decision.times[0].predicted_us == pytest.approx(524.288)
    lines = [line.split() for line in render(decision).splitlines()]
    assert ["candidate", "torch_sdpa", "predicted", "524.3", "us", "at", "best"] in lines
    assert ["cpu", "measured", "12.3", "us"] in lines
    shown = as_dict(decision)["times"]
    assert list(shown) == list(THREE)
    assert shown["cpu"] == {"measured_us": 12.34, "predicted_us": pytest.approx(524.288)}


def test_the_fastest_is_probed_before_it_runs(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []

    def fail(device: devices.Device) -> None:
        probed.append("cpu")
        raise ArithmeticError("off by one")

    timed = profile(torch_sdpa=9.0, cpu=5.0)
    monkeypatch.setattr(profiles, "for_device", lambda device: timed)
    monkeypatch.setattr(registry.load("cpu"), "probe", fail)
    decision = select.select(PROBLEM, HERE)
    assert probed == ["cpu"]
    assert decision.candidates == ("torch_sdpa", "reference")
    (rejection,) = decision.rejected
    assert rejection.backend == "cpu"
    assert "off by one" in rejection.reasons[0]


def test_a_forced_backend_whose_probe_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: devices.Device) -> None:
        raise ArithmeticError("off by one")

    monkeypatch.setattr(registry.load("cpu"), "probe", fail)
    with pytest.raises(NoBackendError, match="off by one"):
        select.select(PROBLEM, HERE, backend="cpu")
