"""Host pages on their way to the device: two buffers, so that one fills while one is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from portattn.offload.link import Event
from portattn.offload.store import HostKVStore


@dataclass(frozen=True)
class Staged:
    """Pages first .. last of every sequence of a layer: [pages, page_size, Hkv, D(v)] on the
    device with its table [B, last - first]; to be read after `ready`."""

    layer: int
    version: int
    first: int
    last: int
    k: Tensor
    v: Tensor
    table: Tensor
    ready: Event
    scales: tuple[Tensor, Tensor] | None = None  # [pages, Hkv]


class Staging:
    """Uploads host pages; a buffer is filled again when what read it has been queued before."""

    def __init__(self, store: HostKVStore) -> None:
        self._store = store
        self._buffers: list[list[Tensor | None]] = [[None] * 4 for _ in range(2)]
        self._slot = 0
        self._tables: dict[tuple[int, int], tuple[int, list[int], Tensor]] = {}
        self._ahead: Staged | None = None

    def prefetch(self, layer: int, pages: int) -> int:
        """Begin to upload the first pages of a layer that will be asked for; bytes it moves."""
        if not pages or self._fits(self._ahead, layer):
            return 0
        self._ahead = self.upload(layer, 0, pages)
        return self._bytes(self._ahead)

    def take(self, layer: int, pages: int, *, exactly: bool) -> Staged:
        """The first pages of a layer: those uploaded ahead, else `pages` now.

        Pages that came since then aren't among those ahead; with `exactly` they must be.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and self._fits(ahead, layer) and (ahead.last == pages or not exactly):
            return ahead
        return self.upload(layer, 0, pages)

    def _fits(self, staged: Staged | None, layer: int) -> bool:
        return (
            staged is not None and staged.layer == layer and staged.version == self._store.version
        )

    def upload(self, layer: int, first: int, last: int) -> Staged:
        """Pages first .. last of every sequence, into the buffer that was used less recently."""
        *planes, _, flushed = self._store.hosted(layer)
        ids, table = self._table(first, last)
        self._slot ^= 1
        # What was uploaded ahead may lie in this buffer, and isn't the next to be asked for.
        self._ahead = None
        event, filled = flushed, []
        # [P, Hkv, page_size, D], as it lies in memory.
        sources = [plane.transpose(1, 2) for plane in planes]
        scales = self._store.scales(layer)
        for which, source in enumerate((*sources, *(scales or ()))):
            buffer = self._buffer(which, len(ids), source)
            for place, page, count in self._store.runs(ids):
                event = self._store.link.upload(
                    buffer[place : place + count], source[page : page + count], flushed
                )
            filled.append(buffer[: len(ids)])
        k, v = (pages.transpose(1, 2) for pages in filled[:2])
        pair = None if scales is None else (filled[2], filled[3])
        return Staged(layer, self._store.version, first, last, k, v, table, event, pair)

    def _buffer(self, which: int, pages: int, like: Tensor) -> Tensor:
        held = self._buffers[self._slot][which]
        if held is None or held.shape[0] < pages:
            held = torch.empty(
                (pages, *like.shape[1:]), dtype=like.dtype, device=self._store.device
            )
            self._buffers[self._slot][which] = held
        return held

    def _table(self, first: int, last: int) -> tuple[list[int], Tensor]:
        """The pages that are moved, each once, and where each sequence finds its own."""
        known = self._tables.get((first, last))
        if known is None or known[0] != self._store.version:
            held = self._store.table[:, first:last]
            ids, places = torch.unique(held, return_inverse=True)
            table = self._small(places.to(torch.int32))
            if len(self._tables) > 64 or (known and known[0] != self._store.version):
                self._tables.clear()
            known = self._tables[first, last] = self._store.version, ids.tolist(), table
        return known[1], known[2]

    def _small(self, table: Tensor) -> Tensor:
        """A copy on the device that the computation queued after it may read."""
        held = self._store.link.host_buffer(tuple(table.shape), table.dtype).copy_(table)
        return held.to(self._store.device, non_blocking=True)

    def _bytes(self, staged: Staged) -> int:
        return staged.k.nbytes + staged.v.nbytes
