"""Roofline estimates: what a problem must compute and move, and how fast a profile says that is.

Everything here is modelled, nothing measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portattn.dispatch.problem import AttentionProblem

if TYPE_CHECKING:
    from portattn.dispatch.profile import HardwareProfile

# The backward recomputes the scores and has four products more (FlashAttention-2, section 4.1).
_BACKWARD_FLOPS = 2.5


@dataclass(frozen=True)
class Estimate:
    """flops and bytes of a problem; seconds and bound ("compute", "memory") where rates are known."""

    flops: float
    bytes: float
    seconds: float | None
    bound: str | None


def estimate(problem: AttentionProblem, profile: HardwareProfile, cores: int = 0) -> Estimate:
    """The time no kernel can beat on this hardware, by its stated rates.

    `cores` multiplies rates that the profile states per core.
    """
    flops, moved = flop_count(problem), byte_count(problem)
    facts, cores = profile.device, profile.device.cores or cores
    rates = facts.tflops or {name: rate * cores for name, rate in facts.tflops_per_core.items()}
    tflops = rates.get(str(problem.dtype).removeprefix("torch."), rates.get("float32"))
    bandwidth = facts.bandwidth_gbs or (facts.bandwidth_gbs_per_core or 0) * cores
    if not tflops or not bandwidth:
        return Estimate(flops, moved, None, None)
    compute, memory = flops / (tflops * 1e12), moved / (bandwidth * 1e9)
    bound = "compute" if compute >= memory else "memory"
    return Estimate(flops, moved, max(compute, memory), bound)


def flop_count(problem: AttentionProblem) -> float:
    """Multiplications and additions of both matrix products over the visible pairs."""
    pairs = visible_pairs(problem.seqlen_q, problem.seqlen_k, problem.window)
    forward = 2.0 * problem.batch * problem.heads * pairs * (problem.head_dim + problem.head_dim_v)
    return forward * _BACKWARD_FLOPS if problem.operation == "backward" else forward


def byte_count(problem: AttentionProblem) -> float:
    """Bytes of q, k, v and out, each once; the backward reads them and writes their gradients."""
    size = problem.dtype.itemsize
    kv_size = (problem.kv_dtype or problem.dtype).itemsize
    dims = problem.head_dim + problem.head_dim_v
    queries = problem.rows * problem.heads * dims * size
    keys = problem.keys * problem.kv_heads * dims * kv_size
    # Backward: q, out, dout and dq per row; k, v, dk and dv per key.
    return float(2 * (queries + keys) if problem.operation == "backward" else queries + keys)


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
