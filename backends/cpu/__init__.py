"""Attention on a CPU in tiles: every feature, memory linear in length."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.common.definition import empty_result, like_inputs, zero_gradients
from portattn.backends.common.pieces import pieces
from portattn.backends.cpu.backward import piece_backward
from portattn.backends.cpu.forward import piece_forward
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import FEATURES, AttentionProblem

_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_SIZES = tuple(2**n for n in range(4, 13))


class CpuBackend:
    """Tiled torch operations: float32 arithmetic for half types, float64 for float64."""

    name = "cpu"
    capability = Capability(
        devices=frozenset({"cpu"}),
        dtypes=_FLOATS,
        kv_dtypes=_FLOATS,
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
            "decode": frozenset({"cache"}),
        },
        features=frozenset(FEATURES),
        max_head_dim=65536,
        kernels={
            "forward": {"block_m": _SIZES, "block_n": _SIZES},
            "backward": {"block_m": _SIZES, "block_n": _SIZES},
            "decode": {"block_n": _SIZES},
        },
        promises=frozenset({"repeatable", "poison"}),
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if problem.operation == "backward" and problem.page_size:
            reasons.append("paged keys have no gradient")
        return reasons

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return "tiled torch operations"

    def probe(self, device: Device) -> None:
        """One query over two equal keys must give the mean of their values."""
        v = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)
        tensors = AttentionTensors(torch.ones(1, 1, 1, 2), torch.ones_like(v), v)
        problem = AttentionProblem("forward", "dense", v.dtype, 1, 1, 2, 1, 1, 2, 2, 1.0)
        out, _ = self.forward(tensors, problem, {})
        if out.flatten().tolist() != [2.0, 3.0]:
            raise ArithmeticError(f"the mean of two values came out as {out.flatten().tolist()}")

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        out, lse = empty_result(tensors)
        tile = (config.get("block_m", 128), config.get("block_n", 256))
        for piece in pieces(tensors, problem):
            piece_forward(
                piece,
                problem,
                tensors.rng_state,
                tile,
                piece.queries_of(out),
                piece.row_values_of(lse),
            )
        return out, lse

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
        sums = zero_gradients(tensors, problem, lse.dtype)
        # delta = sum_j p_j dp_j - dlse, one value per row (see backward.py).
        delta = (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1).transpose(-1, -2)
        if grad_lse is not None:
            delta = delta - grad_lse
        tile = (config.get("block_m", 128), config.get("block_n", 256))
        for piece in pieces(tensors, problem):
            piece_backward(piece, problem, tensors, tile, grad_out, delta, lse, sums)
        return like_inputs(sums, tensors)
