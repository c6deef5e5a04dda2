"""Modelled times of whole calls on a chip, from simulated blocks: nothing here was measured.

A tile of 64 query rows is simulated over up to 24 whole blocks of keys; four more, as many as are
in flight, take the same time again from there on. Tiles go to cores as they become free. Standard
attention is three kernels that pass all scores through memory: each takes the longest of its
arithmetic and its bytes, from the L2 while they fit there.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tools.hivm.attention import Case, Launch
from tools.hivm.parser import Module
from tools.hivm.timing import ASCEND_910B2, Hardware

# Microseconds of one head of 128 on the 910B2, as hw-native-sys/pto-isa publishes them for its own
# kernel and for torch_npu's (kernels/manual/common/flash_atten/README.md): lengths 1K to 32K.
PUBLISHED = {
    1024: (20.96, 58.46), 2048: (32.46, 70.80), 4096: (88.90, 118.30),
    8192: (292.6, 353.1), 16384: (909.0, 1118.0), 32768: (3263.0, 3646.0),
}  # fmt: skip
L2_BYTES = 192 * 2**20


@dataclass(frozen=True)
class Tiling:
    """A compiled variant to be timed: its module, constants, and the chip."""

    module: Module
    chosen: tuple[tuple[str, Any], ...]
    hardware: Hardware = ASCEND_910B2

    @property
    def keys(self) -> int:
        return int(dict(self.chosen)["block_n"])


def tiling(module: Module, chosen: dict[str, Any], hardware: Hardware = ASCEND_910B2) -> Tiling:
    return Tiling(module, tuple(sorted(chosen.items())), hardware)


def simulated(of: Tiling, whole: int, masked: int) -> float:
    """Cycles of one block of queries over whole and masked blocks of keys."""
    chosen = dict(of.chosen)
    edge = min(128, of.keys)
    rows = chosen["block_m"]
    # Under a causal mask the first masked block holds the tile's diagonal.
    length = whole * of.keys + masked * edge
    launch = Launch(of.module, Case(chosen, min(rows, length), length))
    return launch.block(0, of.hardware, check=False).cycles


@lru_cache(maxsize=512)
def _simulated(of: Tiling, whole: int, masked: int) -> float:
    return simulated(of, whole, masked)


def block_cycles(of: Tiling, whole: int, masked: int) -> float:
    """simulated(), from 8 to 11 whole blocks upwards by the cycles of four more."""
    if whole < 12:
        return _simulated(of, whole, masked)
    four = (_simulated(of, 24, 1) - _simulated(of, 8, 1)) / 4
    return _simulated(of, 8 + whole % 4, masked) + (whole // 4 - 2) * four


def call_microseconds(
    of: Tiling, length: int, *, causal: bool, heads: int = 1, masked_like: Tiling | None = None
) -> float:
    """All query tiles of a call on all cores, longest first, without the launch.

    A variant compiled without a causal mask takes its masked blocks' cycles from `masked_like`.
    """
    more = _masked(masked_like) - _masked(of) if masked_like else 0.0
    rows, edge = dict(of.chosen)["block_m"], min(128, of.keys)
    tiles = []
    for tile in range(-(-length // rows)):
        if causal:
            seen = min(length, (tile + 1) * rows)
            whole = (tile * rows + 1) // of.keys
        else:
            seen, whole = length, length // of.keys
        masked = -(-(seen - whole * of.keys) // edge)
        tiles.append(block_cycles(of, whole, masked) + more * masked)
    cores = [0.0] * of.hardware.cubes
    for cycles in sorted(tiles * heads, reverse=True):
        heapq.heappush(cores, heapq.heappop(cores) + cycles)
    return of.hardware.microseconds(max(cores))


def standard_microseconds(
    length: int, *, hardware: Hardware = ASCEND_910B2, heads: int = 1, dim: int = 128
) -> float:
    """Q K^T, softmax and P V as three kernels; a mask is added by the second and saves nothing."""
    scores = length * length * heads
    operands = 2 * length * dim * heads * 2
    chip = hardware.megahertz * hardware.cubes

    def moved(size: float) -> float:
        rate = hardware.l2_read if 4 * scores <= L2_BYTES else hardware.hbm
        return size / (rate * chip)

    product = scores * dim / hardware.cube_macs / chip
    # Scores leave in float32 and come back; weights leave in half and come back.
    first = max(product, moved(4 * scores + operands))
    # Scale, mask, maximum, subtraction, exponential, sum, division, cast, on two vector units.
    passes = 1 + 1 + 1.5 + 1.25 + 2 + 1.5 + 1.25 + 1
    exponents = passes * 4 * scores / (2 * hardware.vector_bytes) / chip
    second = max(exponents, moved((4 + 2) * scores))
    third = max(product, moved(2 * scores + operands))
    return first + second + third


def _masked(of: Tiling) -> float:
    """Cycles of one more masked block."""
    return (_simulated(of, 8, 3) - _simulated(of, 8, 1)) / 2


def calibrate(of: Tiling) -> dict[str, Any]:
    """The launch's microseconds and the factor that fit the published times best, and the errors.

    Both are fitted to relative errors over the six lengths; `left_out` is the error at each length
    where the fit has not seen it.
    """
    raw = {n: call_microseconds(of, n, causal=False) for n in PUBLISHED}
    points = [(raw[n], PUBLISHED[n][0]) for n in PUBLISHED]
    launch, factor = _fit(points)
    errors, left_out = {}, {}
    for i, n in enumerate(PUBLISHED):
        errors[n] = (launch + factor * raw[n]) / PUBLISHED[n][0] - 1
        a, b = _fit(points[:i] + points[i + 1 :])
        left_out[n] = (a + b * raw[n]) / PUBLISHED[n][0] - 1
    return {
        "launch": launch, "factor": factor, "raw": raw, "errors": errors, "left_out": left_out
    }  # fmt: skip


def _fit(points: list[tuple[float, float]]) -> tuple[float, float]:
    """a + b x nearest to y in relative terms: weighted least squares."""
    w = [1 / y**2 for _, y in points]
    x, y = [p[0] for p in points], [p[1] for p in points]
    total = sum(w)
    mx = sum(a * b for a, b in zip(w, x, strict=True)) / total
    my = sum(a * b for a, b in zip(w, y, strict=True)) / total
    rise = sum(a * (b - mx) * (c - my) for a, b, c in zip(w, x, y, strict=True))
    slope = rise / sum(a * (b - mx) ** 2 for a, b in zip(w, x, strict=True))
    return my - slope * mx, slope
