"""Roofline estimates: what a problem must compute and move, and how fast a profile says that is.

Times are modelled. The rates behind them are the profile's: data sheets', or those that
`portattn tune` measured on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from portattn.dispatch.problem import AttentionProblem

if TYPE_CHECKING:
    from portattn.dispatch.profile import HardwareProfile

# The backward recomputes the scores and has four products more (FlashAttention-2, section 4.1).
_BACKWARD_FLOPS = 2.5


@dataclass(frozen=True)
class Estimate:
    """flops and bytes; seconds and bound ("compute" or "memory") where the rates are known."""

    flops: float
    bytes: float
    seconds: float | None
    bound: str | None


@dataclass(frozen=True)
class Rates:
    """How fast a device computes and moves, in 1e12 operations/s by dtype and in 1e9 bytes/s.

    `bandwidth_gbs` is of its own memory, `host_gbs` of its link to the host and `peer_gbs` to
    another device, in one direction. None is unknown. `measured_on` says where the first two, and
    `link_measured_on` where the links were measured; None for a data sheet's peaks.
    """

    tflops: Mapping[str, float]
    bandwidth_gbs: float | None
    host_gbs: float | None
    peer_gbs: float | None
    measured_on: str | None
    link_measured_on: str | None

    def tflops_of(self, dtype: torch.dtype) -> float | None:
        """A dtype's own rate; a half type without one is computed in float32."""
        rate = self.tflops.get(str(dtype).removeprefix("torch."))
        if rate is None and dtype.itemsize == 2:
            rate = self.tflops.get("float32")
        return rate


def rates(profile: HardwareProfile, cores: int = 0) -> Rates:
    """What a profile knows of its device's speed; `cores` multiplies rates stated per core.

    A planner that divides work between devices asks here, with `profile.for_device(device)` and
    `device.cores`: after `portattn tune` the answer is measured, before it is the data sheet's.
    """
    facts, links = profile.device, profile.links
    cores = facts.cores or cores
    tflops: dict[str, float] = {}
    if cores:
        tflops.update({name: rate * cores for name, rate in facts.tflops_per_core.items()})
    tflops.update({name: rate for name, rate in facts.tflops.items()})
    bandwidth = facts.bandwidth_gbs or (facts.bandwidth_gbs_per_core or 0) * cores
    return Rates(
        tflops=tflops,
        bandwidth_gbs=bandwidth or None,
        host_gbs=links.host_gbs,
        peer_gbs=links.peer_gbs,
        measured_on=facts.source,
        link_measured_on=links.source,
    )


def estimate(problem: AttentionProblem, profile: HardwareProfile, cores: int = 0) -> Estimate:
    """The time no kernel can beat on this hardware, by its stated rates.

    `cores` multiplies rates that the profile states per core.
    """
    flops, moved = flop_count(problem), byte_count(problem)
    known = rates(profile, cores)
    tflops = known.tflops_of(problem.dtype)
    if not tflops or not known.bandwidth_gbs:
        return Estimate(flops, moved, None, None)
    compute, memory = flops / (tflops * 1e12), moved / (known.bandwidth_gbs * 1e9)
    bound = "compute" if compute >= memory else "memory"
    return Estimate(flops, moved, max(compute, memory), bound)


def flop_count(problem: AttentionProblem) -> float:
    """Multiplications and additions of both matrix products over the visible pairs.

    Sequences of unequal lengths count as equally long: the least that they can cost together.
    """
    if not problem.batch:
        return 0.0
    seqlen_q, seqlen_k = problem.rows // problem.batch, problem.keys // problem.batch
    pairs = visible_pairs(seqlen_q, seqlen_k, _window(problem))
    forward = 2.0 * problem.batch * problem.heads * pairs * (problem.head_dim + problem.head_dim_v)
    return forward * _BACKWARD_FLOPS if problem.operation == "backward" else forward


def byte_count(problem: AttentionProblem) -> float:
    """Bytes of q, of the keys and values that any query sees, and of out and lse, each once.

    The backward reads all of these and the gradient of out, and writes those of q, k and v.
    """
    size = problem.dtype.itemsize
    kv_size = (problem.kv_dtype or problem.dtype).itemsize
    dims = problem.head_dim + problem.head_dim_v
    queries = problem.rows * problem.heads * dims * size
    keys = (problem.keys - _unseen_keys(problem)) * problem.kv_heads * dims * kv_size
    lse = problem.rows * problem.heads * (8 if size == 8 else 4)
    # Backward: q, out, dout and dq per row; k, v, dk and dv per key.
    return float((2 if problem.operation == "backward" else 1) * (queries + keys) + lse)


def _window(problem: AttentionProblem) -> tuple[int, int]:
    """Causal is a window that ends at the diagonal."""
    left, right = problem.window
    return (left, 0) if problem.causal else (left, right)


def _unseen_keys(problem: AttentionProblem) -> int:
    """Keys of all sequences that lie before the first query's window."""
    left = problem.window[0]
    if left < 0 or not problem.batch:
        return 0
    seqlen_q, seqlen_k = problem.rows // problem.batch, problem.keys // problem.batch
    return problem.batch * min(max(seqlen_k - seqlen_q - left, 0), seqlen_k)


def visible_pairs(seqlen_q: int, seqlen_k: int, window: tuple[int, int]) -> int:
    """Pairs (i, j) with i + offset - left <= j <= i + offset + right, offset = Sk - Sq."""
    if not seqlen_q or not seqlen_k:
        return 0
    left, right = window
    offset = seqlen_k - seqlen_q
    seen = seqlen_q * seqlen_k
    if right >= 0:
        # Row i misses the keys past i + offset + right.
        seen -= _clamped_sum(seqlen_q, seqlen_k - 1 - offset - right, seqlen_k)
    if left >= 0:
        # Mirrored: counted from the last row and the last key, row i' misses the first keys.
        seen -= _clamped_sum(seqlen_q, seqlen_q - 1 + offset - left, seqlen_k)
    return max(seen, 0)


def _clamped_sum(rows: int, first: int, limit: int) -> int:
    """Sum over i in 0 .. rows - 1 of clamp(first - i, 0, limit)."""
    full = min(max(first - limit + 1, 0), rows)
    falling = min(max(first, 0), rows)
    middle = falling - full
    return full * limit + (middle * (2 * first - full - falling + 1)) // 2
