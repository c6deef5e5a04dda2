"""Contiguous caches over their own memory and over a caller's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import portattn
from portattn import ContiguousKVCache
from portattn.errors import ArgumentError, CacheFullError, DeviceError, DtypeError, ShapeError

ROWS, ROOM = 4, 10


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


borrowed_operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 4)),
        st.tuples(st.just("crop"), st.integers(0, ROOM)),
        st.tuples(
            st.just("reorder"), st.permutations(range(3)) | st.tuples(*[st.integers(0, 2)] * 3)
        ),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.permutations(range(ROWS)),
    st.tuples(*[st.integers(0, ROOM)] * 3),
    borrowed_operations,
    st.integers(0, 2**31),
)
def test_rows_of_a_caller_hold_the_right_tokens(
    rows: list[int], lengths: tuple[int, ...], operations: list[tuple[str, Any]], seed: int
) -> None:
    """Three sequences of their own lengths in rows of any order, against lists of tokens."""
    generator = torch.Generator().manual_seed(seed)
    k_cache = torch.randn(ROWS, ROOM, 2, 4, generator=generator)
    v_cache = -k_cache
    spare = k_cache[rows[3]].clone()
    given_lengths = numbers(*lengths)
    cache = ContiguousKVCache.from_tensors(k_cache, v_cache, given_lengths, numbers(*rows[:3]))
    model = [
        list(k_cache[row, :length].clone()) for row, length in zip(rows, lengths, strict=False)
    ]
    for name, argument in operations:
        if name == "append":
            new = torch.randn(3, argument, 2, 4, generator=generator)
            if max(map(len, model)) + argument > ROOM:
                before = k_cache.clone()
                with pytest.raises(CacheFullError):
                    cache.append(new, -new)
                assert torch.equal(k_cache, before)
                continue
            cache.append(new, -new)
            model = [row + list(new[b]) for b, row in enumerate(model)]
        elif name == "crop":
            cache.crop(argument)
            model = [row[:argument] for row in model]
        elif name == "reorder":
            cache.reorder(torch.tensor(argument))
            model = [list(model[source]) for source in argument]
        else:
            cache.reset()
            model = [[], [], []]
        assert cache.seqlens.tolist() == [len(row) for row in model]
        assert cache.view().max_seqlen_k == max(map(len, model))
        for b, row in enumerate(model):
            held = k_cache[rows[b], : len(row)]
            assert torch.equal(held, torch.stack(row) if row else held)
            assert torch.equal(v_cache[rows[b], : len(row)], -held)
    assert given_lengths.tolist() == list(lengths)
    assert torch.equal(k_cache[rows[3]], spare)


def test_left_padding_survives_what_moves_tokens() -> None:
    k_cache, new = torch.randn(2, 8, 2, 4), torch.randn(2, 1, 2, 4)
    cache = ContiguousKVCache.from_tensors(
        k_cache, k_cache.clone(), numbers(3, 5), leftpad_k=numbers(2, 1)
    )
    cache.reorder(torch.tensor([1, 1]))
    assert cache.view().leftpad_k.tolist() == [1, 1]
    cache.append(new, new)
    assert cache.view().seqused_k.tolist() == [6, 6]
    out = portattn.attention_with_kvcache(new, cache)
    want = portattn.attention(new, cache.k[:, 1:6], cache.v[:, 1:6])
    torch.testing.assert_close(out, want)
    cache.crop(0)
    assert not portattn.attention_with_kvcache(new, cache).any()


@pytest.mark.parametrize("known", [None, 5])
def test_nothing_waits_for_the_device(known: int | None) -> None:
    """On the meta device reading a value fails; on an accelerator it would wait."""
    k_cache = torch.empty(2, 8, 2, 4, device="meta")
    lengths, rows = numbers(3, 5).to("meta"), numbers(1, 0).to("meta")
    cache = ContiguousKVCache.from_tensors(k_cache, k_cache, lengths, rows, lengths, longest=known)
    new = torch.empty(2, 2, 2, 4, device="meta")
    cache.append(new, new)
    assert cache.view().max_seqlen_k == (8 if known is None else 7)
    if known is None:
        cache.append(new, new)
        assert cache.view().max_seqlen_k == 8
    else:
        with pytest.raises(CacheFullError, match="2 tokens per sequence needed, 1 available"):
            cache.append(new, new)
    cache.crop(4)
    cache.reorder(torch.tensor([1, 0]))
    assert cache.view().max_seqlen_k == 4
    cache.reset()
    assert cache.view().max_seqlen_k == 0


def test_an_appended_gradient_is_let_go() -> None:
    cache, new = ContiguousKVCache(1, 4, 1, 4), torch.randn(1, 1, 1, 4, requires_grad=True)
    cache.append(new, new)
    assert not cache.k.requires_grad and not cache.v.requires_grad


def test_a_step_compiles_once() -> None:
    torch.compiler.reset()
    caches = ContiguousKVCache(2, 16, 2, 8), ContiguousKVCache(2, 16, 2, 8)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(q: Tensor) -> Any:
        return portattn.attention_with_kvcache(q, caches[0], q, q, causal=True)

    for _ in range(12):
        q = torch.randn(2, 1, 2, 8)
        want = portattn.attention_with_kvcache(q, caches[1], q, q, causal=True)
        torch.testing.assert_close(step(q), want)
    assert torch.equal(caches[0].k, caches[1].k)
    assert caches[0].seqlens.tolist() == [12, 12]


@pytest.mark.parametrize(
    ("kind", "argument", "changes"),
    [
        (ShapeError, "k_cache", {"k_cache": torch.zeros(2, 8, 4)}),
        (ShapeError, "v_cache", {"v_cache": torch.zeros(2, 7, 2, 4)}),
        (DtypeError, "v_cache", {"v_cache": torch.zeros(2, 8, 2, 4).half()}),
        (DeviceError, "v_cache", {"v_cache": torch.zeros(2, 8, 2, 4, device="meta")}),
        (DtypeError, "cache_seqlens", {"cache_seqlens": torch.tensor([1, 2])}),
        (ShapeError, "cache_seqlens", {"cache_seqlens": numbers(1, 2)[None]}),
        (DeviceError, "cache_seqlens", {"cache_seqlens": numbers(1, 2).to("meta")}),
        (ArgumentError, "cache_seqlens", {"cache_seqlens": numbers(-1, 2)}),
        (ArgumentError, "cache_seqlens", {"cache_seqlens": numbers(1, 9)}),
        (ArgumentError, "cache_batch_idx", {"cache_seqlens": numbers(1, 2, 3)}),
        (ArgumentError, "cache_batch_idx", {"cache_batch_idx": numbers(0, 2)}),
        (ArgumentError, "cache_batch_idx", {"cache_batch_idx": numbers(-1, 0)}),
        (ShapeError, "cache_batch_idx", {"cache_batch_idx": numbers(0)}),
        (ArgumentError, "leftpad_k", {"leftpad_k": numbers(2, 0)}),
        (ArgumentError, "leftpad_k", {"leftpad_k": numbers(0, -1)}),
        (DtypeError, "leftpad_k", {"leftpad_k": torch.zeros(2)}),
    ],
)
def test_what_does_not_belong_together_is_named(
    kind: type[ArgumentError], argument: str, changes: dict[str, Tensor]
) -> None:
    tensors = {"k_cache": torch.zeros(2, 8, 2, 4), "v_cache": torch.zeros(2, 8, 2, 4)}
    with pytest.raises(ArgumentError) as caught:
        ContiguousKVCache.from_tensors(**{**tensors, "cache_seqlens": numbers(1, 2), **changes})
    assert type(caught.value) is kind and caught.value.argument == argument
