"""KV caches against lists of tokens, and attention through them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import portattn
from portattn import ContiguousKVCache, PagedKVCache
from portattn.errors import (
    ArgumentError,
    CacheFullError,
    DeviceError,
    DtypeError,
    PortattnError,
    ShapeError,
)
from portattn.explain import record

Model = list[list[Tensor]]


def tokens(batch: int, count: int) -> Tensor:
    return torch.randn(batch, count, 2, 4)


def held(cache: ContiguousKVCache | PagedKVCache, b: int) -> Tensor:
    view = cache.view()
    length = int(view.seqused_k[b])
    if view.block_table is None:
        return view.k[b, :length]
    return view.k[view.block_table[b].long()].flatten(0, 1)[:length]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5)),
        st.tuples(st.just("crop"), st.integers(0, 20)),
        st.tuples(st.just("reorder"), st.lists(st.integers(0, 2), min_size=3, max_size=3)),
        st.tuples(st.just("release"), st.integers(0, 2)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=120, deadline=None)
@given(OPERATIONS, st.booleans())
def test_any_sequence_of_operations_holds_the_right_tokens(
    operations: list[tuple[str, object]], paged: bool
) -> None:
    cache: ContiguousKVCache | PagedKVCache
    cache = PagedKVCache(13, 4, 2, 4, max_batch=3) if paged else ContiguousKVCache(3, 16, 2, 4)
    model: Model = [[], [], []]
    for name, argument in operations:
        if name == "append":
            new = tokens(3, int(argument))  # type: ignore[call-overload]
            before = [held(cache, b).clone() for b in range(3)]
            try:
                cache.append(new, new)
            except CacheFullError as error:
                assert error.needed > error.available
                assert all(torch.equal(held(cache, b), before[b]) for b in range(3))
                continue
            for b in range(3):
                model[b] += list(new[b])
        elif name == "crop":
            cache.crop(int(argument))  # type: ignore[call-overload]
            model = [row[: int(argument)] for row in model]  # type: ignore[call-overload]
        elif name == "reorder":
            cache.reorder(torch.tensor(argument))
            model = [list(model[source]) for source in argument]  # type: ignore[attr-defined]
        elif name == "reset":
            cache.reset()
            model = [[], [], []]
        elif isinstance(cache, PagedKVCache):
            cache.release(int(argument))  # type: ignore[call-overload]
            model[int(argument)] = []  # type: ignore[call-overload]
        for b in range(3):
            want = torch.stack(model[b]) if model[b] else torch.zeros(0, 2, 4)
            assert torch.equal(held(cache, b), want)
        assert int(cache.seqlens.max()) <= cache.view().max_seqlen_k
    if isinstance(cache, PagedKVCache):
        cache.reset()
        assert cache.free_pages == 13 and sorted(cache._free) == list(range(13))
        assert cache.used_bytes == 0


def test_memory_is_reported() -> None:
    flat = ContiguousKVCache(2, 10, 2, 4, head_dim_v=6, dtype=torch.bfloat16)
    assert flat.memory_bytes == 2 * 10 * 2 * (4 + 6) * 2 and flat.used_bytes == 0
    flat.append(torch.zeros(2, 3, 2, 4).bfloat16(), torch.zeros(2, 3, 2, 6).bfloat16())
    assert flat.used_bytes == 2 * 3 * 2 * 10 * 2
    paged = PagedKVCache(5, 4, 2, 4, max_batch=2)
    assert paged.memory_bytes == 5 * 4 * 2 * 8 * 4
    paged.reserve(0, 5)
    assert paged.free_pages == 3 and paged.used_bytes == paged.memory_bytes * 2 // 5


def test_attention_appends_then_attends() -> None:
    flat, paged = ContiguousKVCache(2, 12, 2, 8), PagedKVCache(8, 4, 2, 8, max_batch=2)
    keys, values = torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    q = torch.randn(2, 9, 4, 8)
    whole = portattn.attention(q, keys, values, causal=True)
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        for cache in (flat, paged):
            out = portattn.attention_with_kvcache(
                q[:, start:stop], cache, keys[:, start:stop], values[:, start:stop], causal=True
            )
            torch.testing.assert_close(out, whole[:, start:stop])


def test_a_call_that_cannot_run_leaves_the_cache_alone() -> None:
    cache = ContiguousKVCache(2, 12, 2, 8)
    new = torch.randn(2, 3, 2, 8)
    for wrong in (
        {"q": torch.randn(2, 1, 3, 8)},
        {"alibi_slopes": torch.rand(3)},
        {"bias": torch.zeros(2, 4, 1, 2)},
        {"softcap": -1.0},
        {"backend": "no such"},
    ):
        arguments = {"q": torch.randn(2, 1, 4, 8)} | wrong
        with pytest.raises(PortattnError):
            portattn.attention_with_kvcache(cache=cache, k=new, v=new, **arguments)
        assert not cache.seqlens.any() and not cache.k.any()


def test_steps_share_a_decision() -> None:
    cache = ContiguousKVCache(1, 300, 1, 4)
    new = torch.randn(1, 1, 1, 4)
    with record() as counts:
        for _ in range(256):
            portattn.attention_with_kvcache(new, cache, new, new)
    assert sum(counts.values()) == 256 and len(counts) <= 9


def test_no_growth_over_many_steps() -> None:
    cache = ContiguousKVCache(1, 1100, 1, 4)
    new = torch.randn(1, 1, 1, 4)
    for _ in range(1000):
        portattn.attention_with_kvcache(new, cache, new, new)
    assert int(cache.seqlens) == 1000


def test_bad_arguments_are_named() -> None:
    cache = ContiguousKVCache(2, 4, 2, 4)
    new = torch.zeros(2, 1, 2, 4)
    for kind, argument, k, v in (
        (ShapeError, "k", new[:1], new),
        (ShapeError, "v", new, new[..., :3]),
        (ShapeError, "v", new, torch.zeros(2, 2, 2, 4)),
        (DtypeError, "k", new.half(), new),
        (DeviceError, "v", new, new.to("meta")),
    ):
        with pytest.raises(kind) as caught:
            cache.append(k, v)
        assert caught.value.argument == argument
    for argument, call in (
        ("max_length", lambda: cache.crop(-1)),
        ("beam_idx", lambda: cache.reorder(torch.tensor([0, 2]))),
        ("kv_heads", lambda: ContiguousKVCache(2, 4, 0, 4)),
        ("page_size", lambda: PagedKVCache(2, 0, 1, 4, max_batch=1)),
        ("index", lambda: PagedKVCache(2, 4, 1, 4, max_batch=1).release(1)),
        ("v", lambda: portattn.attention_with_kvcache(new, cache, new)),
    ):
        with pytest.raises(ArgumentError) as caught:
            call()
        assert caught.value.argument == argument
    borrowed = PagedKVCache.from_tensors(
        torch.zeros(2, 4, 1, 4),
        torch.zeros(2, 4, 1, 4),
        torch.zeros(1, 2, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
    )
    with pytest.raises(ArgumentError, match="owns its pages"):
        borrowed.reserve(0, 1)
