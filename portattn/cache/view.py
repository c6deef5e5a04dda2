"""What attention needs of a KV cache, and what every cache can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from portattn.errors import ArgumentError, DeviceError, DtypeError, ShapeError


@dataclass(frozen=True)
class CacheView:
    """A cache as attention reads it, without a copy.

    k [Bc, S, Hkv, D], v [Bc, S, Hkv, Dv], or pages [P, page_size, Hkv, D(v)] with block_table
    [B, pages] int32. Sequence b uses keys leftpad_k[b] .. seqused_k[b] (int32) of row
    cache_batch_idx[b]. max_seqlen_k bounds seqused_k and is known to the host.
    """

    k: Tensor
    v: Tensor
    seqused_k: Tensor
    max_seqlen_k: int
    block_table: Tensor | None = None
    cache_batch_idx: Tensor | None = None
    leftpad_k: Tensor | None = None


class KVCache(Protocol):
    """The role of a cache in attention_with_kvcache."""

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv] after each sequence's tokens.

        All or nothing: raises CacheFullError before anything is written.
        """
        ...

    def view(self) -> CacheView:
        """The cache as attention reads it."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        ...


def check_new_tokens(k: Tensor, v: Tensor, store_k: Tensor, store_v: Tensor, batch: int) -> None:
    """Raise a typed error unless k and v can be stored beside what the cache holds."""
    for name, new, store in (("k", k, store_k), ("v", v, store_v)):
        if new.dim() != 4 or new.shape[0] != batch or new.shape[2:] != store.shape[2:]:
            heads, dim = store.shape[2:]
            raise ShapeError(
                name, f"must be [{batch}, new tokens, {heads}, {dim}]", tuple(new.shape)
            )
        if new.dtype != store.dtype:
            raise DtypeError(name, f"must have the cache's dtype, {store.dtype}", new.dtype)
        if new.device != store.device:
            raise DeviceError(name, f"must be on the cache's device, {store.device}", new.device)
    if k.shape[1] != v.shape[1]:
        raise ShapeError("v", f"must hold as many tokens as k, {k.shape[1]}", tuple(v.shape))


def check_sizes(**sizes: int) -> None:
    """Raise ArgumentError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ArgumentError(name, "must be at least 1", size)


def new_slots(seqlens: Tensor, count: int) -> Tensor:
    """Positions of `count` new tokens after each length: [B, count] int64."""
    return seqlens.long()[:, None] + torch.arange(count, device=seqlens.device)
