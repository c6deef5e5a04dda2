"""What a backend declares, and why it can't run a problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem, Layout, Operation


@dataclass(frozen=True)
class Rejection:
    """A candidate that doesn't run, with every reason why."""

    backend: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Capability:
    """The limits a backend declares; `reasons_against` turns them into words.

    `families` of None means every architecture family of the listed device types.
    `kernels` names each kernel with its tuning parameters and their legal values: profiles are
    checked against it. A kernel has its operation's name.
    `promises` are the guarantees the conformance suite holds the backend to, from PROMISES.
    """

    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    operations: Mapping[Operation, frozenset[Layout]]
    features: frozenset[str]
    max_head_dim: int
    families: frozenset[str] | None = None
    kv_dtypes: frozenset[torch.dtype] = frozenset()  # beyond the dtype of q
    head_dim_multiple: int = 1
    kernels: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    promises: frozenset[str] = frozenset()
    more_promises: Mapping[str, frozenset[str]] = field(default_factory=dict)  # by device type

    def promises_on(self, device_type: str) -> frozenset[str]:
        """The guarantees on one type of device."""
        return self.promises | self.more_promises.get(device_type, frozenset())

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        """Each declared limit that the problem or device exceeds; empty when it can run."""
        reasons = self._device_reasons(device)
        layouts = self.operations.get(problem.operation, frozenset())
        if not layouts:
            reasons.append(f"has no {problem.operation}")
        elif problem.layout not in layouts:
            reasons.append(
                f"{problem.operation} has no {problem.layout} layout (has {_join(layouts)})"
            )
        reasons += self._dtype_reasons(problem)
        reasons += self._head_dim_reasons(problem)
        missing = problem.features - self.features
        reasons += [f"{name} is not supported" for name in sorted(missing)]
        return reasons

    def _device_reasons(self, device: Device) -> list[str]:
        if device.type not in self.devices:
            return [f"runs on {_join(self.devices)}, not on {device.type}"]
        if self.families is not None and device.family not in self.families:
            return [f"is written for {_join(self.families)}, this device is {device.family}"]
        return []

    def _dtype_reasons(self, problem: AttentionProblem) -> list[str]:
        if problem.dtype not in self.dtypes:
            names = _join(_short(dtype) for dtype in self.dtypes)
            return [f"dtype {_short(problem.dtype)} is not supported (has {names})"]
        kv_dtype = problem.kv_dtype
        if kv_dtype is not None and kv_dtype != problem.dtype and kv_dtype not in self.kv_dtypes:
            return [f"keys and values of {_short(kv_dtype)} are not supported"]
        return []

    def _head_dim_reasons(self, problem: AttentionProblem) -> list[str]:
        reasons = []
        for label, dim in (("head_dim", problem.head_dim), ("head_dim_v", problem.head_dim_v)):
            if dim > self.max_head_dim:
                reasons.append(f"{label} {dim} is more than {self.max_head_dim}")
            if dim % self.head_dim_multiple:
                reasons.append(f"{label} {dim} is not a multiple of {self.head_dim_multiple}")
        return reasons


# The guarantees that not every kernel can give.
PROMISES = {
    "repeatable": "the same bits for the same call",
    "batch_invariant": "a sequence's result doesn't depend on its neighbours in the batch",
    "poison": "NaN in masked-out keys changes nothing",
}


def _join(names: object) -> str:
    return ", ".join(sorted(names))  # type: ignore[call-overload]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
