"""Gluon kernels for Hopper: TMA, wgmma and a partition for each consumer warpgroup."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from portattn.backends.common import repeats
from portattn.backends.common.trial import try_out
from portattn.backends.hopper import forward, gradients, tiles
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import BackendUnavailableError


class HopperBackend:
    """Dense and packed attention in half precision on H100 and H200."""

    name = "hopper"
    capability = Capability(
        devices=frozenset({"cuda"}),
        families=frozenset({"sm_90a"}),
        dtypes=frozenset({torch.float16, torch.bfloat16}),
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
        },
        features=frozenset(
            {"causal", "window", "softcap", "gqa", "head_dim_v", "deterministic", "lse_grad"}
        ),
        max_head_dim=256,
        head_dim_multiple=8,
        kernels=tiles.KERNELS,
        promises=frozenset({"repeatable", "batch_invariant"}),
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if not problem.aligned:
            reasons.append("TMA copies need q, k and v to begin and step at multiples of 16 bytes")
        if problem.operation == "backward":
            wide = max(problem.head_dim, problem.head_dim_v)
            if wide > tiles.MAX_HEAD_DIM_BACKWARD:
                reasons.append(f"backward takes head dims up to {tiles.MAX_HEAD_DIM_BACKWARD}")
        return reasons

    def tuning_reasons_against(
        self, kernel: str, config: Config, problem: AttentionProblem, device: Device
    ) -> list[str]:
        return tiles.reasons_against(kernel, config, problem)

    def tuning_space(
        self, kernel: str, problem: AttentionProblem, device: Device
    ) -> Iterable[Config]:
        return tiles.tuning_space(kernel, problem)

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return "Gluon " + problem.operation

    def probe(self, device: Device) -> None:
        """Small problems against the definition; a launch that is planned must repeat the first."""
        try_out(self, device)
        where, config = torch.device(device.type, device.index), dict[str, int]()
        q = torch.linspace(-1, 1, 80 * 64, device=where).half().view(1, 80, 1, 64)
        problem = AttentionProblem("forward", "dense", q.dtype, 1, 80, 80, 1, 1, 64, 64, 0.125)
        first, _ = self.forward(AttentionTensors(q, q, q), problem, config)
        again, _ = self.forward(AttentionTensors(q, q.clone(), q), problem, config)
        if not torch.equal(first, again):
            raise ArithmeticError("the same call gives other bits the second time")

    def plan(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> repeats.Repeats:
        """Calls with tensors like these, each launched like the first."""
        method = self.forward
        return repeats.Repeats(method, problem, config)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        return forward.forward(tensors, problem, config)

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        raise BackendUnavailableError(self.name, "it has no decode")

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
        return gradients.backward(grad_out, grad_lse, out, lse, tensors, problem, config)
