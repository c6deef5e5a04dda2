"""Ascend NPUs through the fused operators of torch-npu, for what they compute as defined here.

What the operators leave open is settled around them: rows without a visible key get 0 and -inf and
give no gradient, and the lse comes out of the maxima and sums that the training operator returns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from portattn.backends.ascend import arguments, constraints, installation
from portattn.backends.ascend.arguments import VendorCall
from portattn.backends.ascend.blind_rows import blind_rows, without_rows
from portattn.backends.common import definition
from portattn.backends.common.packed import cleared, cleared_lse
from portattn.backends.common.trial import try_out
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

# In the place of -inf as a row's lse: every exp(s - lse) is 0, and no inf meets another.
_NO_PROBABILITY = 1e30


class AscendBackend:
    """npu_fusion_attention, its gradient, and npu_fused_infer_attention_score for caches."""

    name = "ascend"
    capability = Capability(
        devices=frozenset({"npu"}),
        families=frozenset({"ascend910b", "ascend910_93"}),
        dtypes=frozenset({torch.float16, torch.bfloat16}),
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
            "decode": frozenset({"cache"}),
        },
        features=frozenset({"causal", "window", "gqa", "head_dim_v", "paged", "sinks"}),
        max_head_dim=768,
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        reasons += constraints.reasons_against(problem)
        if device.type == "npu":
            reasons += constraints.environment_reasons()
        return reasons

    def software(self) -> tuple[str, str]:
        """Driver, CANN, torch-npu and Triton, and what to install."""
        return installation.software()

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        if problem.operation == "decode":
            return "npu_fused_infer_attention_score"
        return "npu_fusion_attention" + ("_grad" if problem.operation == "backward" else "")

    def probe(self, device: Device) -> None:
        """Compare a small problem of each operation with the definition."""
        try_out(self, device)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        if not (problem.rows and problem.keys):
            return definition.forward(tensors, problem)
        out, maxima, sums, *_ = _run(arguments.training(tensors, problem))
        lse = maxima[..., 0] + sums[..., 0].log()
        if problem.layout == "varlen":
            lse = lse.transpose(0, 1)
            ends = tensors.cu_seqlens_q
            assert ends is not None
            out, lse = cleared(out, ends), cleared_lse(lse, ends)
        return without_rows(out, lse, blind_rows(tensors, problem))

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        if not (problem.rows and problem.keys):
            return definition.forward(tensors, problem)
        assert tensors.seqused_k is not None  # the layout is cache
        lengths = tensors.seqused_k.tolist()
        second = hasattr(_library(), "npu_fused_infer_attention_score_v2")
        out, lse = _run(arguments.infer(tensors, problem, lengths, second))
        return without_rows(out, lse.squeeze(-1), blind_rows(tensors, problem))

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
        if not (problem.rows and problem.keys):
            return definition.backward(grad_out, grad_lse, out, lse, tensors, problem)
        blind = lse == float("-inf")
        rows = blind.transpose(-1, -2)[..., None]
        grad_out = grad_out.masked_fill(rows, 0.0)
        finite = lse.masked_fill(blind, _NO_PROBABILITY)
        call = arguments.gradient(grad_out, out, finite, tensors, problem)
        dq, dk, dv = _run(call)[:3]
        if problem.layout == "varlen":
            ends_q, ends_k = tensors.cu_seqlens_q, tensors.cu_seqlens_k
            assert ends_q is not None and ends_k is not None
            dq, dk, dv = cleared(dq, ends_q), cleared(dk, ends_k), cleared(dv, ends_k)
        dsinks = _sink_gradient(grad_out, out, lse, tensors.sinks)
        return Gradients(dq, dk, dv, dsinks=dsinks)


def _sink_gradient(
    grad_out: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None
) -> Tensor | None:
    """-sum over rows of p_z (g . out), as backends/common/definition.py derives it."""
    if sinks is None:
        return None
    delta = (grad_out.float() * out.float()).sum(-1).transpose(-1, -2)
    shape = (-1, 1)
    weight = (sinks.float().view(shape) - lse).exp().masked_fill(lse == float("-inf"), 0.0)
    total = -(weight * delta)
    heads = total.dim() - 2
    return total.sum([dim for dim in range(total.dim()) if dim != heads]).to(sinks.dtype)


def _run(call: VendorCall) -> Any:
    return getattr(_library(), call.operator)(*call.args, **call.keywords)


def _library() -> Any:
    """torch.ops.npu, which importing torch_npu fills."""
    import torch_npu  # type: ignore[import-not-found]  # noqa: F401

    return torch.ops.npu
