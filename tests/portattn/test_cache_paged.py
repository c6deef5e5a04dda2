"""Paged caches: who owns which page, and a caller's own pages."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import portattn
from portattn import PagedKVCache
from portattn.errors import ArgumentError, CacheFullError, DtypeError, ShapeError

PAGES, SIZE, BATCH = 11, 4, 3


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def filled(tokens: int, pages: int = 8, batch: int = 2) -> PagedKVCache:
    cache = PagedKVCache(pages, SIZE, 1, 4, max_batch=batch)
    new = torch.randn(batch, tokens, 1, 4)
    cache.append(new, -new)
    return cache


def held(cache: PagedKVCache, b: int) -> Tensor:
    view = cache.view()
    assert view.block_table is not None
    pages, length = view.block_table[b].long(), int(view.seqused_k[b])
    k, v = (store[pages].flatten(0, 1)[:length] for store in (view.k, view.v))
    assert torch.equal(v, -k)
    return k


operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5)),
        st.tuples(st.just("reserve"), st.tuples(st.integers(0, 2), st.integers(0, 9))),
        st.tuples(st.just("release"), st.integers(0, 2)),
        st.tuples(st.just("crop"), st.integers(0, 14)),
        st.tuples(st.just("reorder"), st.tuples(*[st.integers(0, 2)] * 3)),
    ),
    max_size=14,
)


@settings(max_examples=200, deadline=None)
@given(operations)
def test_every_page_is_free_or_owned(given_operations: list[tuple[str, Any]]) -> None:
    """And a page that two sequences own is never written to, whatever happened before."""
    cache = PagedKVCache(PAGES, SIZE, 1, 4, max_batch=BATCH)
    model: list[list[Tensor]] = [[] for _ in range(BATCH)]
    for name, argument in given_operations:
        free = cache.free_pages
        try:
            if name == "append":
                new = torch.randn(BATCH, argument, 1, 4)
                cache.append(new, -new)
                model = [row + list(new[b]) for b, row in enumerate(model)]
            elif name == "reserve":
                cache.reserve(*argument)
            elif name == "release":
                cache.release(argument)
                model[argument] = []
            elif name == "crop":
                cache.crop(argument)
                model = [row[:argument] for row in model]
            else:
                cache.reorder(torch.tensor(argument))
                model = [list(model[source]) for source in argument]
        except CacheFullError as error:
            assert error.needed > error.available == cache.free_pages == free
        owned = Counter(page for pages in cache._pages for page in pages)
        assert not set(owned) & set(cache._free)
        assert len(owned) + len(set(cache._free)) == PAGES == len(owned) + cache.free_pages
        assert cache._references == [owned[page] for page in range(PAGES)]
        assert cache.used_bytes == len(owned) * cache.memory_bytes // PAGES
        assert cache.view().max_seqlen_k == max(map(len, model))
        for b, row in enumerate(model):
            assert torch.equal(held(cache, b), torch.stack(row) if row else torch.zeros(0, 1, 4))


def test_beams_share_pages_until_they_differ() -> None:
    cache = filled(6, batch=3)
    assert cache.free_pages == 2
    cache.reorder(torch.tensor([1, 1, 1]))
    assert cache.free_pages == 6
    new = torch.randn(3, 1, 1, 4)
    cache.append(new, -new)
    # Two of three copy the half-full page; the full one stays shared.
    assert cache.free_pages == 4
    table = cache.view().block_table
    assert len(set(table[:, 0].tolist())) == 1 and len(set(table[:, 1].tolist())) == 3
    before = held(cache, 0)[:6]
    assert all(torch.equal(held(cache, b), torch.cat((before, new[b]))) for b in range(3))


def test_the_last_beam_keeps_the_shared_page() -> None:
    cache, new = filled(3, pages=2), torch.randn(2, 1, 1, 4)
    cache.reorder(torch.tensor([0, 0]))
    cache.append(new, -new)
    assert cache.free_pages == 0 and torch.equal(held(cache, 0)[:3], held(cache, 1)[:3])


def test_reserved_pages_are_there_when_tokens_come() -> None:
    cache = filled(3, pages=4)
    cache.reserve(0, 5)
    assert cache.free_pages == 1
    with pytest.raises(CacheFullError, match="KV cache is full: 2 pages needed, 1 available"):
        cache.reserve(1, 9)
    new = torch.randn(2, 5, 1, 4)
    cache.append(new, new)
    assert cache.free_pages == 0 and cache.seqlens.tolist() == [8, 8]
    with pytest.raises(CacheFullError):
        cache.append(new[:, :1], new[:, :1])
    cache.release(1)
    assert cache.free_pages == 2 and cache.seqlens.tolist() == [8, 0]


def test_the_table_changes_shape_seldom() -> None:
    """Widths are powers of two, and a step within a page sends no new table."""
    cache, widths = PagedKVCache(64, SIZE, 1, 4, max_batch=1), set()
    new = torch.randn(1, 1, 1, 4)
    for length in range(1, 101):
        table = cache.view().block_table
        cache.append(new, new)
        assert (cache.view().block_table is table) == (length % SIZE != 1)
        widths.add(cache.block_table.shape[1])
    assert sorted(widths) == [1, 2, 4, 8, 16, 32]


def test_nothing_waits_for_the_device() -> None:
    """On the meta device reading a value fails; on an accelerator it would wait."""
    cache = PagedKVCache(8, SIZE, 1, 4, max_batch=2, device="meta")
    new = torch.empty(2, 3, 1, 4, device="meta")
    cache.append(new, new)
    cache.reorder(torch.tensor([0, 0]))
    cache.append(new, new)
    assert cache.view().max_seqlen_k == 6 and cache.free_pages == 4
    table = torch.zeros(2, 3, dtype=torch.int32, device="meta")
    lengths = numbers(5, 7).to("meta")
    unknown = PagedKVCache.from_tensors(cache.k, cache.v, table, lengths)
    unknown.append(new, new)
    assert unknown.view().max_seqlen_k == 12
    known = PagedKVCache.from_tensors(cache.k, cache.v, table, lengths, longest=7)
    known.append(new, new)
    assert known.view().max_seqlen_k == 10
    with pytest.raises(CacheFullError):
        known.append(new, new)


def test_pages_of_a_caller() -> None:
    pages = torch.randn(5, SIZE, 2, 8)
    values, before = -pages, pages.clone()
    # Unused entries may hold anything.
    table, lengths = torch.tensor([[3, 1, -1], [0, 99, 99]], dtype=torch.int32), numbers(5, 2)
    cache = PagedKVCache.from_tensors(pages, values, table, lengths)
    assert cache.used_bytes == 7 * 2 * 16 * 4
    new = torch.randn(2, 2, 2, 8)
    out = portattn.attention_with_kvcache(new, cache, new, -new, causal=True)
    assert lengths.tolist() == [5, 2] and cache.seqlens.tolist() == [7, 4]
    assert torch.equal(pages[1, 1:3], new[0]) and torch.equal(pages[0, 2:4], new[1])
    changed = (pages != before).flatten(2).any(-1)
    assert changed.nonzero().tolist() == [[0, 2], [0, 3], [1, 1], [1, 2]]
    first = pages[[3, 1]].flatten(0, 1)[None, :7]
    torch.testing.assert_close(out[:1], portattn.attention(new[:1], first, -first, causal=True))
    cache.crop(3)
    assert cache.view().seqused_k.tolist() == [3, 3] and cache.view().max_seqlen_k == 3
    cache.reset()
    assert cache.seqlens.tolist() == [0, 0] and lengths.tolist() == [5, 2]
    for name, call in (
        ("reserve", lambda: cache.reserve(0, 1)),
        ("release", lambda: cache.release(0)),
        ("reorder", lambda: cache.reorder(torch.tensor([0, 1]))),
        ("free_pages", lambda: cache.free_pages),
    ):
        with pytest.raises(ArgumentError, match=f"{name}: needs a cache that owns its pages"):
            call()


@pytest.mark.parametrize(
    ("kind", "argument", "changes"),
    [
        (ShapeError, "v_pages", {"v_pages": torch.zeros(4, 5, 2, 8)}),
        (DtypeError, "v_pages", {"v_pages": torch.zeros(4, SIZE, 2, 8).half()}),
        (ShapeError, "block_table", {"block_table": torch.zeros(3, 2, dtype=torch.int32)}),
        (ShapeError, "block_table", {"block_table": torch.zeros(2, dtype=torch.int32)}),
        (DtypeError, "block_table", {"block_table": torch.zeros(2, 2, dtype=torch.int64)}),
        (ShapeError, "cache_seqlens", {"cache_seqlens": torch.tensor(1, dtype=torch.int32)}),
        (ArgumentError, "cache_seqlens", {"cache_seqlens": numbers(9, 0)}),
    ],
)
def test_what_does_not_belong_together_is_named(
    kind: type[ArgumentError], argument: str, changes: dict[str, Tensor]
) -> None:
    tensors = {"k_pages": torch.zeros(4, SIZE, 2, 8), "v_pages": torch.zeros(4, SIZE, 2, 8)}
    lengths = {"block_table": torch.zeros(2, 2, dtype=torch.int32), "cache_seqlens": numbers(1, 2)}
    with pytest.raises(ArgumentError) as caught:
        PagedKVCache.from_tensors(**{**tensors, **lengths, **changes})
    assert type(caught.value) is kind and caught.value.argument == argument


@pytest.mark.parametrize("page", [-1, 4])
def test_a_page_out_of_range_is_refused_before_anything_is_written(page: int) -> None:
    pages, new = torch.zeros(4, SIZE, 2, 8), torch.ones(2, 1, 2, 8)
    table = torch.tensor([[0, 1], [2, page]], dtype=torch.int32)
    cache = PagedKVCache.from_tensors(pages, pages, table, numbers(4, 4))
    with pytest.raises(ArgumentError, match="block_table: must hold pages from 0 to 3"):
        cache.append(new, new)
    assert not pages.any() and cache.seqlens.tolist() == [4, 4]
