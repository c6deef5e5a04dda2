"""Checks of lengths and page tables by value, where the host can read them without waiting."""

from __future__ import annotations

import itertools

from torch import Tensor

from portattn.arguments import Options
from portattn.dispatch.backend import AttentionTensors
from portattn.errors import ArgumentError


def check_extents(tensors: AttentionTensors, options: Options) -> None:
    """Raise ArgumentError for cu_seqlens, lengths or page tables that point outside the tensors.

    They are read, so they should lie where that is free.
    """
    if tensors.cu_seqlens_q is not None:
        assert tensors.cu_seqlens_k is not None
        _check_cumulative("q", tensors.cu_seqlens_q, tensors.q.shape[0], options.max_seqlen_q)
        table, k = tensors.block_table, tensors.k
        total_k = k.shape[0] if table is None else table.numel() * k.shape[1]
        counts = _check_cumulative("k", tensors.cu_seqlens_k, total_k, options.max_seqlen_k)
    elif tensors.seqused_k is not None:
        counts = tensors.seqused_k.tolist()
        _check_cache(tensors, counts)
    else:
        return
    if tensors.block_table is not None:
        _check_block_table(tensors.block_table, counts, tensors.k.shape[0], tensors.k.shape[1])


def _check_cumulative(which: str, cu_seqlens: Tensor, total: int, longest: int) -> list[int]:
    """Check one cu_seqlens list; return the lengths it stands for."""
    name = f"cu_seqlens_{which}"
    ends = cu_seqlens.tolist()
    if ends[0] != 0:
        raise ArgumentError(name, "must start at 0", ends[0])
    lengths = [end - start for start, end in itertools.pairwise(ends)]
    if lengths and min(lengths) < 0:
        raise ArgumentError(name, "must not decrease", ends)
    if ends[-1] > total:
        raise ArgumentError(name, f"must end at or before the {total} tokens of {which}", ends[-1])
    if lengths and max(lengths) > longest:
        raise ArgumentError(
            f"max_seqlen_{which}", f"must be at least the longest length, {max(lengths)}", longest
        )
    return lengths


def _check_cache(tensors: AttentionTensors, counts: list[int]) -> None:
    table, k = tensors.block_table, tensors.k
    capacity = k.shape[1] if table is None else table.shape[1] * k.shape[1]
    if counts and not 0 <= min(counts) <= max(counts) <= capacity:
        raise ArgumentError(
            "cache_seqlens", f"must lie in 0 .. {capacity}, the cache's room", counts
        )
    if tensors.cache_batch_idx is not None:
        rows, batch = tensors.cache_batch_idx.tolist(), tensors.k.shape[0]
        if rows and not 0 <= min(rows) <= max(rows) < batch:
            raise ArgumentError("cache_batch_idx", f"must lie in 0 .. {batch - 1}", rows)
    if tensors.leftpad_k is not None:
        pads = tensors.leftpad_k.tolist()
        if any(not 0 <= pad <= count for pad, count in zip(pads, counts, strict=True)):
            raise ArgumentError("leftpad_k", "must lie between 0 and the sequence's length", pads)


def _check_block_table(table: Tensor, counts: list[int], pages: int, page_size: int) -> None:
    """Only entries that hold a used key must be valid; the rest may be anything."""
    for row, count in zip(table.tolist(), counts, strict=True):
        used = row[: -(-count // page_size)]
        if len(used) * page_size < count:
            raise ArgumentError(
                "block_table", f"must have room for {count} keys", f"{len(row)} pages"
            )
        if used and not 0 <= min(used) <= max(used) < pages:
            raise ArgumentError("block_table", f"must hold pages from 0 to {pages - 1}", used)
