"""A KV cache of one contiguous row per sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.cache.view import (
    CacheView,
    check_beams,
    check_index,
    check_new_tokens,
    check_sizes,
    check_store,
    host_bound,
    host_values,
    new_slots,
    scales,
    stored,
)
from portattn.errors import ArgumentError, CacheFullError


class ContiguousKVCache:
    """Keys [B, max_seqlen, Hkv, D] and values [B, max_seqlen, Hkv, Dv] with one length each.

    Neither append nor view waits for the device: the host keeps an upper bound of the lengths. In
    torch.compile'd code that bound is max_seqlen. Nothing here is differentiable.

    A cache of int8 or float8_e4m3fn holds keys divided by k_scale and values divided by v_scale
    (a number, [Hkv] or [B, Hkv]), rounded to the nearest and clamped.
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
        k_scale: Tensor | float | None = None,
        v_scale: Tensor | float | None = None,
    ) -> None:
        dim_v = head_dim if head_dim_v is None else head_dim_v
        check_sizes(
            batch=batch,
            max_seqlen=max_seqlen,
            kv_heads=kv_heads,
            head_dim=head_dim,
            head_dim_v=dim_v,
        )
        self.k = torch.zeros(batch, max_seqlen, kv_heads, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(batch, max_seqlen, kv_heads, dim_v, dtype=dtype, device=device)
        self.k_scale, self.v_scale = scales(k_scale, v_scale, self.k, batch)
        self.seqlens = torch.zeros(batch, dtype=torch.int32, device=self.k.device)
        self.cache_batch_idx: Tensor | None = None
        self.leftpad_k: Tensor | None = None
        self._longest = 0
        self._known = True  # the host knows the longest length, not only a bound of it

    @classmethod
    def from_tensors(
        cls,
        k_cache: Tensor,
        v_cache: Tensor,
        cache_seqlens: Tensor,
        cache_batch_idx: Tensor | None = None,
        leftpad_k: Tensor | None = None,
        *,
        longest: int | None = None,
        k_scale: Tensor | float | None = None,
        v_scale: Tensor | float | None = None,
    ) -> ContiguousKVCache:
        """Wrap caller-owned tensors: appends write into them, cache_seqlens stays as it is.

        k_cache [Bc, S, Hkv, D], v_cache [Bc, S, Hkv, Dv]; cache_seqlens [B] int32 tokens in use.
        Sequence b is row cache_batch_idx[b] ([B] int32), or row b without it, and begins at
        leftpad_k[b] ([B] int32) of its row. `longest`: the longest of cache_seqlens, where the
        host knows it. `k_scale`, `v_scale`: as in the constructor.

        Values are checked on the CPU only: on an accelerator reading them would make the host
        wait. There, and without `longest`, keeping appends within S is the caller's part.
        """
        check_store("cache", k_cache, v_cache)
        check_index("cache_seqlens", cache_seqlens, (None,), k_cache)
        batch = cache_seqlens.shape[0]
        if cache_batch_idx is not None:
            check_index("cache_batch_idx", cache_batch_idx, (batch,), k_cache)
            _check_rows(cache_batch_idx, k_cache.shape[0])
        elif batch > k_cache.shape[0]:
            raise ArgumentError(
                "cache_batch_idx", f"must map {batch} sequences to {k_cache.shape[0]} rows"
            )
        else:
            k_cache, v_cache = k_cache[:batch], v_cache[:batch]
        if leftpad_k is not None:
            check_index("leftpad_k", leftpad_k, (batch,), k_cache)
            _check_padding(leftpad_k, cache_seqlens)
        cache = cls.__new__(cls)
        cache.k, cache.v, cache.seqlens = k_cache, v_cache, cache_seqlens
        cache.k_scale, cache.v_scale = scales(k_scale, v_scale, k_cache, batch)
        cache.cache_batch_idx, cache.leftpad_k = cache_batch_idx, leftpad_k
        bound = host_bound(cache_seqlens, cache.max_seqlen)
        known = longest if bound is None else bound
        cache._known = known is not None
        cache._longest = cache.max_seqlen if known is None else known
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
        if torch.compiler.is_compiling():
            # A number that grows would compile the caller's graph anew at every step.
            self._known, self._longest = False, self.max_seqlen
        elif self._known and self._longest + count > self.max_seqlen:
            raise CacheFullError(count, self.max_seqlen - self._longest, "tokens per sequence")
        rows = self.cache_batch_idx
        index = torch.arange(self.batch, device=self.k.device) if rows is None else rows.long()
        slots = new_slots(self.seqlens, count)
        with torch.no_grad():
            self.k[index[:, None], slots] = stored(k, self.k_scale, self.k.dtype)
            self.v[index[:, None], slots] = stored(v, self.v_scale, self.v.dtype)
        # A new tensor: caller-owned lengths are never changed.
        self.seqlens = self.seqlens + count
        if not torch.compiler.is_compiling():
            self._longest = min(self._longest + count, self.max_seqlen)

    def view(self) -> CacheView:
        """The cache as attention reads it."""
        return CacheView(
            self.k,
            self.v,
            self.seqlens,
            self.max_seqlen if torch.compiler.is_compiling() else self._longest,
            cache_batch_idx=self.cache_batch_idx,
            leftpad_k=self.leftpad_k,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )

    def crop(self, max_length: int) -> None:
        """Forget tokens past max_length of every sequence."""
        if max_length < 0:
            raise ArgumentError("max_length", "must be at least 0", max_length)
        self.seqlens = self.seqlens.clamp(max=max_length)
        if self.leftpad_k is not None:
            self.leftpad_k = torch.minimum(self.leftpad_k, self.seqlens)
        self._longest = min(self._longest, max_length)

    def reorder(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was: [B] integers, as in beam search."""
        check_beams(beam_idx, self.batch)
        order = beam_idx.to(self.k.device).long()
        rows = self.cache_batch_idx
        index = torch.arange(self.batch, device=self.k.device) if rows is None else rows.long()
        with torch.no_grad():
            for store in (self.k, self.v):
                store[index, : self._longest] = store[index[order], : self._longest]
        self.seqlens = self.seqlens[order]
        if self.k_scale is not None and self.v_scale is not None:
            self.k_scale, self.v_scale = self.k_scale[order], self.v_scale[order]
        if self.leftpad_k is not None:
            self.leftpad_k = self.leftpad_k[order]
        lengths = host_values(self.seqlens)
        if lengths is not None:
            self._longest = max(lengths, default=0)

    def reset(self) -> None:
        """Forget every token; the memory is kept."""
        self.crop(0)
        self._known = True


def _check_rows(cache_batch_idx: Tensor, rows: int) -> None:
    given = host_values(cache_batch_idx)
    if given is not None and any(not 0 <= row < rows for row in given):
        raise ArgumentError("cache_batch_idx", f"must lie in 0 .. {rows - 1}", given)


def _check_padding(leftpad_k: Tensor, seqlens: Tensor) -> None:
    pads, lengths = host_values(leftpad_k), host_values(seqlens)
    if pads is None or lengths is None:
        return
    if any(not 0 <= pad <= length for pad, length in zip(pads, lengths, strict=True)):
        raise ArgumentError("leftpad_k", "must lie between 0 and the sequence's length", pads)
