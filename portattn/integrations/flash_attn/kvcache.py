"""flash_attn_with_kvcache of flash-attn 2.8: rotate, append in place, attend."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.attention import attention_with_kvcache
from portattn.cache import ContiguousKVCache, PagedKVCache
from portattn.errors import ArgumentError, ShapeError
from portattn.integrations.flash_attn.interface import Window, as_window
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
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend to a cache that k and v, where given, are first written into; no gradient.

    q [B, Sq, H, D]; k_cache [Bc, S, Hkv, D] and v_cache [Bc, S, Hkv, Dv], or pages
    [P, page_size, Hkv, D(v)] with block_table [B, pages] int32. cache_seqlens, [B] int32 or one
    number, counts the tokens there before the call (None: the cache is full); the caller advances
    it. Sequence b is row cache_batch_idx[b], or row b, and begins at cache_leftpad[b].

    rotary_cos and rotary_sin [positions, rotary_dim / 2] rotate k from position cache_seqlens on
    (left padding counts), q too where causal or windowed, every row of q at cache_seqlens
    otherwise. num_splits is a hint that changes no result.

    Returns out [B, Sq, H, Dv], with return_softmax_lse also lse [B, H, Sq]. Raises ArgumentError
    and its kinds for arguments that don't fit, CacheFullError when k and v have no room. On an
    accelerator the numbers in cache_seqlens, cache_batch_idx, cache_leftpad and block_table are
    taken as they are: to read them would make the host wait.
    """
    window = as_window(window_size)
    _check_arguments(q, k, v, rotary_cos, rotary_sin, cache_seqlens, num_splits)
    cache = _wrap(q, k_cache, v_cache, cache_seqlens, cache_batch_idx, cache_leftpad, block_table)
    if rotary_cos is not None and rotary_sin is not None and k is not None:
        tables = (rotary_cos, rotary_sin)
        moves = causal or window != (-1, -1)
        q = _rotated(q, tables, rotary_interleaved, cache.seqlens, moves)
        k = _rotated(k, tables, rotary_interleaved, cache.seqlens, True)
    with torch.no_grad():
        return attention_with_kvcache(
            q,
            cache,
            k,
            v,
            causal=causal,
            softmax_scale=softmax_scale,
            window_size=window,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            return_lse=return_softmax_lse,
        )


def _check_arguments(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    rotary_cos: Tensor | None,
    rotary_sin: Tensor | None,
    cache_seqlens: int | Tensor | None,
    num_splits: int,
) -> None:
    if q.dim() != 4:
        raise ShapeError("q", "must be [B, Sq, H, D]", tuple(q.shape))
    if num_splits < 0:
        raise ArgumentError("num_splits", "must be 0 (chosen) or positive", num_splits)
    if (k is None) != (v is None):
        raise ArgumentError("v" if v is None else "k", "must be given: k and v go together")
    if k is not None and cache_seqlens is None:
        raise ArgumentError("cache_seqlens", "must be given with k and v")
    if (rotary_cos is None) != (rotary_sin is None):
        missing = "rotary_sin" if rotary_sin is None else "rotary_cos"
        raise ArgumentError(missing, "must be given: rotary_cos and rotary_sin go together")
    if rotary_cos is not None and k is None:
        raise ArgumentError("rotary_cos", "needs k and v to be given")


def _wrap(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: int | Tensor | None,
    cache_batch_idx: Tensor | None,
    cache_leftpad: Tensor | None,
    block_table: Tensor | None,
) -> ContiguousKVCache | PagedKVCache:
    """The caller's tensors as a cache that fits q."""
    if block_table is not None and (cache_leftpad is not None or cache_batch_idx is not None):
        raise ArgumentError("block_table", "can't be combined with cache_leftpad, cache_batch_idx")
    longest = None
    if k_cache.dim() != 4:
        raise ShapeError("k_cache", "must be [Bc, S, Hkv, D] or pages", tuple(k_cache.shape))
    if not isinstance(cache_seqlens, Tensor):
        room = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
        longest = room if cache_seqlens is None else int(cache_seqlens)
        if not 0 <= longest <= room:
            raise ArgumentError("cache_seqlens", f"must lie in 0 .. {room}", longest)
        cache_seqlens = torch.full((q.shape[0],), longest, dtype=torch.int32, device=k_cache.device)
    cache: ContiguousKVCache | PagedKVCache
    if block_table is None:
        cache = ContiguousKVCache.from_tensors(
            k_cache, v_cache, cache_seqlens, cache_batch_idx, cache_leftpad, longest=longest
        )
    else:
        cache = PagedKVCache.from_tensors(
            k_cache, v_cache, block_table, cache_seqlens, longest=longest
        )
    # Before anything is written.
    if q.shape[0] != cache.batch or q.shape[3] != k_cache.shape[3]:
        expected = f"must be [{cache.batch}, Sq, H, {k_cache.shape[3]}] to fit the cache"
        raise ShapeError("q", expected, tuple(q.shape))
    return cache


def _rotated(
    x: Tensor, tables: tuple[Tensor, Tensor], interleaved: bool, seqlens: Tensor, moves: bool
) -> Tensor:
    """x rotated to the positions after seqlens, or all of it to the first of them."""
    steps = torch.arange(x.shape[1], device=x.device)
    positions = seqlens[:, None] + (steps if moves else torch.zeros_like(steps))
    return rotate(x, *tables, interleaved, positions, ("rotary_cos", "rotary_sin"))
