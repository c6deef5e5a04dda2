"""From tensors and a problem to a kernel's arguments, with slots where the pointers go.

The arguments of a launch depend on a call's shapes and strides, not on where its tensors lie. So
they are written once with slots (backends/common/launch.py), and filled for each call.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from portattn.backends.common.launch import Slot, operand
from portattn.backends.triton.primitives import Extents, Matrix, Rows, Terms, Vector
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

# A tile spans at most this many rows: beyond 2^31 / rows per stride, offsets need 64 bits.
_TILE_ROWS = 256


# Kernels take the entries of these one after the other, in each row.
_PACKED = (
    "alibi_slopes",
    "sinks",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "seqused_k",
    "block_table",
    "cache_batch_idx",
    "leftpad_k",
    "rng_state",
    "k_scale",
    "v_scale",
)


def packed(tensors: AttentionTensors) -> AttentionTensors:
    """The tensors with a contiguous copy of each of the small ones that has gaps."""
    gaps = {}
    for name in _PACKED:
        tensor = getattr(tensors, name)
        if tensor is not None and tensor.stride(-1) != 1 < tensor.shape[-1]:
            gaps[name] = tensor.contiguous()
    return replace(tensors, **gaps) if gaps else tensors


def rows(slot: Slot, tensor: Tensor) -> Rows:
    strides = tensor.stride()
    return Rows(slot, *(strides if len(strides) == 4 else (0, *strides)))


def vector(slot: Slot, tensor: Tensor) -> Vector:
    """A [B, H, S] or [H, T] tensor."""
    strides = tensor.stride()
    return Vector(slot, *(strides if len(strides) == 3 else (0, *strides)))


def matrix(slot: Slot, tensor: Tensor, full: tuple[int, ...]) -> Matrix:
    """A bias or mask, stride 0 along dimensions that are broadcast to a `full` score matrix.

    Where the full size is 1 too, the stride stays: its alignment decides how a kernel is compiled,
    and a sequence alone must get the kernel that it gets among others.
    """
    sizes = zip(tensor.shape, full, tensor.stride(), strict=True)
    return Matrix(slot, *(0 if size == 1 < wanted else step for size, wanted, step in sizes))


def extents(tensors: AttentionTensors, problem: AttentionProblem, block_n: int) -> Extents:
    """block_n: keys of a tile, which may lie in one page or not."""
    table = tensors.block_table
    in_page = table is not None and problem.page_size % block_n == 0 and not problem.leftpad
    return Extents(
        problem.seqlen_q,
        problem.seqlen_k,
        _given(tensors, "cu_seqlens_q"),
        _given(tensors, "cu_seqlens_k"),
        _given(tensors, "seqused_k"),
        _given(tensors, "leftpad_k"),
        _given(tensors, "cache_batch_idx"),
        _given(tensors, "block_table"),
        0 if table is None else table.stride(0),
        problem.page_size,
        1 if in_page else None,
        _given(tensors, "k_scale"),
        _given(tensors, "v_scale"),
        0 if tensors.k_scale is None else tensors.k_scale.stride(0),
    )


def _given(tensors: AttentionTensors, name: str) -> Slot | None:
    return None if getattr(tensors, name) is None else operand(name)


def terms(tensors: AttentionTensors, problem: AttentionProblem) -> Terms:
    left, right = problem.window
    slopes, bias, mask = tensors.alibi_slopes, tensors.bias, tensors.mask
    p = problem.dropout_p
    full = (problem.batch, problem.heads, problem.seqlen_q, problem.seqlen_k)
    return Terms(
        float(problem.softmax_scale),
        float(problem.softcap) if problem.softcap else None,
        left if left >= 0 else None,
        right if right >= 0 else None,
        _given(tensors, "alibi_slopes"),
        slopes.stride(0) if slopes is not None and slopes.dim() == 2 else 0,
        None if bias is None else matrix(operand("bias"), bias, full),
        None if mask is None else matrix(operand("mask"), mask, full),
        _given(tensors, "sinks"),
        _given(tensors, "rng_state"),
        math.ceil(p * 2**24),
        1.0 / (1.0 - p) if p < 1 else 0.0,
    )


def dims(problem: AttentionProblem) -> dict[str, int]:
    """Each head dimension and the two powers of two that cover it."""
    d0, d1 = halves(problem.head_dim)
    dv0, dv1 = halves(problem.head_dim_v)
    return {
        "D": problem.head_dim,
        "D0": d0,
        "D1": d1,
        "DV": problem.head_dim_v,
        "DV0": dv0,
        "DV1": dv1,
    }


def halves(dim: int) -> tuple[int, int]:
    """(a, b), powers of two from 16 up (b may be 0) with a + b >= dim and little to spare."""
    if dim <= 16:
        return 16, 0
    a = 1 << (dim.bit_length() - 1)
    if a == dim:
        return a, 0
    b = max(16, 1 << (dim - a - 1).bit_length())
    return (2 * a, 0) if b >= a else (a, b)


def fused(problem: AttentionProblem) -> bool:
    """Whether scores are the product times a positive scale and nothing else."""
    plain = not (problem.softcap or problem.alibi or problem.bias)
    return plain and problem.softmax_scale > 0


def wide(tensors: AttentionTensors) -> bool:
    """Whether offsets within a tile need 64 bits."""
    limit = 2**31 // _TILE_ROWS
    return any(abs(t.stride(-3)) >= limit for t in (tensors.q, tensors.k, tensors.v))


def switches(tensors: AttentionTensors, problem: AttentionProblem) -> dict[str, Any]:
    """The constants that choose how scores, offsets and products are computed."""
    return {
        "FUSED": fused(problem),
        "WIDE": wide(tensors),
        "PRECISION": precision(problem),
    }


def precision(problem: AttentionProblem) -> str:
    """float32 products are exact to float32 unless torch is told that tf32 will do."""
    if problem.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "ieee"
