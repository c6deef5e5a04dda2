"""Rates that are measured, kept in the overlay, and read where times are estimated."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from portattn import tuning
from portattn.dispatch import cost
from portattn.dispatch import profile as profiles
from portattn.dispatch.device import Device
from tests.tuning.fake import PROBLEM


def test_a_second_measures_the_cpu(here: Device) -> None:
    start = time.monotonic()
    found = tuning.calibrate(here, seconds=0.3)
    assert time.monotonic() - start < 10
    assert found.bandwidth_gbs is not None and 0.1 < found.bandwidth_gbs < 2000
    assert set(found.tflops) == {"float32", "bfloat16", "float16", "float64"}
    # Doubles take at least as long, and no core reaches a hundred float32 TFLOP/s.
    assert 1e-4 < found.tflops["float64"] <= 1.5 * found.tflops["float32"] < 100.0 * here.cores
    assert here.name in found.source and f"torch {torch.__version__}" in found.source
    assert found.host_gbs is None


def test_the_planner_and_explain_read_what_was_measured(here: Device, configuration: Path) -> None:
    unknown = cost.rates(profiles.for_device(here), here.cores)
    assert (unknown.bandwidth_gbs, unknown.measured_on) == (None, None)
    assert cost.estimate(PROBLEM, profiles.for_device(here), here.cores).seconds is None
    found = tuning.Calibration(
        here, "measured here", bandwidth_gbs=10.0, tflops={"float32": 0.5, "float64": 0.1}
    )
    assert found.save() == configuration / "small-cpu.yaml"
    linked = tuning.Calibration(here, "measured there", host_gbs=24.0)
    linked.save()
    rates = cost.rates(profiles.for_device(here), here.cores)
    assert (rates.bandwidth_gbs, rates.host_gbs, rates.peer_gbs) == (10.0, 24.0, None)
    assert (rates.measured_on, rates.link_measured_on) == ("measured here", "measured there")
    assert rates.tflops_of(torch.float64) == 0.1
    assert rates.tflops_of(torch.bfloat16) == 0.5  # computed in float32
    assert rates.tflops_of(torch.int8) is None
    estimate = cost.estimate(PROBLEM, profiles.for_device(here), here.cores)
    assert estimate.seconds == pytest.approx(estimate.bytes / 10e9)
    again = tuning.Calibration(here, "later", bandwidth_gbs=12.0, tflops={"float32": 0.6})
    again.save()
    rates = cost.rates(profiles.for_device(here), here.cores)
    assert (rates.bandwidth_gbs, rates.host_gbs, rates.measured_on) == (12.0, 24.0, "later")
    assert rates.tflops == {"float32": 0.6, "float64": 0.1}


def test_nothing_measured_is_nothing_written(here: Device, configuration: Path) -> None:
    assert tuning.Calibration(here, "measured here").save() is None
    assert not configuration.exists()


def test_rates_per_core_are_multiplied_and_give_way_to_measured_ones() -> None:
    shipped = profiles.by_name("x86-avx2")
    per_core = shipped.device.tflops_per_core["float32"]
    rates = cost.rates(shipped, 4)
    assert rates.tflops_of(torch.float32) == 4 * per_core
    assert rates.bandwidth_gbs == 4 * (shipped.device.bandwidth_gbs_per_core or 0)
    facts = shipped.device.model_copy(update={"tflops": {"float32": 1.5}})
    rates = cost.rates(shipped.model_copy(update={"device": facts}), 4)
    assert rates.tflops_of(torch.float32) == 1.5
    assert cost.rates(shipped).tflops == {}
