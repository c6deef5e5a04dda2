"""The role of one fused kernel of PyTorch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem


class Kernel(Protocol):
    """Limits, forward and backward; sinks are added by the backend."""

    name: str
    device_type: str

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        """What of the problem this kernel can't compute exactly."""
        ...

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem
    ) -> tuple[Tensor, Tensor]:
        """out and lse without sinks; there is at least one row and one key."""
        ...

    def backward(
        self,
        grad_out: Tensor,
        out: Tensor,
        lse: Tensor,
        tensors: AttentionTensors,
        problem: AttentionProblem,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv."""
        ...
