"""What the adapters of installed libraries share."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from portattn.cli.bench.check import Attend
from portattn.cli.bench.grid import Case, PeerLayout
from portattn.cli.bench.pages import Pages
from portattn.cli.bench.peers import Step
from portattn.dispatch import device as devices


class Library:
    """A library in a module of its own; `kinds` are the cases that its adapter has a call for.

    Kinds: "forward", "backward", "packed forward", "packed backward", "decode", "paged".
    """

    name: str
    layout: PeerLayout = "bshd"
    module: str
    kinds: frozenset[str]
    families: frozenset[str] | None = None  # None: every NVIDIA or AMD GPU that torch supports

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """What is missing: the library, the device, the dtype or the kind of case."""
        if not installed(self.module):
            return "is not installed"
        if device.type != "cuda":
            return f"doesn't run on {device.type}"
        family = devices.of(device).family
        if self.families is not None and family not in self.families:
            return f"doesn't run on {family}"
        if case.dtype not in {"float16", "bfloat16"}:
            return f"has no {case.dtype}"
        return None if kind(case) in self.kinds else f"has no call for {kind(case)}"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Dense attention."""
        raise NotImplementedError(f"{self.name} has no call for dense attention")

    def packed(self, case: Case, device: torch.device) -> Attend:
        """Attention over packed sequences."""
        raise NotImplementedError(f"{self.name} has no call for packed sequences")

    def decoder(self, k: Tensor, v: Tensor, causal: bool) -> Step:
        """Attention over a contiguous cache."""
        raise NotImplementedError(f"{self.name} has no call for a contiguous cache")

    def pager(self, pages: Pages, case: Case) -> Step:
        """Attention over a paged cache."""
        raise NotImplementedError(f"{self.name} has no call for a paged cache")


def installed(module: str) -> bool:
    """Whether a module, or a module of a package, can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a package above it is missing, or a stub without a spec
        return False


def kind(case: Case) -> str:
    """What an adapter needs a call for."""
    if case.operation == "decode":
        return "paged" if case.page_size else "decode"
    return f"packed {case.operation}" if case.lengths else case.operation


def only(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output of a library that may return more beside it."""
    return result[0] if isinstance(result, tuple) else result
