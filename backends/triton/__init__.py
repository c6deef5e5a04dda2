"""Portable Triton kernels: every feature on NVIDIA from Ampere up, and on AMD where Triton runs."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.common import definition, launch, repeats
from portattn.backends.triton import backward, decode, forward, limits, tiles
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import FEATURES, AttentionProblem

_NVIDIA = frozenset({"sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a"})
_AMD = frozenset({"gfx90a", "gfx942", "gfx950"})
_MAX_HEAD_DIM_BACKWARD = 256


class TritonBackend:
    """One forward, one backward pair and one decode kernel, written once for every chip."""

    name = "triton"

    def __init__(self) -> None:
        interpreted = launch.interpreted()
        dtypes = {torch.float32, torch.float16, torch.bfloat16}
        if interpreted:
            # Triton's interpreter multiplies the bit patterns of bfloat16.
            dtypes.remove(torch.bfloat16)
        self.capability = Capability(
            devices=frozenset({"cuda", "cpu"} if interpreted else {"cuda"}),
            dtypes=frozenset(dtypes),
            kv_dtypes=frozenset({torch.int8, torch.float8_e4m3fn}),
            operations={
                "forward": frozenset({"dense", "varlen"}),
                "backward": frozenset({"dense", "varlen"}),
                "decode": frozenset({"cache"}),
            },
            features=frozenset(FEATURES),
            max_head_dim=576,
            kernels=tiles.KERNELS,
            promises=frozenset({"repeatable", "batch_invariant", "poison"}),
        )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if device.type == "cuda" and device.family not in _NVIDIA | _AMD:
            reasons.append(f"Triton's matrix products don't run on {device.family}")
        if problem.operation == "backward":
            if problem.page_size:
                reasons.append("backward doesn't read pages")
            if max(problem.head_dim, problem.head_dim_v) > _MAX_HEAD_DIM_BACKWARD:
                reasons.append(f"backward takes head dims up to {_MAX_HEAD_DIM_BACKWARD}")
        return reasons

    def tuning_reasons_against(
        self, kernel: str, config: Config, problem: AttentionProblem, device: Device
    ) -> list[str]:
        return limits.reasons_against(kernel, config, problem, device)

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return "Triton " + problem.operation

    def probe(self, device: Device) -> None:
        """One small causal grouped problem against the definition."""
        where = torch.device("cpu" if device.type == "cpu" else f"cuda:{device.index}")
        q = torch.linspace(-1, 1, 24 * 2 * 16, device=where).half().view(1, 24, 2, 16)
        k = q[:, :, :1].cos()
        problem = AttentionProblem(
            "forward", "dense", torch.float16, 1, 24, 24, 2, 1, 16, 16, 0.25, window=(-1, 0)
        )
        tensors = AttentionTensors(q, k, k)
        right, right_lse = definition.forward(tensors, problem)
        plan = self.plan(tensors, problem, {})
        # The second call goes another way, as all but the first do.
        for _ in range(2):
            out, lse = plan.run(tensors)
            worst = max(float((out - right).abs().max()), float((lse - right_lse).abs().max()))
            if not worst < 5e-3:
                raise ArithmeticError(f"a small problem is off by {worst:.2g}")

    def plan(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> repeats.Repeats:
        """Calls with tensors like these, each launched like the first."""
        method = self.forward if problem.operation == "forward" else self.decode
        return repeats.Repeats(method, problem, config)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        return forward.forward(tensors, problem, config)

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        return decode.decode(tensors, problem, config)

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
        return backward.backward(grad_out, grad_lse, out, lse, tensors, problem, config)
