"""From tensors and a problem to a kernel's arguments."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
import triton
from torch import Tensor

from portattn.backends.triton.primitives import Extents, Matrix, Rows, Terms, Vector
from portattn.dispatch import device as devices
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

# A tile spans at most this many rows: beyond 2^31 / rows per stride, offsets need 64 bits.
_TILE_ROWS = 256


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device."""
    return bool(triton.knobs.runtime.interpret)


def family(tensor: Tensor) -> str:
    """The architecture family that kernels run on."""
    return devices.of(tensor.device).family


def device(tensor: Tensor) -> devices.Device:
    """The device that kernels run on."""
    return devices.of(tensor.device)


_COUNTERS: dict[tuple[Any, ...], Tensor] = {}


def counters(like: Tensor, count: int) -> Tensor:
    """int32 zeros that the kernel leaves zero, so that they are cleared only once.

    Kernels on one stream follow each other and share them. A captured graph may be replayed
    beside anything, so it clears its own.
    """
    if like.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    stream = torch.cuda.current_stream(like.device) if like.device.type == "cuda" else None
    key = (like.device, stream, threading.get_ident() if stream is None else 0)
    found = _COUNTERS.get(key)
    if found is None or found.numel() < count:
        found = torch.zeros(max(count, 4096), dtype=torch.int32, device=like.device)
        _COUNTERS[key] = found
    return found


def run(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Launch on the tensors' device and torch's current stream."""
    kernel[(programs, 1, 1)](*args, **options)


def new_lse(q: Tensor) -> Tensor:
    """[B, H, Sq] or [H, T], float32, uninitialised."""
    shape = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    return q.new_empty(shape, dtype=torch.float32)


def rows(tensor: Tensor) -> Rows:
    strides = tensor.stride()
    return Rows(tensor, *(strides if len(strides) == 4 else (0, *strides)))


def vector(tensor: Tensor) -> Vector:
    """A [B, H, S] or [H, T] tensor."""
    strides = tensor.stride()
    return Vector(tensor, *(strides if len(strides) == 3 else (0, *strides)))


def matrix(tensor: Tensor | None) -> Matrix | None:
    """A bias or mask, stride 0 along dimensions of size 1."""
    if tensor is None:
        return None
    values = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
    strides = (
        0 if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return Matrix(values, *strides)


def extents(tensors: AttentionTensors, problem: AttentionProblem) -> Extents:
    table = tensors.block_table
    return Extents(
        problem.seqlen_q,
        problem.seqlen_k,
        tensors.cu_seqlens_q,
        tensors.cu_seqlens_k,
        tensors.seqused_k,
        tensors.leftpad_k,
        tensors.cache_batch_idx,
        table,
        0 if table is None else table.stride(0),
        problem.page_size,
    )


def terms(tensors: AttentionTensors, problem: AttentionProblem) -> Terms:
    left, right = problem.window
    slopes = tensors.alibi_slopes
    p = problem.dropout_p
    return Terms(
        float(problem.softmax_scale),
        float(problem.softcap) if problem.softcap else None,
        left if left >= 0 else None,
        right if right >= 0 else None,
        slopes,
        slopes.stride(0) if slopes is not None and slopes.dim() == 2 else 0,
        matrix(tensors.bias),
        matrix(tensors.mask),
        tensors.sinks,
        tensors.rng_state,
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


def precision(problem: AttentionProblem) -> str:
    """float32 products are exact to float32 unless torch is told that tf32 will do."""
    if problem.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "ieee"
