"""What must hold for every input, tried on random problems."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import portattn
from portattn import ContiguousKVCache, PagedKVCache

# Examples of each property: 200 here make more than a thousand together; `make nightly` has more.
EXAMPLES = 200
NIGHTLY = int(os.environ.get("PORTATTN_TEST_EXAMPLES", "10000"))

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(0, 24)
heads = st.sampled_from(((1, 1), (2, 2), (3, 1), (4, 2), (8, 2)))
dims = st.sampled_from((1, 4, 7, 16))


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Features that look at positions or scores, at random."""
    return {
        "causal": draw(st.booleans()),
        "window_size": (draw(st.integers(-1, 12)), draw(st.integers(-1, 12))),
        "softcap": draw(st.sampled_from((0.0, 1.5))),
        "softmax_scale": draw(st.sampled_from((None, 0.3, 3.0))),
    }


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def splits(
    seed: int, queries: int, keys: int, cut: float, shape: tuple[int, int], dim: int
) -> None:
    """Keys split anywhere, attended apart and merged, are the whole; merging is associative."""
    torch.manual_seed(seed)
    q = random(2, queries, shape[0], dim)
    k, v = random(2, keys, shape[1], dim), random(2, keys, shape[1], dim)
    whole, lse = portattn.attention(q, k, v, return_lse=True)
    at = round(cut * keys)
    mid = at // 2
    parts = [
        portattn.attention(q, k[:, a:b], v[:, a:b], return_lse=True)
        for a, b in ((0, mid), (mid, at), (at, keys))
    ]
    left = portattn.merge_states(*portattn.merge_states(*parts[0], *parts[1]), *parts[2])
    right = portattn.merge_states(*parts[0], *portattn.merge_states(*parts[1], *parts[2]))
    for merged in (left, right):
        same(merged[0], whole)
        same(merged[1], lse)


def permutations(seed: int, queries: int, keys: int, shape: tuple[int, int], dim: int) -> None:
    """Without masks the order of the keys doesn't matter."""
    torch.manual_seed(seed)
    q = random(1, queries, shape[0], dim)
    k, v = random(1, keys, shape[1], dim), random(1, keys, shape[1], dim)
    order = torch.randperm(keys)
    got = portattn.attention(q, k[:, order], v[:, order], return_lse=True)
    for mine, theirs in zip(got, portattn.attention(q, k, v, return_lse=True), strict=True):
        same(mine, theirs)


def varlen(
    seed: int,
    sizes: list[tuple[int, int]],
    shape: tuple[int, int],
    dim: int,
    given_options: dict[str, Any],
) -> None:
    """Packed sequences are a loop over them."""
    torch.manual_seed(seed)
    total_q, total_k = (sum(n) for n in zip(*sizes, strict=True))
    q = random(total_q, shape[0], dim)
    k, v = random(total_k, shape[1], dim), random(total_k, shape[1], dim)
    cu_q, cu_k = (
        torch.tensor([0, *n], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        for n in zip(*sizes, strict=True)
    )
    longest = [max(n) for n in zip(*sizes, strict=True)]
    out, lse = portattn.attention_varlen(
        q, k, v, cu_q, cu_k, *longest, return_lse=True, **given_options
    )
    for b in range(len(sizes)):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        one, one_lse = portattn.attention(
            q[None, rows], k[None, keys], v[None, keys], return_lse=True, **given_options
        )
        same(out[rows], one[0])
        same(lse[:, rows], one_lse[0])


def pages(
    seed: int,
    counts: list[int],
    queries: int,
    page_size: int,
    shape: tuple[int, int],
    given_options: dict[str, Any],
) -> None:
    """A cache in shuffled pages is the contiguous one, and both are dense attention."""
    torch.manual_seed(seed)
    batch, room = len(counts), max(counts) + queries
    per_row = -(-room // page_size)
    table = torch.randperm(batch * per_row).view(batch, per_row).int()
    flat_k, flat_v = (random(batch, per_row * page_size, shape[1], 4) for _ in "kv")
    page_k, page_v = (torch.empty(batch * per_row, page_size, shape[1], 4).double() for _ in "kv")
    for paged, flat in ((page_k, flat_k), (page_v, flat_v)):
        paged[table.flatten().long()] = flat.unflatten(1, (per_row, page_size)).flatten(0, 1)
    seqlens = torch.tensor(counts, dtype=torch.int32)
    q, k, v = (random(batch, queries, n, 4) for n in (shape[0], shape[1], shape[1]))
    flat = ContiguousKVCache.from_tensors(flat_k, flat_v, seqlens)
    paged = PagedKVCache.from_tensors(page_k, page_v, table, seqlens)
    want, want_lse = portattn.attention_with_kvcache(
        q, flat, k, v, return_lse=True, **given_options
    )
    got, lse = portattn.attention_with_kvcache(q, paged, k, v, return_lse=True, **given_options)
    same(got, want)
    same(lse, want_lse)
    for b, count in enumerate(counts):
        keys, values = (x[b : b + 1, : count + queries] for x in (flat_k, flat_v))
        same(portattn.attention(q[b : b + 1], keys, values, **given_options)[0], want[b])


def groups(
    seed: int,
    queries: int,
    keys: int,
    shape: tuple[int, int],
    dim: int,
    given_options: dict[str, Any],
) -> None:
    """Grouped heads are repeated ones, forward and backward."""
    torch.manual_seed(seed)
    q = random(1, queries, shape[0], dim).requires_grad_()
    k, v = (random(1, keys, shape[1], dim).requires_grad_() for _ in "kv")
    many = [x.repeat_interleave(shape[0] // shape[1], 2) for x in (k, v)]
    out = portattn.attention(q, k, v, **given_options)
    want = portattn.attention(q, *many, **given_options)
    same(out, want)
    grad = torch.randn_like(out)
    for mine, theirs in zip(
        torch.autograd.grad((out * grad).sum(), (q, k, v)),
        torch.autograd.grad((want * grad).sum(), (q, k, v)),
        strict=True,
    ):
        same(mine, theirs)


def formula(seed: int, queries: int, keys: int, dim: int, given_options: dict[str, Any]) -> None:
    """Any backend gives softmax(scores) v, with the scores in their defined order."""
    torch.manual_seed(seed)
    q, k, v = random(1, queries, 2, dim), random(1, keys, 2, dim), random(1, keys, 2, dim)
    scale = given_options["softmax_scale"] or dim**-0.5
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if cap := given_options["softcap"]:
        s = cap * torch.tanh(s / cap)
    distance = torch.arange(keys) - torch.arange(queries)[:, None] - (keys - queries)
    left, right = given_options["window_size"]
    seen = torch.ones(queries, keys, dtype=torch.bool)
    seen &= (distance <= 0) if given_options["causal"] else seen
    seen &= (distance >= -left) if left >= 0 else seen
    seen &= (distance <= right) if right >= 0 else seen
    s = s.masked_fill(~seen, -math.inf)
    want = torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1).nan_to_num(), v)
    for backend in (None, "cpu", "reference"):
        out, lse = portattn.attention(q, k, v, return_lse=True, backend=backend, **given_options)
        same(out, want)
        same(lse, s.logsumexp(-1) if keys else torch.full_like(lse, -math.inf))


sizes = st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4)
counts = st.lists(lengths, min_size=1, max_size=3)
PROPERTIES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "splits": (splits, (seeds, lengths, lengths, st.floats(0, 1), heads, dims)),
    "permutations": (permutations, (seeds, lengths, lengths, heads, dims)),
    "varlen": (varlen, (seeds, sizes, heads, dims, options())),
    "pages": (
        pages,
        (seeds, counts, st.integers(1, 4), st.sampled_from((1, 3, 16)), heads, options()),
    ),
    "groups": (groups, (seeds, lengths, lengths, heads, dims, options())),
    "formula": (formula, (seeds, lengths, lengths, dims, options())),
}


def run(name: str, examples: int) -> None:
    check, strategies = PROPERTIES[name]
    wrapped = settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck)
    )(given(st.tuples(*strategies))(lambda drawn: check(*drawn)))
    wrapped()


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name: str) -> None:
    run(name, EXAMPLES)


@pytest.mark.nightly
@pytest.mark.parametrize("name", PROPERTIES)
def test_property_nightly(name: str) -> None:
    run(name, -(-NIGHTLY // len(PROPERTIES)))
