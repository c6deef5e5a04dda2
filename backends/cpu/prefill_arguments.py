"""A call's tensors as the C structures of csrc/tiles.h, which say what each field means."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_INT = ctypes.c_int64
_POINTER = ctypes.c_void_p
_INTS4 = ctypes.c_int64 * 4


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class ForwardArguments(ctypes.Structure):
    """pa_forward_args."""

    _fields_ = [
        *_fields(_POINTER, "q k v out lse"),
        *_fields(_INT, "q_row q_head q_dim k_row k_head k_dim v_row v_head v_dim"),
        *_fields(_INT, "out_row out_head lse_head dtype kv_dtype"),
        *_fields(_INT, "batch heads kv_heads head_dim head_dim_v"),
        *_fields(_POINTER, "sequences block_table"),
        *_fields(_INT, "table_row page_size k_page v_page left right"),
        *_fields(ctypes.c_double, "softmax_scale softcap dropout_p"),
        ("slopes", _POINTER),
        ("slopes_batch", _INT),
        ("bias", _POINTER),
        ("bias_dtype", _INT),
        ("bias_stride", _INTS4),
        ("mask", _POINTER),
        ("mask_stride", _INTS4),
        *_fields(_POINTER, "sinks k_scale v_scale"),
        ("seed", ctypes.c_uint64),
        *_fields(_INT, "dropout_offset block_m block_n"),
    ]


class BackwardArguments(ctypes.Structure):
    """pa_backward_args."""

    _fields_ = [
        ("f", ctypes.POINTER(ForwardArguments)),
        *_fields(_POINTER, "grad_out grad_lse dq dk dv"),
        *_fields(_INT, "g_row g_head g_dim dq_row dq_head dk_row dk_head dv_row dv_head"),
        ("gradients", _POINTER),
        ("splits", _INT),
        *_fields(_POINTER, "dq_parts dq_part dbias"),
        ("dbias_stride", _INTS4),
        ("dsinks", _POINTER),
    ]


@dataclass
class Call:
    """A filled structure and the tensors that its pointers reach into."""

    arguments: ForwardArguments
    spans: list[tuple[int, int, int, int, int, int]]
    kept: list[Tensor] = field(default_factory=list)

    def keep(self, tensor: Tensor) -> int:
        """The tensor's address, valid while this object lives."""
        self.kept.append(tensor)
        return tensor.data_ptr()


def forward_call(
    tensors: AttentionTensors, problem: AttentionProblem, out: Tensor, lse: Tensor, block_n: int
) -> Call:
    """The arguments of a call; out and lse are contiguous, as backends return them."""
    a = ForwardArguments()
    call = Call(a, _spans(tensors, problem))
    q, k, v = tensors.q, tensors.k, tensors.v
    for name, tensor in (("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse)):
        setattr(a, name, call.keep(tensor))
    a.q_row, a.q_head, a.q_dim = q.stride()[-3:]
    a.k_row, a.k_head, a.k_dim = k.stride()[-3:]
    a.v_row, a.v_head, a.v_dim = v.stride()[-3:]
    a.out_row, a.out_head, _ = out.stride()[-3:]
    a.lse_head = lse.shape[-1]
    a.dtype, a.kv_dtype = DTYPES[q.dtype], DTYPES[k.dtype]
    a.batch, a.heads, a.kv_heads = len(call.spans), q.shape[-2], k.shape[-2]
    a.head_dim, a.head_dim_v = q.shape[-1], v.shape[-1]
    a.left, a.right = problem.window
    a.softmax_scale, a.softcap = problem.softmax_scale, problem.softcap
    a.dropout_p, a.block_n = problem.dropout_p, block_n
    if tensors.block_table is not None:
        table = tensors.block_table.to(torch.int32)
        table = table if table.stride(-1) == 1 else table.contiguous()
        a.block_table, a.table_row = call.keep(table), table.stride(0)
        a.page_size, a.k_page, a.v_page = k.shape[1], k.stride(0), v.stride(0)
    a.sequences = call.keep(sequence_table(call.spans, q, out, lse, k, v))
    _add_features(call, tensors)
    return call


def sequence_table(
    spans: list[tuple[int, int, int, int, int, int]],
    q: Tensor,
    out: Tensor,
    lse: Tensor | None,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """[batch, 8] int64 of pa_sequence: offsets in elements of these tensors, lengths, first key."""

    def at(tensor: Tensor, row: int, place: int) -> int:
        if tensor.dim() == 3:
            return place * tensor.stride(0)
        return row * tensor.stride(0) + place * tensor.stride(1)

    rows = []
    for b, (row, first_q, length_q, key_row, first_k, length_k) in enumerate(spans):
        lse_at = 0 if lse is None else first_q if lse.dim() == 2 else b * lse.stride(0)
        keys = (at(x, key_row, first_k) for x in (k, v))
        rows.append((at(q, row, first_q), at(out, row, first_q), lse_at, *keys))
        rows[-1] += (length_q, length_k, first_k)
    return torch.tensor(rows, dtype=torch.int64).view(-1, 8)


def _spans(
    tensors: AttentionTensors, problem: AttentionProblem
) -> list[tuple[int, int, int, int, int, int]]:
    """Row, first query, queries; row, first key, keys of each sequence."""
    if problem.layout == "dense":
        queries, keys = tensors.q.shape[1], tensors.k.shape[1]
        return [(b, 0, queries, b, 0, keys) for b in range(tensors.q.shape[0])]
    batch = problem.batch
    if tensors.cu_seqlens_q is None:
        q = [(b, 0, tensors.q.shape[1]) for b in range(batch)]
    else:
        starts = tensors.cu_seqlens_q.tolist()
        q = [(0, a, b - a) for a, b in pairwise(starts)]
    if tensors.seqused_k is not None:
        firsts = [0] * batch if tensors.leftpad_k is None else tensors.leftpad_k.tolist()
        rows = tensors.cache_batch_idx
        index = list(range(batch)) if rows is None else rows.tolist()
        ends = tensors.seqused_k.tolist()
        k = [(r, a, max(0, b - a)) for r, a, b in zip(index, firsts, ends, strict=True)]
    else:
        assert tensors.cu_seqlens_k is not None
        starts = tensors.cu_seqlens_k.tolist()
        first: Callable[[int], int] = (lambda a: 0) if problem.page_size else (lambda a: a)
        k = [(0, first(a), b - a) for a, b in pairwise(starts)]
    return [(*left, *right) for left, right in zip(q, k, strict=True)]


def _add_features(call: Call, tensors: AttentionTensors) -> None:
    a = call.arguments
    if tensors.alibi_slopes is not None:
        slopes = tensors.alibi_slopes.float().contiguous()
        a.slopes = call.keep(slopes)
        a.slopes_batch = slopes.shape[-1] if slopes.dim() == 2 and slopes.shape[0] > 1 else 0
    if tensors.bias is not None:
        bias = tensors.bias if tensors.bias.dtype in DTYPES else tensors.bias.float()
        a.bias, a.bias_dtype = call.keep(bias), DTYPES[bias.dtype]
        a.bias_stride = broadcast_strides(bias)
    if tensors.mask is not None:
        a.mask = call.keep(tensors.mask)
        a.mask_stride = broadcast_strides(tensors.mask)
    if tensors.sinks is not None:
        a.sinks = call.keep(tensors.sinks.float().contiguous())
    if tensors.rng_state is not None:
        seed, offset = tensors.rng_state.tolist()
        a.seed, a.dropout_offset = seed & (2**64 - 1), offset & 0xFFFFFFFF


def broadcast_strides(tensor: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Four strides, 0 along what a bias or mask is broadcast over."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return _INTS4(*(0 if size == 1 else stride for size, stride in pairs))
