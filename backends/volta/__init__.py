"""CUDA C++ kernels for Volta and Turing, compiled on first use by NVRTC through CuPy."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.common.trial import try_out
from portattn.backends.volta import backward, decode, forward, program
from portattn.backends.volta.variants import TILES, forward_tile, is_fused, padded, tile_reasons
from portattn.dispatch import device as devices
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

_WITHOUT_LDMATRIX = frozenset({"sm_70", "sm_72"})


class VoltaBackend:
    """Tiles of mma.m8n8k4 on sm_70 and sm_72, of mma.m16n8k8 on sm_75."""

    name = "volta"
    capability = Capability(
        devices=frozenset({"cuda"}),
        families=frozenset({"sm_70", "sm_72", "sm_75"}),
        dtypes=frozenset({torch.float16, torch.bfloat16}),
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
            "decode": frozenset({"cache"}),
        },
        features=frozenset(
            {
                "causal",
                "window",
                "softcap",
                "alibi",
                "bias",
                "mask",
                "sinks",
                "gqa",
                "head_dim_v",
                "deterministic",
                "paged",
                "leftpad",
                "strided",
                "lse_grad",
            }
        ),
        max_head_dim=256,
        kernels=TILES,
        promises=frozenset({"repeatable", "batch_invariant", "poison"}),
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        reasons += program.dtype_reasons(problem.dtype)
        if problem.operation == "backward":
            reasons += backward.reasons_against(problem)
        if not reasons:
            cause = program.missing(device.family)
            reasons += [] if cause is None else [cause]
        return reasons

    def tuning_reasons_against(
        self, kernel: str, config: Config, problem: AttentionProblem, device: Device
    ) -> list[str]:
        if kernel != "volta.forward":
            return []
        dim = padded(max(problem.head_dim, problem.head_dim_v))
        turing = device.family not in _WITHOUT_LDMATRIX
        tile = forward_tile(dim, turing, is_fused(problem), config)
        return tile_reasons(tile, dim, device.family)

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        if problem.operation == "decode" and decode.splits_keys(problem):
            return "CUDA decode split over keys, m8n8k4"
        product = "m8n8k4" if device.family in _WITHOUT_LDMATRIX else "m16n8k8"
        operation = "backward" if problem.operation == "backward" else "forward"
        return f"CUDA {operation}, {product}"

    def probe(self, device: Device) -> None:
        """Compare a small problem of each operation with the definition."""
        try_out(self, device)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        with torch.cuda.device(tensors.q.device):
            return forward.forward(tensors, problem, config, _turing(tensors.q))

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        with torch.cuda.device(tensors.q.device):
            return decode.decode(tensors, problem, config, _turing(tensors.q))

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
        with torch.cuda.device(tensors.q.device):
            return backward.backward(
                grad_out, grad_lse, out, lse, tensors, problem, _turing(tensors.q)
            )


def _turing(tensor: Tensor) -> bool:
    """Whether kernels use sm_75's instructions, which newer chips have too."""
    return devices.of(tensor.device).family not in _WITHOUT_LDMATRIX
