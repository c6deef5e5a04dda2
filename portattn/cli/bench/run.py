"""Runs a case against all peers: first whether each is right, then how fast, in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from portattn.cli.bench.check import Attend, Oracle
from portattn.cli.bench.grid import Case, PeerLayout, inputs, laid_out
from portattn.cli.bench.measure import Call, Timing, interleave
from portattn.cli.bench.pages import paged
from portattn.cli.bench.peers import Peer, Portattn
from portattn.explain import record

_LONGEST_REASON = 300


@dataclass(frozen=True)
class Result:
    """One peer on one case: its time, or why there is none; `kernel` is what portattn chose."""

    case: Case
    peer: str
    timing: Timing | None
    error_ratio: float | None = None
    reason: str | None = None
    kernel: str | None = None

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

    @property
    def wrong(self) -> bool:
        """Whether the result was further off than is allowed."""
        return self.error_ratio is not None and not self.error_ratio <= 1.0


def run_case(
    case: Case,
    peers: Sequence[Peer],
    device: torch.device,
    rounds: int,
    deadline: float = math.inf,
) -> list[Result]:
    """Check every peer, then time those that are right; after `deadline` no round is begun."""
    try:
        bench = _Bench(case, device)
    except torch.OutOfMemoryError as error:
        return [Result(case, peer.name, None, reason=_in_short(error)) for peer in peers]
    for peer in peers:
        bench.check(peer)
    timings = interleave(bench.calls(peers), device, rounds, deadline)
    return [bench.result(peer, timings.get(peer.name)) for peer in peers]


class _Bench:
    """The tensors of one case, and what was found out about each peer."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self._case = case
        self._device = device
        tensors = inputs(case, device)
        self._laid_out: dict[PeerLayout, Sequence[Tensor]] = {"bshd": tensors}
        self._oracle: Oracle | None = Oracle(case, tensors)
        self._oracle.prepare()
        _, k, v = tensors
        self._pages = paged(k, v, case.key_counts, case.page_size) if case.page_size else None
        self._attends: dict[str, Attend] = {}
        self._ratios: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._kernels: dict[str, str] = {}

    def check(self, peer: Peer) -> None:
        """Compare the peer's result with the oracle's."""
        assert self._oracle is not None  # every check comes before the first call
        reason = peer.reason_against(self._case, self._device)
        if reason is not None:
            self._reasons[peer.name] = reason
            return
        with record() as decisions:
            try:
                ratio = self._oracle.error_ratio(self._attend(peer), peer.layout)
            except Exception as error:  # whatever a library meets is its row's reason
                self._reasons[peer.name] = _in_short(error)
                return
        if isinstance(peer, Portattn):
            self._kernels[peer.name] = ", ".join(
                dict.fromkeys(
                    f"{decision.backend}: {decision.detail}"
                    for decision in decisions
                    if decision.problem.operation == self._case.operation
                )
            )
        self._ratios[peer.name] = ratio
        if not ratio <= 1.0:
            self._reasons[peer.name] = f"wrong: {ratio:.3g} times the allowed error"

    def calls(self, peers: Sequence[Peer]) -> dict[str, Call]:
        """What is timed, of every peer that is right."""
        self._oracle = None  # its memory is the calls' now
        found: dict[str, Call] = {}
        for peer in peers:
            if peer.name not in self._reasons:
                try:
                    found[peer.name] = self._call(peer)
                except Exception as error:  # running out of memory, most likely
                    self._reasons[peer.name] = _in_short(error)
        return found

    def result(self, peer: Peer, timing: Timing | None) -> Result:
        """All that is known of the peer."""
        name = peer.name
        return Result(
            self._case,
            name,
            timing,
            self._ratios.get(name),
            self._reasons.get(name),
            self._kernels.get(name) or None,
        )

    def _attend(self, peer: Peer) -> Attend:
        """The peer's attention as it will be timed."""
        if peer.name not in self._attends:
            self._attends[peer.name] = self._prepared(peer)
        return self._attends[peer.name]

    def _prepared(self, peer: Peer) -> Attend:
        case, pages = self._case, self._pages
        if case.operation == "decode":
            if pages is not None:
                return _stepping(peer.pager(pages, case))
            _, k, v = self._tensors(peer.layout)
            return _stepping(peer.decoder(k, v, case.masked))
        return peer.packed(case, self._device) if case.lengths else peer.attend

    def _call(self, peer: Peer) -> Call:
        q, k, v = self._tensors(peer.layout)
        attend, masked = self._attend(peer), self._case.masked
        if self._case.operation == "backward":
            leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
            out = attend(leaves[0], leaves[1], leaves[2], masked)
            grad_out = torch.randn_like(out)
            return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)

        def forward() -> Tensor:
            with torch.no_grad():
                return attend(q, k, v, masked)

        return forward

    def _tensors(self, layout: PeerLayout) -> Sequence[Tensor]:
        if layout not in self._laid_out:
            self._laid_out[layout] = laid_out(self._laid_out["bshd"], layout)
        return self._laid_out[layout]


def _stepping(step: Callable[[Tensor], Tensor]) -> Attend:
    """A step over a cache that it already holds."""
    return lambda q, k, v, causal: step(q)


def _in_short(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."
