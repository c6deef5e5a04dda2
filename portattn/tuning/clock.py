"""How long a call takes on a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]

# A sample shorter than this is made of several calls: below it the clock and launches show.
SAMPLE_SECONDS = 0.005


def seconds(call: Call, place: torch.device, repeats: int = 1) -> float:
    """Seconds of one call, the mean of some in a row; the device is idle before and after."""
    if place.type == "cuda":
        return _by_events(call, place, repeats)
    _wait(place)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(place)
    return (time.perf_counter() - start) / repeats


def repeats_for(once: float) -> int:
    """How many calls make a sample, when one takes `once` seconds."""
    return max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-7)))


def _wait(place: torch.device) -> None:
    if place.type != "cpu":
        getattr(torch, place.type).synchronize()


def _by_events(call: Call, place: torch.device, repeats: int) -> float:
    with torch.cuda.device(place):
        torch.cuda.synchronize(place)
        start = torch.cuda.Event(enable_timing=True)
        stop = torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / repeats
