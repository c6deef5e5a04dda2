"""Device: vendor, architecture family and memory of one device, without starting it early."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """One device as dispatch sees it.

    `family` is an architecture, compared only for equality: "sm_90a", "ascend910b", or on CPUs the
    widest instruction set: "sse4", "avx2", "avx512", "avx512_bf16", "amx", "neon".
    `type` is torch's device type.
    """

    type: str
    vendor: str
    family: str
    name: str
    index: int = 0
    memory_bytes: int = 0
    cores: int = 0

    def __str__(self) -> str:
        return f"{self.name} ({self.vendor} {self.family})"


def of(device: torch.device) -> Device:
    """The Device behind a torch device; detected once per process."""
    raise NotImplementedError
