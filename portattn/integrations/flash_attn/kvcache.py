"""flash_attn_with_kvcache of flash-attn 2.8: rotate, append in place, attend."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.attention import attention_with_kvcache
from portattn.cache import ContiguousKVCache, PagedKVCache
from portattn.errors import ArgumentError
from portattn.integrations.flash_attn.rotary import rotate


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend to a cache that k and v, where given, are first written into.

    q [B, Sq, H, D]; k_cache [Bc, S, Hkv, D] and v_cache [Bc, S, Hkv, Dv], or pages
    [P, page_size, Hkv, D(v)] with block_table [B, pages] int32. cache_seqlens, [B] int32 or one
    number, counts the tokens there before the call (None: the cache is full); the caller advances
    it. With rotary tables, q and k are rotated: k from position cache_seqlens on, q too where
    causal or windowed, and every row of q at cache_seqlens otherwise. Returns out [B, Sq, H, Dv],
    with return_softmax_lse also lse [B, H, Sq]. num_splits is a hint, and changes no result.

    Raises ArgumentError for arguments that don't fit, CacheFullError when k and v have no room.
    """
    if num_splits < 0:
        raise ArgumentError("num_splits", "must be 0 (chosen) or positive", num_splits)
    if k is not None and cache_seqlens is None:
        raise ArgumentError("cache_seqlens", "must be given with k and v")
    if (rotary_cos is None) != (rotary_sin is None):
        raise ArgumentError("rotary_sin", "must be given with rotary_cos")
    if rotary_cos is not None and k is None:
        raise ArgumentError("rotary_cos", "needs k and v to be given")
    seqlens = _lengths(q, k_cache, cache_seqlens, block_table)
    cache: ContiguousKVCache | PagedKVCache
    if block_table is None:
        cache = ContiguousKVCache.from_tensors(
            k_cache, v_cache, seqlens, cache_batch_idx, cache_leftpad
        )
    elif cache_leftpad is not None or cache_batch_idx is not None:
        raise ArgumentError("block_table", "can't be combined with cache_leftpad, cache_batch_idx")
    else:
        cache = PagedKVCache.from_tensors(k_cache, v_cache, block_table, seqlens)
    if rotary_cos is not None and rotary_sin is not None and k is not None:
        moves = causal or window_size != (-1, -1)
        q = rotate(q, rotary_cos, rotary_sin, rotary_interleaved, _positions(seqlens, q, moves))
        k = rotate(k, rotary_cos, rotary_sin, rotary_interleaved, _positions(seqlens, k, True))
    return attention_with_kvcache(
        q,
        cache,
        k,
        v,
        causal=causal,
        softmax_scale=softmax_scale,
        window_size=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        return_lse=return_softmax_lse,
    )


def _lengths(
    q: Tensor, k_cache: Tensor, cache_seqlens: int | Tensor | None, block_table: Tensor | None
) -> Tensor:
    if isinstance(cache_seqlens, Tensor):
        return cache_seqlens
    if cache_seqlens is None:
        pages = 1 if block_table is None else block_table.shape[1]
        cache_seqlens = pages * k_cache.shape[1]
    return torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32, device=q.device)


def _positions(seqlens: Tensor, x: Tensor, moves: bool) -> Tensor:
    steps = torch.arange(x.shape[1], device=x.device)
    return seqlens[:, None] + (steps if moves else torch.zeros_like(steps))
