"""Times several calls in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]

# A sample shorter than this is made of several calls: below it the clock and launches show.
SAMPLE_SECONDS = 0.005
# Written before each sample on a GPU: several times the largest level-2 cache, and long enough for
# the host to launch the call meanwhile, so that the events see the device's time alone.
FLUSH_BYTES = 2**30


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over the samples.

    `host` is the median time that launching a call on an accelerator took the host.
    """

    median: float
    lower: float
    upper: float
    samples: int
    host: float | None = None


def interleave(
    calls: Mapping[str, Call],
    device: torch.device,
    rounds: int,
    deadline: float = math.inf,
    fewest: int = 5,
) -> dict[str, Timing]:
    """Median and quartiles of each call; every round takes one sample of each, in turn.

    After `fewest` rounds, none is begun that would end past `deadline` (time.monotonic).
    """
    if not calls:
        return {}
    take = _Events(calls, device) if device.type == "cuda" else _Clock(calls)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    hosts: dict[str, list[float]] = {name: [] for name in calls}
    started = time.monotonic()
    for done in range(rounds):
        now = time.monotonic()
        if done >= fewest and now + (now - started) / done > deadline:
            break
        for name, call in calls.items():
            seconds, host = take(name, call)
            samples[name].append(seconds)
            hosts[name].append(host)
    timings = {}
    for name, values in samples.items():
        host_time = statistics.median(hosts[name]) if device.type == "cuda" else None
        timings[name] = summarise(values, host_time)
    return timings


def summarise(samples: list[float], host: float | None = None) -> Timing:
    """Median and quartiles of the samples."""
    if len(samples) < 2:
        return Timing(samples[0], samples[0], samples[0], len(samples), host)
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, len(samples), host)


class _Clock:
    """Samples by the host's clock, of as many calls as it needs to resolve them."""

    def __init__(self, calls: Mapping[str, Call]) -> None:
        self._repeats: dict[str, int] = {}
        for name, call in calls.items():
            call()  # the first call may compile or allocate
            self._repeats[name] = 1
            seconds, _ = self(name, call)
            self._repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / seconds))

    def __call__(self, name: str, call: Call) -> tuple[float, float]:
        repeats = self._repeats[name]
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds = (time.perf_counter() - start) / repeats
        return seconds, seconds


class _Events:
    """Samples of one call each by CUDA events, the caches flushed before."""

    def __init__(self, calls: Mapping[str, Call], device: torch.device) -> None:
        for call in calls.values():
            call()  # the first call may compile or allocate
            call()
        self._flushed: Tensor = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, name: str, call: Call) -> tuple[float, float]:
        start = torch.cuda.Event(enable_timing=True)
        stop = torch.cuda.Event(enable_timing=True)
        self._flushed.zero_()
        start.record()
        begun = time.perf_counter()
        call()
        host = time.perf_counter() - begun
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3, host
