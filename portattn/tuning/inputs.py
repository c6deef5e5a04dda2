"""Tensors for a problem, and the call that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors, Backend, Config
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

# What the tensors and the plain formula here can express.
FEATURES = frozenset({"causal", "window", "softcap", "gqa", "head_dim_v", "paged", "deterministic"})

Results = Mapping[str, Tensor]


@dataclass(frozen=True)
class Inputs:
    """The tensors of a problem; for a backward also the incoming gradient and the forward's
    results, as every backend is given them."""

    problem: AttentionProblem
    tensors: AttentionTensors
    grad_out: Tensor | None = None
    out: Tensor | None = None
    lse: Tensor | None = None


def where(device: Device) -> torch.device:
    """The torch device behind a Device."""
    return torch.device(device.type if device.type == "cpu" else f"{device.type}:{device.index}")


def current(device: Device) -> AbstractContextManager[object]:
    """A context in which the device is the current one of its kind: kernels are launched there."""
    if device.type in ("cuda", "xpu", "npu"):
        made: AbstractContextManager[object] = getattr(torch, device.type).device(device.index)
        return made
    return nullcontext()


def unsupported(problem: AttentionProblem) -> list[str]:
    """What of a problem can't be tuned here, in words; empty when all can."""
    missing = sorted(problem.features - FEATURES)
    reasons = [f"{name} is not tuned for" for name in missing]
    if problem.layout == "varlen":
        reasons.append("varlen is not tuned for: dense problems decide its rules")
    if problem.kv_dtype is not None:
        reasons.append("keys of another dtype are not tuned for")
    return reasons


def make(problem: AttentionProblem, place: torch.device) -> Inputs:
    """Fresh normal random tensors; a backward's forward results come from the reference."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=place).to(problem.dtype)

    q = normal(problem.batch, problem.seqlen_q, problem.heads, problem.head_dim)
    if problem.layout == "cache":
        return Inputs(problem, _cache(problem, q, normal))
    k, v = (
        normal(problem.batch, problem.seqlen_k, problem.kv_heads, dim)
        for dim in (problem.head_dim, problem.head_dim_v)
    )
    tensors = AttentionTensors(q, k, v)
    if problem.operation != "backward":
        return Inputs(problem, tensors)
    out, lse = registry.load("reference").forward(tensors, problem, {})
    return Inputs(problem, tensors, normal(*out.shape), out, lse)


def _cache(problem: AttentionProblem, q: Tensor, normal: Callable[..., Tensor]) -> AttentionTensors:
    """Sequences of the full length, contiguous, or in pages in random order."""
    batch, keys, page = problem.batch, problem.seqlen_k, problem.page_size
    used = torch.full((batch,), keys, dtype=torch.int32, device=q.device)
    dims = (problem.head_dim, problem.head_dim_v)
    if not page:
        k, v = (normal(batch, keys, problem.kv_heads, dim) for dim in dims)
        return AttentionTensors(q, k, v, seqused_k=used)
    per_row = -(-keys // page)
    order = torch.randperm(batch * per_row, device=q.device).to(torch.int32)
    k, v = (normal(batch * per_row, page, problem.kv_heads, dim) for dim in dims)
    return AttentionTensors(q, k, v, seqused_k=used, block_table=order.view(batch, per_row))


def call(backend: Backend, inputs: Inputs, config: Config) -> Callable[[], Results]:
    """The operation as one call that gives its results by name."""
    problem, tensors = inputs.problem, inputs.tensors

    def forward() -> Results:
        run = backend.decode if problem.operation == "decode" else backend.forward
        out, lse = run(tensors, problem, config)
        return {"out": out, "lse": lse}

    def backward() -> Results:
        grad_out, out, lse = inputs.grad_out, inputs.out, inputs.lse
        assert grad_out is not None and out is not None and lse is not None
        found = backend.backward(grad_out, None, out, lse, tensors, problem, config)
        return {"dq": found.dq, "dk": found.dk, "dv": found.dv}

    return backward if problem.operation == "backward" else forward
