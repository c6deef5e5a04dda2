"""A backend whose candidates take known times, and are wrong or refused where a test says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.dispatch.profile_schema import When
from portattn.tuning import Target

PROBLEM = AttentionProblem(
    "decode", "cache", torch.float32, 2, 1, 48, 4, 2, 16, 16, 0.25, window=(-1, -1)
)
TARGET = Target("decode-small", PROBLEM, When.model_validate({"dtype": "float32", "batch": 2}))
SIZES = (16, 32, 64, 1024)
Damage = Callable[[Tensor], Tensor]


@dataclass
class FakeBackend:
    """The reference under the name of cpu, with a decode whose time depends on block_n.

    `delays` are seconds, `damage` what is done to out; both by block_n. `calls` counts the runs.
    """

    delays: dict[int, float] = field(default_factory=dict)
    damage: dict[int, Damage] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    at_call: Callable[[int], None] = lambda number: None
    name: str = "cpu"

    def __post_init__(self) -> None:
        self._reference = registry.load("reference")
        self.capability: Capability = replace(
            self._reference.capability,
            devices=frozenset({"cpu"}),
            kernels={"decode": {"block_n": SIZES}},
        )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        return self.capability.reasons_against(problem, device)

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return "fake"

    def probe(self, device: Device) -> None:
        pass

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        size = config["block_n"]
        self.calls.append(size)
        self.at_call(len(self.calls))
        time.sleep(self.delays.get(size, 0.0))
        out, lse = self._reference.decode(tensors, problem, config)
        return self.damage.get(size, lambda out: out)(out), lse


class PrunedBackend(FakeBackend):
    """One that knows the limits of its device."""

    def tuning_reasons_against(
        self, kernel: str, config: Config, problem: AttentionProblem, device: Device
    ) -> list[str]:
        need = config["block_n"] * problem.head_dim * 8 // 1024
        return [f"{kernel} needs {need} KiB of shared memory, there are 4"] if need > 4 else []


class NarrowBackend(FakeBackend):
    """One that offers less than the product of its legal values."""

    offers: tuple[int, ...] = (64,)

    def tuning_space(
        self, kernel: str, problem: AttentionProblem, device: Device
    ) -> Iterable[Config]:
        return [{"block_n": size} for size in self.offers]
