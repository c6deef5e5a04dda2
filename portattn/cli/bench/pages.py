"""Keys and values in the storages that serving uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pages:
    """k, v [P, page_size, Hkv, D] in shuffled pages; table [B, pages] and lengths [B] int32."""

    k: Tensor
    v: Tensor
    table: Tensor
    lengths: Tensor
    counts: tuple[int, ...]  # lengths, for the host

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.k.shape[1]

    @property
    def used(self) -> list[int]:
        """Pages of every sequence."""
        return [-(-count // self.page_size) for count in self.counts]


def paged(k: Tensor, v: Tensor, counts: Sequence[int], page_size: int) -> Pages:
    """Copy k and v, [B, S, Hkv, D] or [1, T, Hkv, D], into pages in random order."""
    used = [-(-count // page_size) for count in counts]
    order = torch.randperm(sum(used), device=k.device)
    owned = order.split(used)
    slots = torch.cat(
        [
            (pages[:, None] * page_size + torch.arange(page_size, device=k.device)).flatten()[
                :count
            ]
            for pages, count in zip(owned, counts, strict=True)
        ]
    )
    table = torch.nn.utils.rnn.pad_sequence(list(owned), batch_first=True).int()
    lengths = torch.tensor(counts, dtype=torch.int32, device=k.device)
    return Pages(
        _scattered(k, slots, len(order), page_size),
        _scattered(v, slots, len(order), page_size),
        table,
        lengths,
        tuple(counts),
    )


def _scattered(tokens: Tensor, slots: Tensor, pages: int, page_size: int) -> Tensor:
    flat = tokens.flatten(0, 1)
    store = flat.new_zeros((pages * page_size, *flat.shape[1:]))
    store.index_copy_(0, slots, flat)
    return store.view(pages, page_size, *flat.shape[1:])


def cumulative(counts: Sequence[int], device: torch.device) -> Tensor:
    """[0, n0, n0 + n1, ...] int32."""
    ends = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.to(device)
