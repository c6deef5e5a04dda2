"""Attention as its definition, in float64: the oracle that every other backend is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.common import definition
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import FEATURES, AttentionProblem

_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


class ReferenceBackend:
    """Plain torch in float64 (float32 on devices without it), chunked to bounded memory."""

    name = "reference"
    capability = Capability(
        devices=frozenset({"cpu", "cuda", "npu", "xpu", "mps"}),
        dtypes=_FLOATS,
        kv_dtypes=_FLOATS | {torch.int8, torch.float8_e4m3fn},
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
            "decode": frozenset({"cache"}),
        },
        features=frozenset(FEATURES),
        max_head_dim=65536,
        promises=frozenset({"repeatable", "poison"}),
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if problem.operation == "backward" and problem.page_size:
            reasons.append("paged keys have no gradient")
        return reasons

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return "the definition in float64"

    def probe(self, device: Device) -> None:
        """One query over two equal keys must give the mean of their values."""
        where = torch.device("cpu" if device.type == "cpu" else f"{device.type}:{device.index}")
        q = torch.ones(1, 1, 1, 2, device=where)
        v = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=where).view(1, 2, 1, 2)
        problem = AttentionProblem("forward", "dense", q.dtype, 1, 1, 2, 1, 1, 2, 2, 1.0)
        out, _ = self.forward(AttentionTensors(q, torch.ones_like(v), v), problem, {})
        if out.flatten().tolist() != [2.0, 3.0]:
            raise ArithmeticError(f"the mean of two values came out as {out.flatten().tolist()}")

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        return definition.forward(tensors, problem)

    decode = forward

    def backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        tensors: AttentionTensors,
        problem: AttentionProblem,
        config: Config,
    ) -> Gradients:
        return definition.backward(grad_out, grad_lse, out, lse, tensors, problem)
