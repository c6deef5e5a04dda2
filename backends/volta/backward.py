"""The launchers of the backward."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.volta import program
from portattn.backends.volta.layout import aligned, kernel_problem, readable, rows_of
from portattn.backends.volta.variants import Variant, padded, problem_constants
from portattn.dispatch.backend import AttentionTensors, Gradients
from portattn.dispatch.problem import AttentionProblem

_KEPT = 64  # rows or keys that a block keeps
_MAX_HEAD_DIM = 128  # of the sums in registers
_MISSING = ("softcap", "bias", "bias_grad", "mask", "sinks")


def reasons_against(problem: AttentionProblem) -> list[str]:
    """What these kernels lack that the forward has."""
    reasons = [f"backward has no {name}" for name in _MISSING if name in problem.features]
    if problem.page_size:
        reasons.append("backward doesn't read pages")
    if problem.dtype != torch.float16:
        reasons.append("backward takes float16: in its range the gradients of others may not fit")
    if max(problem.head_dim, problem.head_dim_v) > _MAX_HEAD_DIM:
        reasons.append(f"backward takes head dims up to {_MAX_HEAD_DIM}")
    return reasons


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: AttentionTensors,
    problem: AttentionProblem,
    turing: bool,
) -> Gradients:
    """dq, dk and dv; the same bits for the same call."""
    tensors = readable(tensors)
    packed = problem.layout == "varlen"
    make = torch.zeros_like if packed else torch.empty_like
    grads = [make(t, memory_format=torch.contiguous_format) for t in _qkv(tensors)]
    dq, dk, dv = grads
    lse = lse.contiguous()
    delta = (grad_out.float() * out.float()).sum(-1).transpose(-1, -2).contiguous()
    if grad_lse is not None:
        delta = delta - grad_lse
    constants = problem_constants(tensors, problem)
    constants["ALIGNED"] = int(aligned(*_qkv(tensors), grad_out, *grads))
    dim = padded(max(problem.head_dim, problem.head_dim_v))
    call = kernel_problem(tensors, problem, out, lse)
    call.delta = delta.data_ptr()
    for name, tensor in (("grad_out", grad_out), ("dq", dq), ("dk", dk), ("dv", dv)):
        setattr(call, name, rows_of(tensor))
    call.row_tiles = -(-problem.seqlen_q // _KEPT)
    key_tiles = -(-problem.seqlen_k // _KEPT)
    for kernel, blocks, copies, step in (
        ("gradient_q", call.row_tiles * problem.batch * problem.heads, 3, 32),
        # In the registers that two sums of 128 dims leave, sm_75's products have room for 16.
        (
            "gradient_kv",
            key_tiles * problem.batch * problem.kv_heads,
            4,
            16 if turing and dim == 128 else 32,
        ),
    ):
        if blocks:
            every = (("D", dim), ("BLOCK_N", step), ("BLOCKS", 1), *constants.items())
            shared = (2 * _KEPT + copies * step) * (128 if dim <= 64 else 256)
            program.launch(Variant(kernel, turing, every), blocks, shared, call)
    return Gradients(dq, dk, dv)


def _qkv(tensors: AttentionTensors) -> tuple[Tensor, Tensor, Tensor]:
    return tensors.q, tensors.k, tensors.v
