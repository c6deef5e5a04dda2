"""Ascend NPUs through this package's own two-level tiled kernel; see tiled.py."""

from __future__ import annotations

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from portattn.backends.ascend import constraints, launch_tiled, tiles
from portattn.backends.ascend.tiled import tiled_kernel
from portattn.backends.common.trial import try_out
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import BackendUnavailableError

_MAX_PROGRAMS = 65535  # of one launch, by triton-ascend


class AscendTiledBackend:
    """Forward and decode in one kernel; the backward is the vendor route's."""

    name = "ascend_tiled"

    def __init__(self) -> None:
        interpreted = isinstance(tiled_kernel, InterpretedFunction)
        dtypes = {torch.float32, torch.float16, torch.bfloat16}
        if interpreted:
            # Triton's interpreter multiplies the bit patterns of bfloat16.
            dtypes.remove(torch.bfloat16)
        self.capability = Capability(
            devices=frozenset({"npu", "cpu"} if interpreted else {"npu"}),
            dtypes=frozenset(dtypes),
            operations={
                "forward": frozenset({"dense", "varlen"}),
                "decode": frozenset({"cache"}),
            },
            features=frozenset(
                {
                    "causal",
                    "window",
                    "softcap",
                    "sinks",
                    "gqa",
                    "head_dim_v",
                    "paged",
                    "leftpad",
                    "deterministic",
                }
            ),
            max_head_dim=tiles.MAX_WIDTH,
            kernels=tiles.KERNELS,
            promises=frozenset({"repeatable", "batch_invariant"}),
        )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if device.type == "npu":
            if device.family not in ("ascend910b", "ascend910_93"):
                reasons.append(
                    f"is compiled for ascend910b and ascend910_93, this device is {device.family}"
                )
            reasons += [*constraints.environment_reasons(), *constraints.triton_reasons()]
        page = tiles.page_reason(problem.page_size)
        reasons += [] if page is None else [page]
        if problem.page_size and (problem.leftpad or problem.layout != "cache"):
            reasons.append("reads pages of a cache only, without leftpad")
        if max(problem.head_dim, problem.head_dim_v) <= tiles.MAX_WIDTH:
            count = launch_tiled.programs(problem, {})
            if count > _MAX_PROGRAMS:
                reasons.append(f"would launch {count} programs, more than {_MAX_PROGRAMS}")
        return reasons

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return "two-level tiled " + problem.operation

    def probe(self, device: Device) -> None:
        """Compare a small problem of each operation with the definition."""
        try_out(self, device)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        return launch_tiled.run(tensors, problem, config)

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        return launch_tiled.run(tensors, problem, config)

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
        raise BackendUnavailableError(self.name, "it has no backward")
