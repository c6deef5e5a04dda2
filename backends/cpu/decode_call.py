"""Calls of the compiled decode kernel (csrc/decode.c): few query rows against many keys."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from portattn.backends.common.definition import empty_result
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

# PA_F32, PA_BF16 and PA_F16 of csrc/tiles.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
KV_DTYPES = {**DTYPES, torch.int8: 3}

# With more query rows than this the tiles of the prefill kernel are full.
MAX_QUERIES = 16
_MAX_HEAD_DIM = 1024
# Keys of one unit of work: enough to hide its start, few enough that many threads share evenly.
_BLOCK_N = 512

# pa_decode_args of csrc/library.h: 53 members of pa_forward_args, then 12 of pa_layout.
ARGUMENTS = struct.Struct("=32q3d20q12q")
NO_MEMORY = "no memory for the partial results of attention on the CPU"
_NO_PAGES = (0, 0, 0, 0, 0)
_NO_FEATURES = (0,) * 16


def reasons_against_decode(problem: AttentionProblem) -> list[str]:
    """Why the compiled decode kernel can't run a problem; empty when it can."""
    reasons = []
    for dtype, known in ((problem.dtype, DTYPES), (problem.kv_dtype, KV_DTYPES)):
        if dtype is not None and dtype not in known:
            reasons.append(f"the compiled kernels have no {str(dtype).removeprefix('torch.')}")
    if problem.seqlen_q > MAX_QUERIES:
        reasons.append(f"more than {MAX_QUERIES} queries a sequence")
    if problem.dropout_p:
        reasons.append("decode has no dropout")
    if max(problem.head_dim, problem.head_dim_v) > _MAX_HEAD_DIM:
        reasons.append(f"decode has no head_dim above {_MAX_HEAD_DIM}")
    return reasons


def decode(
    library: ctypes.CDLL,
    tensors: AttentionTensors,
    problem: AttentionProblem,
    block_n: int,
    threads: int,
) -> tuple[Tensor, Tensor]:
    """out and lse, as Backend.decode returns them, of a problem without reasons against it.

    Raises MemoryError when the partial results can't be allocated.
    """
    if tensors.cu_seqlens_q is not None:
        out, lse = empty_result(tensors)
    else:
        batch, rows, heads, _ = tensors.q.shape
        out = torch.empty((batch, rows, heads, tensors.v.shape[-1]), dtype=tensors.q.dtype)
        lse = torch.empty((batch, heads, rows), dtype=torch.float32)
    kept: list[Tensor] = []
    if library.pa_decode(arguments_of(tensors, problem, block_n, out, lse, kept), threads):
        raise MemoryError(NO_MEMORY)
    return out, lse


def arguments_of(
    tensors: AttentionTensors,
    problem: AttentionProblem,
    block_n: int,
    out: Tensor,
    lse: Tensor,
    kept: list[Tensor],
) -> bytes:
    """pa_decode_args of a call; its pointers are valid while `kept`, which it adds to, lives."""
    q, k, v = tensors.q, tensors.k, tensors.v
    packed = tensors.cu_seqlens_q is not None
    heads, rows = lse.shape[-2:]
    dim_v = v.shape[-1]
    q_stride, k_stride, v_stride = q.stride(), k.stride(), v.stride()
    return ARGUMENTS.pack(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        lse.data_ptr(),
        *q_stride[-3:],
        *k_stride[-3:],
        *v_stride[-3:],
        heads * dim_v,
        dim_v,
        rows,
        DTYPES[q.dtype],
        KV_DTYPES[k.dtype],
        problem.batch,
        heads,
        k.shape[-2],
        q.shape[-1],
        dim_v,
        0,
        *_pages(tensors, kept),
        *problem.window,
        problem.softmax_scale,
        problem.softcap,
        0.0,
        *_features(tensors, kept),
        0,
        0,
        0,
        block_n or _BLOCK_N,
        q_stride[0],
        k_stride[0],
        v_stride[0],
        rows * heads * dim_v,
        rows * heads,
        0 if packed else rows,
        k.shape[-3],
        *_lengths(tensors, kept),
    )


def _pages(tensors: AttentionTensors, kept: list[Tensor]) -> tuple[int, int, int, int, int]:
    """block_table, table_row, page_size, k_page, v_page."""
    table = tensors.block_table
    if table is None:
        return _NO_PAGES
    if table.dtype != torch.int32 or table.stride(-1) != 1:
        table = table.to(torch.int32).contiguous()
        kept.append(table)
    k, v = tensors.k, tensors.v
    return table.data_ptr(), table.stride(0), k.shape[1], k.stride(0), v.stride(0)


def _features(tensors: AttentionTensors, kept: list[Tensor]) -> tuple[int, ...]:
    """slopes, slopes_batch; bias, its dtype and strides; mask and its strides; sinks; scales."""
    slopes, bias, mask, sinks = tensors.alibi_slopes, tensors.bias, tensors.mask, tensors.sinks
    scales = tensors.k_scale, tensors.v_scale
    if slopes is None and bias is None and mask is None and sinks is None and scales[0] is None:
        return _NO_FEATURES
    values = [0] * 16
    if slopes is not None:
        slopes = slopes.float().contiguous()
        batched = slopes.dim() == 2 and slopes.shape[0] > 1
        values[:2] = slopes.data_ptr(), slopes.shape[-1] if batched else 0
        kept.append(slopes)
    if bias is not None:
        bias = bias if bias.dtype in DTYPES else bias.float()
        values[2:8] = bias.data_ptr(), DTYPES[bias.dtype], *_broadcast_strides(bias)
        kept.append(bias)
    if mask is not None:
        values[8:13] = mask.data_ptr(), *_broadcast_strides(mask)
    if sinks is not None:
        sinks = sinks.float().contiguous()
        values[13] = sinks.data_ptr()
        kept.append(sinks)
    for place, scale in enumerate(scales, 14):
        if scale is not None:
            scale = scale.contiguous()
            values[place] = scale.data_ptr()
            kept.append(scale)
    return tuple(values)


def _broadcast_strides(tensor: Tensor) -> tuple[int, ...]:
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple(0 if size == 1 else stride for size, stride in pairs)


def _lengths(tensors: AttentionTensors, kept: list[Tensor]) -> tuple[int, ...]:
    """cu_seqlens_q, cu_seqlens_k, last_key, first_key, row."""
    return (
        _int32(tensors.cu_seqlens_q, kept),
        _int32(tensors.cu_seqlens_k, kept),
        _int32(tensors.seqused_k, kept),
        _int32(tensors.leftpad_k, kept),
        _int32(tensors.cache_batch_idx, kept),
    )


def _int32(tensor: Tensor | None, kept: list[Tensor]) -> int:
    """The address of a tensor's values as int32 side by side, 0 for none."""
    if tensor is None:
        return 0
    if tensor.dtype != torch.int32 or tensor.stride(0) != 1:
        tensor = tensor.to(torch.int32).contiguous()
        kept.append(tensor)
    return tensor.data_ptr()
