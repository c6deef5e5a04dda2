"""How fast this device reads, computes and is fed: a second of measuring, for the profile.

On a CPU: the rate of a plain read of a buffer larger than its caches, by a matrix-vector product
over all threads, and of square matrix products in each dtype. On an accelerator: its link to the
host from page-locked memory, and to the next device where there is one; its own rates stay the
data sheet's. Each is the best of several repetitions: what other work disturbs only gets slower.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from portattn.dispatch import profile as profiles
from portattn.dispatch import select
from portattn.dispatch.device import Device
from portattn.tuning import clock, inputs, overlay
from portattn.tuning.budget import Limit

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_READ_BYTES = 512 * 2**20
_LINK_BYTES = 128 * 2**20
_COLUMNS = 4096
_SIZE = 512  # of a product's matrices: past the start-up costs, a millisecond a core


@dataclass(frozen=True)
class Calibration:
    """Rates of one device: 1e9 bytes/s, 1e12 operations/s by dtype; None or absent where they
    weren't measured. `source` says on what and when."""

    device: Device
    source: str
    bandwidth_gbs: float | None = None
    tflops: dict[str, float] = field(default_factory=dict)
    host_gbs: float | None = None
    peer_gbs: float | None = None

    def save(self) -> Path | None:
        """Write the rates into the overlay of the device's profile; its path, None if there are
        no rates. portattn.dispatch.cost.rates reads them from then on."""
        facts = {"bandwidth_gbs": self.bandwidth_gbs, "tflops": self.tflops}
        link = {"host_gbs": self.host_gbs, "peer_gbs": self.peer_gbs}
        known = {name: value for name, value in facts.items() if value}
        known_link = {name: value for name, value in link.items() if value}
        if not known and not known_link:
            return None
        file = overlay.update(
            profiles.for_device(self.device),
            device={**known, "source": self.source} if known else None,
            links={**known_link, "source": self.source} if known_link else None,
        )
        select.forget()
        return file


def calibrate(device: Device, seconds: float = 1.0) -> Calibration:
    """Measure a device's rates in about as many seconds; nothing is written."""
    place = inputs.where(device)
    if device.type == "cpu":
        share = seconds / (len(_DTYPES) + 1)
        return Calibration(
            device,
            _source(device),
            bandwidth_gbs=_read_rate(device, share),
            tflops={_name(dtype): _product_rate(dtype, share) for dtype in _DTYPES},
        )
    other = _next_of_its_kind(device)
    share = seconds / (1 if other is None else 2)
    return Calibration(
        device,
        _source(device),
        host_gbs=_link_rate(place, share),
        peer_gbs=None if other is None else _peer_rate(place, other, share),
    )


def _source(device: Device) -> str:
    """Where and when, in the words that the overlay keeps."""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    day = datetime.date.today().isoformat()
    return f"measured on {device.name}{threads}, torch {torch.__version__}, {day}"[:200]


def _read_rate(device: Device, seconds: float) -> float:
    size = _READ_BYTES
    if device.memory_bytes:
        size = min(size, device.memory_bytes // 16)
    rows = max(1, size // (4 * _COLUMNS))
    matrix = torch.ones(rows, _COLUMNS)
    vector = torch.ones(_COLUMNS)
    best = _best(lambda: matrix @ vector, torch.device("cpu"), seconds)
    return _rounded(4 * rows * _COLUMNS / best / 1e9)


def _product_rate(dtype: torch.dtype, seconds: float) -> float:
    matrix = torch.randn(_SIZE, _SIZE).to(dtype)
    best = _best(lambda: matrix @ matrix, torch.device("cpu"), seconds)
    return _rounded(2 * _SIZE**3 / best / 1e12)


def _link_rate(place: torch.device, seconds: float) -> float:
    """The slower direction: a plan that moves either way keeps to it."""
    host = torch.empty(_LINK_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_LINK_BYTES, dtype=torch.uint8, device=place)
    to = _best(lambda: there.copy_(host, non_blocking=True), place, seconds / 2)
    back = _best(lambda: host.copy_(there, non_blocking=True), place, seconds / 2)
    return _rounded(_LINK_BYTES / max(to, back) / 1e9)


def _peer_rate(place: torch.device, other: torch.device, seconds: float) -> float:
    here = torch.empty(_LINK_BYTES, dtype=torch.uint8, device=place)
    there = torch.empty(_LINK_BYTES, dtype=torch.uint8, device=other)
    best = _best(lambda: there.copy_(here, non_blocking=True), place, seconds)
    return _rounded(_LINK_BYTES / best / 1e9)


def _next_of_its_kind(device: Device) -> torch.device | None:
    count = getattr(torch, device.type).device_count() if device.type != "mps" else 1
    return torch.device(device.type, (device.index + 1) % count) if count > 1 else None


def _best(call: Callable[[], object], place: torch.device, seconds: float) -> float:
    """Seconds of the fastest of at least two repetitions after the first."""
    limit = Limit(time.monotonic() + seconds)
    clock.seconds(call, place)
    best, times = float("inf"), 0
    while times < 2 or not limit.over:
        best = min(best, clock.seconds(call, place))
        times += 1
    return best


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
