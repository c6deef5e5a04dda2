"""Times several calls in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]

# A sample shorter than this is made of several calls: below it the clock and launches show.
SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over the samples."""

    median: float
    lower: float
    upper: float
    samples: int


def interleave(calls: Mapping[str, Call], device: torch.device, rounds: int) -> dict[str, Timing]:
    """Median and quartiles of each call; every round takes one sample of each, in turn."""
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(_sample(call, device, repeats[name]))
    return {name: summarise(values) for name, values in samples.items()}


def summarise(samples: list[float]) -> Timing:
    """Median and quartiles of the samples."""
    if len(samples) < 2:
        return Timing(samples[0], samples[0], samples[0], len(samples))
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, len(samples))


def _repeats(call: Call, device: torch.device) -> int:
    call()  # the first call may compile or allocate
    return max(1, math.ceil(SAMPLE_SECONDS / _sample(call, device, 1)))


def _sample(call: Call, device: torch.device, repeats: int) -> float:
    if device.type == "cuda":
        return _cuda_sample(call, repeats)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _cuda_sample(call: Call, repeats: int) -> float:
    start = torch.cuda.Event(enable_timing=True)
    stop = torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / repeats
