"""What is measured: portattn, its backends, and the libraries they are compared with."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from portattn.attention import attention, attention_varlen, attention_with_kvcache
from portattn.cache import ContiguousKVCache, PagedKVCache
from portattn.cli.bench.check import Attend
from portattn.cli.bench.grid import Case, PeerLayout
from portattn.cli.bench.pages import Pages, cumulative
from portattn.dispatch import registry
from portattn.errors import BackendUnavailableError

Step = Callable[[Tensor], Tensor]

# It evaluates every score in float64: an oracle, and in no race.
_ORACLE = "reference"


class Peer(Protocol):
    """One library's attention; each method is only called for cases it gave no reason against."""

    name: str
    layout: PeerLayout

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """Why the library can't run the case here, or None."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Attention over tensors in `layout`; the result has that layout too."""
        ...

    def packed(self, case: Case, device: torch.device) -> Attend:
        """What attends over packed sequences of the case's lengths: [1, T, H, D] of `layout`."""
        ...

    def decoder(self, k: Tensor, v: Tensor, causal: bool) -> Step:
        """What attends with q to a full cache k, v in `layout`, prepared once for many steps."""
        ...

    def pager(self, pages: Pages, case: Case) -> Step:
        """What attends with q [B, queries, H, D] to paged keys, prepared once for many steps."""
        ...


class Portattn:
    """What this library chooses by itself, or one backend of it."""

    layout: PeerLayout = "bshd"

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend
        self.name = "portattn" if backend is None else f"portattn:{backend}"

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """Always tried: a refusal is a result too."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """portattn.attention."""
        out = attention(q, k, v, causal=causal, backend=self.backend)
        assert isinstance(out, Tensor)  # no lse was asked for
        return out

    def packed(self, case: Case, device: torch.device) -> Attend:
        """portattn.attention_varlen."""
        ends, longest = cumulative(case.lengths, device), max(case.lengths)

        def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
            out = attention_varlen(
                q[0],
                k[0],
                v[0],
                ends,
                ends,
                longest,
                longest,
                causal=causal,
                backend=self.backend,
            )
            assert isinstance(out, Tensor)
            return out[None]

        return attend

    def decoder(self, k: Tensor, v: Tensor, causal: bool) -> Step:
        """portattn.attention_with_kvcache over a contiguous cache."""
        cache = ContiguousKVCache.from_tensors(k, v, full_lengths(k), longest=k.shape[1])
        return self._step(cache, causal)

    def pager(self, pages: Pages, case: Case) -> Step:
        """portattn.attention_with_kvcache over a paged cache."""
        cache = PagedKVCache.from_tensors(
            pages.k, pages.v, pages.table, pages.lengths, longest=max(pages.counts)
        )
        return self._step(cache, case.masked)

    def _step(self, cache: ContiguousKVCache | PagedKVCache, causal: bool) -> Step:
        def step(q: Tensor) -> Tensor:
            out = attention_with_kvcache(q, cache, causal=causal, backend=self.backend)
            assert isinstance(out, Tensor)
            return out

        return step


def ours(backend: str | None, device: torch.device, each: bool) -> list[Portattn]:
    """portattn as it chooses, or as it is forced to; and, if asked, each backend of the device."""
    backend = backend or os.environ.get("PORTATTN_BACKEND") or None
    if backend is not None or not each:
        return [Portattn(backend)]
    names = [name for name in registry.names() if name != _ORACLE and _runs_on(name, device)]
    return [Portattn(), *(Portattn(name) for name in names)]


def _runs_on(name: str, device: torch.device) -> bool:
    try:
        return device.type in registry.load(name).capability.devices
    except BackendUnavailableError:
        return True  # so that the results say what is missing


def full_lengths(k: Tensor) -> Tensor:
    """A cache [B, S, Hkv, D] that is full to its last token: [B] int32."""
    return torch.full((k.shape[0],), k.shape[1], dtype=torch.int32, device=k.device)
