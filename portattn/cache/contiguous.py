"""A KV cache of one contiguous row per sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.cache.view import CacheView, check_new_tokens, check_sizes, new_slots
from portattn.errors import ArgumentError, CacheFullError, ShapeError


class ContiguousKVCache:
    """Keys [B, max_seqlen, Hkv, D] and values [B, max_seqlen, Hkv, Dv] with one length each.

    Reads and appends never wait for the device: the host keeps an upper bound of the lengths.
    """

    def __init__(
        self,
        batch: int,
        max_seqlen: int,
        kv_heads: int,
        head_dim: int,
        *,
        head_dim_v: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        dim_v = head_dim if head_dim_v is None else head_dim_v
        check_sizes(
            batch=batch, max_seqlen=max_seqlen, kv_heads=kv_heads, head_dim=head_dim,
            head_dim_v=dim_v,
        )
        self.k = torch.zeros(batch, max_seqlen, kv_heads, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(batch, max_seqlen, kv_heads, dim_v, dtype=dtype, device=device)
        self.seqlens = torch.zeros(batch, dtype=torch.int32, device=self.k.device)
        self.cache_batch_idx: Tensor | None = None
        self.leftpad_k: Tensor | None = None
        self._longest = 0

    @classmethod
    def from_tensors(
        cls,
        k_cache: Tensor,
        v_cache: Tensor,
        cache_seqlens: Tensor,
        cache_batch_idx: Tensor | None = None,
        leftpad_k: Tensor | None = None,
    ) -> ContiguousKVCache:
        """Wrap caller-owned tensors: appends write into them, cache_seqlens stays as it is.

        k_cache [Bc, S, Hkv, D], v_cache [Bc, S, Hkv, Dv]; cache_seqlens [B] int32 tokens in use.
        """
        if k_cache.dim() != 4 or v_cache.dim() != 4 or k_cache.shape[:3] != v_cache.shape[:3]:
            raise ShapeError(
                "v_cache",
                "must be [Bc, S, Hkv, Dv] like k_cache",
                f"{tuple(k_cache.shape)} and {tuple(v_cache.shape)}",
            )
        cache = cls.__new__(cls)
        cache.k, cache.v = k_cache, v_cache
        cache.seqlens = cache_seqlens
        cache.cache_batch_idx = cache_batch_idx
        cache.leftpad_k = leftpad_k
        cache._longest = _host_bound(cache_seqlens, k_cache.shape[1])
        return cache

    @property
    def batch(self) -> int:
        """Sequences that are read and appended to."""
        return self.seqlens.shape[0]

    @property
    def max_seqlen(self) -> int:
        """Tokens that one sequence has room for."""
        return self.k.shape[1]

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.k.nbytes + self.v.nbytes

    @property
    def used_bytes(self) -> int:
        """Bytes that hold tokens; reads the lengths, so an accelerator is waited for."""
        per_token = (self.k[0, 0].nbytes + self.v[0, 0].nbytes) if self.k.numel() else 0
        return int(self.seqlens.sum()) * per_token

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv] after each sequence's tokens.

        Raises CacheFullError, with nothing written, when the longest sequence has no room.
        """
        check_new_tokens(k, v, self.k, self.v, self.batch)
        count = k.shape[1]
        if self._longest + count > self.max_seqlen:
            self._longest = self._exact_longest()
        if self._longest + count > self.max_seqlen:
            raise CacheFullError(count, self.max_seqlen - self._longest, "tokens per sequence")
        rows = self.cache_batch_idx
        index = torch.arange(self.batch, device=self.k.device) if rows is None else rows.long()
        slots = new_slots(self.seqlens, count)
        self.k[index[:, None], slots] = k
        self.v[index[:, None], slots] = v
        # A new tensor: caller-owned lengths are never changed.
        self.seqlens = self.seqlens + count
        self._longest += count

    def view(self) -> CacheView:
        """The cache as attention reads it."""
        return CacheView(
            self.k,
            self.v,
            self.seqlens,
            self._longest,
            cache_batch_idx=self.cache_batch_idx,
            leftpad_k=self.leftpad_k,
        )

    def crop(self, max_length: int) -> None:
        """Forget tokens past max_length of every sequence."""
        if max_length < 0:
            raise ArgumentError("max_length", "must be at least 0", max_length)
        self.seqlens = self.seqlens.clamp(max=max_length)
        self._longest = min(self._longest, max_length)

    def reorder(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was: [B] integers, as in beam search."""
        _check_beams(beam_idx, self.batch)
        rows = beam_idx.to(self.k.device).long()
        if self.cache_batch_idx is not None:
            source = self.cache_batch_idx.long()
            self.k[source], self.v[source] = self.k[source[rows]], self.v[source[rows]]
        else:
            self.k.copy_(self.k[rows])
            self.v.copy_(self.v[rows])
        self.seqlens = self.seqlens[rows]
        if self.leftpad_k is not None:
            self.leftpad_k = self.leftpad_k[rows]

    def reset(self) -> None:
        """Forget every token; the memory is kept."""
        self.seqlens = torch.zeros_like(self.seqlens)
        self._longest = 0

    def _exact_longest(self) -> int:
        return int(self.seqlens.max()) if self.batch else 0


def _host_bound(seqlens: Tensor, capacity: int) -> int:
    """The longest length where reading it is free, else the capacity."""
    if seqlens.device.type != "cpu" or not seqlens.numel():
        return capacity
    longest = int(seqlens.max())
    if int(seqlens.min()) < 0 or longest > capacity:
        raise ArgumentError("cache_seqlens", f"must lie in 0 .. {capacity}", seqlens.tolist())
    return longest


def _check_beams(beam_idx: Tensor, batch: int) -> None:
    if tuple(beam_idx.shape) != (batch,):
        raise ShapeError("beam_idx", f"must have shape {(batch,)}", tuple(beam_idx.shape))
    if beam_idx.device.type == "cpu" and batch:
        low, high = int(beam_idx.min()), int(beam_idx.max())
        if low < 0 or high >= batch:
            raise ArgumentError("beam_idx", f"must lie in 0 .. {batch - 1}", beam_idx.tolist())
