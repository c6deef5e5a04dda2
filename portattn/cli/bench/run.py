"""Runs a case against all peers: first whether each is right, then how fast, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from portattn.cli.bench.check import Attend, error_ratio
from portattn.cli.bench.grid import Case, inputs, laid_out
from portattn.cli.bench.measure import Call, Timing, interleave
from portattn.cli.bench.peers import Peer


@dataclass(frozen=True)
class Result:
    """One peer on one case: its time, or why there is none."""

    case: Case
    peer: str
    timing: Timing | None
    error_ratio: float | None = None
    reason: str | None = None

    @property
    def tflops(self) -> float | None:
        """Arithmetic rate of the median, in TFLOP/s."""
        return None if self.timing is None else self.case.flops / self.timing.median / 1e12

    @property
    def kv_gbs(self) -> float | None:
        """Rate at which the median reads K and V, in GB/s; decode only."""
        if self.timing is None or self.case.operation != "decode":
            return None
        return self.case.kv_bytes / self.timing.median / 1e9


def run_case(case: Case, peers: Sequence[Peer], device: torch.device, rounds: int) -> list[Result]:
    """Check every peer, then time those that are right."""
    tensors = inputs(case, device)
    ratios: dict[str, float] = {}
    reasons: dict[str, str] = {}
    calls: dict[str, Call] = {}
    for peer in peers:
        reason = peer.reason_against(case, device)
        if reason is None:
            try:
                ratios[peer.name] = error_ratio(case, tensors, _attend(case, peer), peer.layout)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                reason = str(error)
        if reason is None and not ratios[peer.name] <= 1.0:
            reason = f"wrong: {ratios[peer.name]:.3g} times the allowed error"
        if reason is None:
            calls[peer.name] = _call(case, peer, tensors)
        else:
            reasons[peer.name] = reason
    timings = interleave(calls, device, rounds)
    return [
        Result(case, name, timings.get(name), ratios.get(name), reasons.get(name))
        for name in (peer.name for peer in peers)
    ]


def _attend(case: Case, peer: Peer) -> Attend:
    """The peer's attention as it will be timed."""
    if case.operation == "decode":
        return lambda q, k, v, causal: peer.decoder(k, v)(q)
    return peer.attend


def _call(case: Case, peer: Peer, tensors: Sequence[Tensor]) -> Call:
    q, k, v = laid_out(tensors, peer.layout)
    if case.operation == "backward":
        return _backward_call(case, peer, q, k, v)
    if case.operation == "decode":
        step = peer.decoder(k, v)
        return lambda: step(q)

    def forward() -> Tensor:
        with torch.no_grad():
            return peer.attend(q, k, v, case.masked)

    return forward


def _backward_call(case: Case, peer: Peer, q: Tensor, k: Tensor, v: Tensor) -> Call:
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = peer.attend(q, k, v, case.masked)
    grad_out = torch.randn_like(out)

    def backward() -> object:
        return torch.autograd.grad(out, leaves, grad_out, retain_graph=True)

    return backward
