"""The structures of kernels/problem.cuh, filled from a call's tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_float


class Rows(ctypes.Structure):
    _fields_ = [
        ("data", _POINTER),
        ("batch", _LONG),
        ("row", _LONG),
        ("head", _LONG),
        ("dim", _LONG),
    ]


class Matrix(ctypes.Structure):
    _fields_ = [
        ("data", _POINTER),
        ("batch", _LONG),
        ("head", _LONG),
        ("row", _LONG),
        ("key", _LONG),
    ]


class KernelProblem(ctypes.Structure):
    _fields_ = [
        *((name, Rows) for name in ("q", "k", "v", "out")),
        ("bias", Matrix),
        ("mask", Matrix),
        ("lse", _POINTER),
        ("lse_batch", _LONG),
        ("lse_head", _LONG),
        ("slopes", _POINTER),
        ("slopes_batch", _LONG),
        ("sinks", _POINTER),
        *(
            (name, _POINTER)
            for name in (
                "cu_seqlens_q",
                "cu_seqlens_k",
                "seqused_k",
                "leftpad_k",
                "cache_batch_idx",
                "block_table",
            )
        ),
        ("table_stride", _LONG),
        *(
            (name, _INT)
            for name in (
                "page_size",
                "batch",
                "heads",
                "group",
                "seqlen_q",
                "seqlen_k",
                "head_dim",
                "head_dim_v",
                "left",
                "right",
                "row_tiles",
                "heavy_first",
                "splits",
                "keys_per_split",
            )
        ),
        ("scale", _FLOAT),
        ("softcap", _FLOAT),
        *((name, Rows) for name in ("grad_out", "dq", "dk", "dv")),
        ("delta", _POINTER),
        ("partial", _POINTER),
    ]


def kernel_problem(
    tensors: AttentionTensors, problem: AttentionProblem, out: Tensor, lse: Tensor
) -> KernelProblem:
    """The call as its kernel takes it; the tensors must outlive the launch."""
    filled = KernelProblem(
        q=rows_of(tensors.q),
        k=rows_of(tensors.k),
        v=rows_of(tensors.v),
        out=rows_of(out),
        lse=lse.data_ptr(),
        lse_batch=lse.stride(0) if lse.dim() == 3 else 0,
        lse_head=lse.stride(-2),
        page_size=problem.page_size,
        batch=problem.batch,
        heads=problem.heads,
        group=problem.heads // problem.kv_heads,
        seqlen_q=problem.seqlen_q,
        seqlen_k=problem.seqlen_k,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        left=problem.window[0],
        right=problem.window[1],
        scale=problem.softmax_scale,
        softcap=problem.softcap,
    )
    for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k", "leftpad_k", "cache_batch_idx"):
        tensor = getattr(tensors, name)
        if tensor is not None:
            setattr(filled, name, tensor.data_ptr())
    if tensors.block_table is not None:
        filled.block_table = tensors.block_table.data_ptr()
        filled.table_stride = tensors.block_table.stride(0)
    _fill_terms(filled, tensors, problem)
    return filled


def _fill_terms(
    filled: KernelProblem, tensors: AttentionTensors, problem: AttentionProblem
) -> None:
    full = (problem.batch, problem.heads, problem.seqlen_q, problem.seqlen_k)
    for name, tensor in (("bias", tensors.bias), ("mask", tensors.mask)):
        if tensor is not None:
            steps = zip(tensor.shape, full, tensor.stride(), strict=True)
            strides = (0 if size == 1 < wanted else step for size, wanted, step in steps)
            setattr(filled, name, Matrix(tensor.data_ptr(), *strides))
    slopes = tensors.alibi_slopes
    if slopes is not None:
        filled.slopes = slopes.data_ptr()
        filled.slopes_batch = slopes.stride(0) if slopes.dim() == 2 else 0
    if tensors.sinks is not None:
        filled.sinks = tensors.sinks.data_ptr()


def rows_of(tensor: Tensor) -> Rows:
    strides = tensor.stride()
    return Rows(tensor.data_ptr(), *(strides if len(strides) == 4 else (0, *strides)))


def aligned(*tensors: Tensor) -> bool:
    """Whether every row consists of whole chunks of 16 bytes at multiples of 16."""
    return all(
        tensor.stride(-1) == 1
        and not tensor.data_ptr() % 16
        and not any(step % 8 for step in (*tensor.stride()[:-1], tensor.shape[-1]))
        for tensor in tensors
    )


def readable(tensors: AttentionTensors) -> AttentionTensors:
    """The call with its small operands in the types and strides that kernels read."""
    changes: dict[str, Tensor] = {}
    bias, slopes, sinks = tensors.bias, tensors.alibi_slopes, tensors.sinks
    if bias is not None and bias.dtype not in BIAS_TYPES:
        changes["bias"] = bias.float()
    if slopes is not None and slopes.stride(-1) != 1:
        changes["alibi_slopes"] = slopes.contiguous()
    if sinks is not None and (sinks.dtype != torch.float32 or sinks.stride(0) != 1):
        changes["sinks"] = sinks.float().contiguous()
    table = tensors.block_table
    if table is not None and table.stride(-1) != 1:
        changes["block_table"] = table.contiguous()
    for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k", "leftpad_k", "cache_batch_idx"):
        lengths = getattr(tensors, name)
        if lengths is not None and lengths.stride(0) != 1:
            changes[name] = lengths.contiguous()
    if not changes:
        return tensors
    given = {name: getattr(tensors, name) for name in AttentionTensors.__dataclass_fields__}
    return AttentionTensors(**{**given, **changes})


# By the constant ELEMENT or BIAS - 1 of the kernels.
BIAS_TYPES = (torch.float16, torch.bfloat16, torch.float32)
