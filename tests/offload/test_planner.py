"""The planner's shares are the best there are, and its times those of the formula."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portattn.dispatch import device as devices
from portattn.dispatch.device import Device
from portattn.errors import ArgumentError
from portattn.offload import machine as machine_module
from portattn.offload import planner
from portattn.offload.engine import Share
from portattn.offload.planner import SHAPES, Machine

H100 = Machine("h100", 3350, 72, 51, 103, 80 * 2**30, 110 * 2**30)
RATE = st.floats(5, 4000)


@settings(max_examples=150, deadline=None)
@given(RATE, RATE, RATE, RATE, st.floats(0, 1))
def test_no_other_shares_are_faster(
    device: float, cpu: float, link: float, host: float, fits: float
) -> None:
    # The formula takes the CPU first from what it shares with the link; beyond that rate the CPU
    # alone has it all.
    machine = Machine("any", device, min(cpu, host), link, host, 1, 1)
    chosen = planner.balanced(machine, fits, streams=True)
    assert abs(sum(chosen) - 1) < 1e-9 and min(chosen) >= 0 and chosen.resident <= fits + 1e-9
    best = max(planner._times(chosen, 1.0, machine))
    steps = 12
    for g in range(steps + 1):
        for c in range(steps + 1 - g):
            other = Share(g / steps * fits, 0.0, 0.0)
            rest = 1 - other.resident
            other = Share(other.resident, rest * c / steps, rest * (1 - c / steps))
            # What is streamed is read by the device, too: it can't be the way to go faster.
            if device >= 10 * link:
                assert max(planner._times(other, 1.0, machine)) >= best * (1 - 1e-6)


def test_auto_is_the_fastest_policy_and_the_order_is_known() -> None:
    seconds = {
        name: planner.plan(SHAPES["llama-3-8b"], H100, 2**20, policy=name).seconds  # type: ignore[arg-type]
        for name in planner.POLICIES
    }
    assert seconds["gpu"] is None
    known = {name: value for name, value in seconds.items() if value is not None}
    assert known["auto"] == min(known.values())
    assert known["three-way"] < known["split"] < known["layers"]
    assert known["stream"] > 1.5 * known["three-way"]


def test_what_fits_the_device_stays_there() -> None:
    made = planner.plan(SHAPES["llama-3-8b"], H100, 2**17)
    assert made.seconds is not None and made.share.resident > 0.9
    assert "longest sequence" in made.explain()


def test_devices_share_the_host() -> None:
    shape = SHAPES["llama-3-70b"]
    assert planner.plan(shape, H100, 2**20).seconds is None
    eight = planner.plan(shape, H100, 2**20, tp=8)
    richer = planner.plan(shape, replace(H100, host_bytes=2**41), 2**20, tp=8)
    assert richer.max_length > eight.max_length > 0
    with pytest.raises(ArgumentError, match="divide"):
        planner.plan(shape, H100, 2**20, tp=3)


def test_a_cpu_alone_has_one_engine() -> None:
    machine = replace(H100, alone=True, host_bytes=2**37)
    made = planner.plan(SHAPES["llama-3-8b"], machine, 2**15)
    assert made.share == Share(0.0, 1.0, 0.0)
    assert made.seconds == pytest.approx(2**15 * 2**17 / 72e9)


def test_rates_that_nobody_measured_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Measured:
        def __init__(self, device: Device) -> None:
            asked.append(device.type)

        def save(self) -> None:
            raise OSError("read-only")

    known = {"cuda": None, "cpu": "this machine"}
    monkeypatch.setattr(machine_module.tuning, "calibrate", Measured)
    monkeypatch.setattr(machine_module.profiles, "for_device", lambda device: device)
    monkeypatch.setattr(
        machine_module.cost, "rates",
        lambda device, cores: SimpleNamespace(
            link_measured_on=known["cuda"], measured_on=known["cpu"]
        ),
    )  # fmt: skip
    there = replace(devices.of(torch.device("cpu")), type="cuda")
    machine_module._measure(there)
    known["cuda"] = "this machine"
    machine_module._measure(there)
    assert asked == ["cuda"]


def test_rounded_pages_count_half() -> None:
    shape = SHAPES["llama-3-8b"]
    whole, half = (planner.plan(shape, H100, 2**20, policy="stream", kv_dtype=name)
                   for name in (None, "int8"))  # fmt: skip
    assert whole.engines["link"] == pytest.approx(2 * half.engines["link"])
    assert half.max_length > 1.5 * whole.max_length
    with pytest.raises(ArgumentError, match="float8_e4m3fn"):
        planner.plan(shape, H100, 2**20, kv_dtype="int4")
