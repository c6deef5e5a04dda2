"""Prefill, varlen and backward by the compiled library (csrc/prefill.c)."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from portattn.backends.cpu.prefill_arguments import (
    DTYPES,
    BackwardArguments,
    broadcast_strides,
    forward_call,
    sequence_table,
)
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.problem import AttentionProblem

_NOT_FINITE = 1


def reasons_against_prefill(problem: AttentionProblem) -> list[str]:
    """Why the compiled tiles can't run a problem; empty when they can."""
    reasons = []
    for dtype in {problem.dtype, problem.kv_dtype or problem.dtype} - set(DTYPES):
        reasons.append(f"the compiled tiles have no {str(dtype).removeprefix('torch.')}")
    if problem.operation == "backward" and problem.page_size:
        reasons.append("paged keys have no gradient")
    return reasons


def prefill_forward(
    library: ctypes.CDLL,
    tensors: AttentionTensors,
    problem: AttentionProblem,
    config: Config,
    threads: int,
) -> tuple[Tensor, Tensor]:
    """out and lse of a dense, varlen or cache call, as Backend.forward returns them.

    Raises MemoryError when the threads' tiles can't be allocated.
    """
    out, lse = _results(tensors, problem)
    call = forward_call(tensors, problem, out, lse, config.get("block_n", 0))
    _run(library, "pa_prefill_forward", call.arguments, _tiles(tensors), threads)
    return out, lse


def prefill_backward(
    library: ctypes.CDLL,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: AttentionTensors,
    problem: AttentionProblem,
    threads: int,
) -> Gradients | None:
    """Gradients as Backend.backward returns them, or None where an input holds NaN or inf.

    NaN that a mask hides must reach no sum, which products of whole tiles can't keep apart: such
    a call is the torch path's. Raises MemoryError when the sums can't be allocated.
    """
    lse, out = lse.contiguous(), out.contiguous()
    call = forward_call(tensors, problem, out, lse, 0)
    dq, dk, dv = _gradients(tensors, problem)
    a = BackwardArguments(f=ctypes.pointer(call.arguments))
    a.grad_out = call.keep(grad_out)
    if grad_lse is not None:
        a.grad_lse = call.keep(grad_lse.float().contiguous())
    a.g_row, a.g_head, a.g_dim = grad_out.stride()[-3:]
    for name, tensor in (("dq", dq), ("dk", dk), ("dv", dv)):
        setattr(a, name, call.keep(tensor))
        setattr(a, f"{name}_row", tensor.stride(-3))
        setattr(a, f"{name}_head", tensor.stride(-2))
    a.gradients = call.keep(sequence_table(call.spans, dq, grad_out, None, dk, dv))
    bias, sinks = tensors.bias, tensors.sinks
    dbias = dsinks = None
    if problem.bias_grad and bias is not None:
        dbias = torch.zeros(bias.shape, dtype=torch.float32)
        a.dbias, a.dbias_stride = call.keep(dbias), broadcast_strides(dbias)
    if sinks is not None:
        parts = torch.zeros(len(call.spans), len(sinks), dtype=torch.float64)
        a.dsinks = call.keep(parts)
    if _run(library, "pa_prefill_backward", a, _tiles(tensors), threads) == _NOT_FINITE:
        return None
    if bias is not None and dbias is not None:
        dbias = dbias.to(bias.dtype)
    if sinks is not None:
        dsinks = parts.sum(0).to(sinks.dtype)
    return Gradients(dq, dk, dv, dbias, dsinks)


def _results(tensors: AttentionTensors, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """out and lse to be filled; rows of "varlen" that no sequence has get an empty row's values."""
    q = tensors.q
    out = torch.empty((*q.shape[:-1], tensors.v.shape[-1]), dtype=q.dtype)
    if problem.layout != "varlen":
        return out, torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    for rows in _rows_of_none(tensors.cu_seqlens_q, len(q)):
        out[rows], lse[:, rows] = 0, -math.inf
    return out, lse


def _gradients(tensors: AttentionTensors, problem: AttentionProblem) -> list[Tensor]:
    """dq, dk and dv to be filled; 0 where no sequence lies."""
    made = [torch.empty(x.shape, dtype=x.dtype) for x in (tensors.q, tensors.k, tensors.v)]
    if problem.layout == "varlen":
        starts = (tensors.cu_seqlens_q, tensors.cu_seqlens_k, tensors.cu_seqlens_k)
        for gradient, cu_seqlens in zip(made, starts, strict=True):
            for rows in _rows_of_none(cu_seqlens, len(gradient)):
                gradient[rows] = 0
    return made


def _rows_of_none(cu_seqlens: Tensor | None, total: int) -> tuple[slice, slice]:
    """The rows before the first sequence and after the last."""
    assert cu_seqlens is not None
    return slice(0, int(cu_seqlens[0])), slice(int(cu_seqlens[-1]), total)


def _tiles(tensors: AttentionTensors) -> int:
    """1 where every operand is bfloat16, which some instruction sets multiply directly."""
    return int(all(x.dtype == torch.bfloat16 for x in (tensors.q, tensors.k)))


def _run(
    library: ctypes.CDLL, name: str, arguments: ctypes.Structure, bfloat16: int, threads: int
) -> int:
    function = getattr(library, name)
    status: int = function(
        ctypes.byref(arguments), ctypes.c_int64(bfloat16), ctypes.c_int64(threads)
    )
    if status < 0:
        raise MemoryError("no memory for the tiles of attention on the CPU")
    return status
