"""Context parallel on gloo ranks: every conformance case, spread out, within its budget."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import portattn
from portattn.arguments import Options
from portattn.cache import ContiguousKVCache, PagedKVCache
from portattn.dispatch.backend import AttentionTensors
from portattn.errors import ArgumentError
from portattn.parallel import merge
from portattn.parallel.context import ContextParallel
from portattn.parallel.layout import Layout, Pattern, Share, blocks
from portattn.parallel.sharded_decode import ShardedKVCache
from tests.conformance.budget import check, expected, expected_gradients
from tests.conformance.cases import CASES, Case, build, dense
from tests.parallel import ranks

# The last has keys so near that a ring of contiguous parts ends early.
SPREAD = [case for case in CASES if case.differentiable and not case.dropout_p]
SPREAD.append(dense("near window", 2, 48, 48, window=(5, 0), causal=True, kv_heads=1))


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_blocks_hold_every_visible_pair_once(data: st.DataObject) -> None:
    """Against the definition of the window, pair by pair."""
    ring = data.draw(st.integers(1, 4))
    queries, keys = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))
    pattern: Pattern = data.draw(st.sampled_from(("zigzag", "contiguous")))
    window = data.draw(st.tuples(st.integers(-1, 9), st.integers(-1, 9)))
    layout = Layout((queries,), (keys,), ring, pattern=pattern)
    for rank, source in product(range(ring), range(ring)):
        rows = layout.ring_shares("queries", rank)[0]
        columns = layout.ring_shares("keys", source)[0]
        offset = keys - queries
        found = list(_pairs_of_blocks(rows, columns, offset, window))
        assert len(found) == len(set(found))
        assert set(found) == {
            (x, y)
            for x, i in enumerate(_positions(rows))
            for y, j in enumerate(_positions(columns))
            if (window[0] < 0 or j >= i + offset - window[0])
            and (window[1] < 0 or j <= i + offset + window[1])
        }
        if found:
            assert (rank - source) % ring < layout.ring_steps(window)


def _positions(share: Share) -> list[int]:
    return [place for start, stop in share for place in range(start, stop)]


def _pairs_of_blocks(
    queries: Share, keys: Share, offset: int, window: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """As the library reads a block: a window aligned to its last row and key."""
    for block in blocks(queries, keys, offset, window):
        n, m = block.rows[1] - block.rows[0], block.keys[1] - block.keys[0]
        left, right = block.window
        for i, j in product(range(n), range(m)):
            if (left < 0 or j >= i + m - n - left) and (right < 0 or j <= i + m - n + right):
                yield block.rows[0] + i, block.keys[0] + j


def test_a_causal_step_is_one_call_and_ranks_have_equal_work() -> None:
    """What zigzag is for: without it the last rank would do twice the mean."""
    layout = Layout((4096,), (4096,), 4)
    work = []
    for rank in range(4):
        steps = [layout.blocks(rank, source, (-1, 0))[0] for source in range(4)]
        assert all(len(step) == 1 for step in steps)
        pairs = 0.0
        for ((rows, keys, window),) in steps:
            size = (rows[1] - rows[0]) * (keys[1] - keys[0])
            pairs += size / 2 if window[1] == 0 else size
        work.append(pairs)
    assert max(work) == min(work)
    near = Layout((4096,), (4096,), 4, pattern="contiguous")
    assert near.ring_steps((100, 0)) == 2 and layout.ring_steps((-1, 0)) == 4


@pytest.mark.parametrize("rows", [(2, 37, 3, 24), (37, 3, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_merges_equal_the_plain_ones(
    rows: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Triton's kernels, in its interpreter here; parts without a key hold NaN."""
    pytest.importorskip("triton", reason="the fused merges are Triton's")
    from portattn.parallel import merge_kernels

    def parts() -> tuple[Tensor, Tensor]:
        lse = torch.randn(*rows[:-3], rows[-2], rows[-3], generator=generator) * 3
        lse[torch.rand(lse.shape, generator=generator) < 0.2] = -torch.inf
        out = torch.randn(rows, generator=generator).to(dtype)
        return out.masked_fill(lse.transpose(-1, -2)[..., None].isinf(), torch.nan), lse

    (out, lse), (part, part_lse) = parts(), parts()
    mine, theirs = (out.clone(), lse.clone()), (out.clone(), lse.clone())
    views = [(o.narrow(-3, 5, 20), s.narrow(-1, 5, 20)) for o, s in (mine, theirs)]
    second = part.narrow(-3, 0, 20), part_lse.narrow(-1, 0, 20)
    merge.merge_into(*views[0], *second)
    merge_kernels.merge_rows(*views[1], *second)
    torch.testing.assert_close(theirs, mine, equal_nan=True)
    assert not views[1][0].isnan().any()
    many = torch.randn(3, *rows[:-1], rows[-1] + 1, generator=generator)
    many = many if many.dim() == 5 else many[:, None]
    many[1] = torch.nan
    many[1, ..., -1] = many[:, 0, 0, 0, -1] = -torch.inf
    for sinks in (None, torch.randn(rows[-2], generator=generator)):
        fused = merge_kernels.merge_parts(many, sinks, torch.float32)
        torch.testing.assert_close(fused, merge.merge_all(many, sinks, torch.float32))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_conformance_cases_spread_over_ranks(count: int, generator: torch.Generator) -> None:
    seed = int(torch.randint(2**31, (), generator=generator))
    for failures in ranks.run(spread_everything, count, seed):
        assert failures == []


def spread_everything(seed: int) -> list[str]:
    """What goes wrong on a rank: every case over every way that this number of ranks has."""
    count = dist.get_world_size()
    world = dist.group.WORLD
    ways: list[tuple[str, ContextParallel, Pattern, torch.dtype]] = [
        ("ring", ContextParallel(world), "zigzag", torch.float32),
        ("ulysses", ContextParallel(None, world), "zigzag", torch.float32),
    ]
    if count == 3:
        # Windows end before the ring does.
        ways.append(("ring", ways[0][1], "contiguous", torch.bfloat16))
    if count == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ring", "ulysses"))
        ways = [("product", ContextParallel.from_mesh(mesh), "zigzag", torch.bfloat16)]
    failures = []
    for (name, cp, pattern, dtype), case in product(ways, SPREAD):
        generator = torch.Generator().manual_seed(seed)
        built = build(case, dtype, torch.device("cpu"), generator)
        about = f"{name} {pattern} of {count}, {case.name}, seed {seed}"
        try:
            _spread(cp, pattern, case, built.tensors, built.options, generator, about)
        except (AssertionError, ArgumentError) as error:
            failures.append(f"{about}: {error}")
    for further in (_decode, _disagreement):
        try:
            further(seed)
        except AssertionError as error:
            failures.append(f"{further.__name__} of {count}, seed {seed}: {error}")
    return failures


def _spread(
    cp: ContextParallel,
    pattern: Pattern,
    case: Case,
    t: AttentionTensors,
    o: Options,
    generator: torch.Generator,
    about: str,
) -> None:
    packed = case.layout == "varlen"
    queries, keys = zip(*case.lengths, strict=True) if case.lengths else ((5,), (5,))
    if packed:
        t = replace(t, q=t.q[: sum(queries)], k=t.k[: sum(keys)], v=t.v[: sum(keys)])
    else:
        queries, keys = queries[:1], keys[:1]
    layout = cp.layout(queries, keys, pattern=pattern)
    dim = 0 if packed else 1
    sides = (("q", "queries"), ("k", "keys"), ("v", "keys"))
    local = {n: cp.shard(getattr(t, n), layout, w, dim=dim).requires_grad_() for n, w in sides}
    whole = {
        n: x.clone().requires_grad_() for n in ("bias", "sinks") if (x := getattr(t, n)) is not None
    }
    kwargs: dict[str, Any] = {**whole, "alibi_slopes": t.alibi_slopes, "mask": t.mask}
    call: dict[str, Any] = {
        "causal": o.causal, "softmax_scale": o.softmax_scale, "window_size": o.window,
        "softcap": o.softcap, "return_lse": True,
    }  # fmt: skip
    beside_a_ring = [n for n in ("bias", "mask", "alibi_slopes") if getattr(t, n) is not None]
    if (cp.ring.size > 1 and beside_a_ring) or case.heads % cp.ulysses.size:
        with pytest.raises(ArgumentError, match="ulysses"):
            cp.attention(*local.values(), layout, **kwargs, **call)
        return
    out, lse = cp.attention(*local.values(), layout, **kwargs, **call)
    grads_of = torch.randn((*t.q.shape[:-1], t.v.shape[-1]), generator=generator).to(out.dtype)
    all_lse = cp.gather(lse, layout, dim=-1)
    lse_grads = torch.randn(all_lse.shape, generator=generator).to(lse.dtype)
    lse_grads = lse_grads.masked_fill(all_lse.isinf(), 0)
    loss = (out * cp.shard(grads_of, layout, dim=dim)).sum()
    loss = loss + torch.where(lse.isinf(), 0, lse * cp.shard(lse_grads, layout, dim=-1)).sum()
    leaves = local | whole
    first, again = (torch.autograd.grad(loss, leaves.values(), retain_graph=True) for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "other bits"
    got = {"out": cp.gather(out, layout, dim=dim), "lse": all_lse}
    for (name, _), grad in zip(leaves.items(), first, strict=True):
        if name in whole:
            grad = grad.float()
            dist.all_reduce(grad)
        which = "queries" if name == "q" else "keys"
        got[f"d{name}"] = grad if name in whole else cp.gather(grad, layout, which, dim=dim)
    if dist.get_rank() == 0:
        want = expected_gradients(t, o, grads_of, lse_grads, got)
        check(
            {n: x for n, x in got.items() if n in ("out", "lse")}, expected(t, o), t.q.dtype, about
        )
        check({n: x for n, x in got.items() if n[0] == "d"}, want, t.q.dtype, about)


def _decode(seed: int) -> None:
    """Tokens anywhere, in pages or rows, down to none on a rank, then more appended."""
    rank, count = dist.get_rank(), dist.get_world_size()
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for paged, causal, window, sinks, dtype in (
        (False, False, (-1, -1), False, torch.bfloat16),
        (True, True, (-1, -1), True, torch.float32),
        (False, True, (9, 0), True, torch.float32),
    ):
        lengths, rows = [0, 3, 41], 3
        k, v = (torch.randn(rows, 60, 2, d, generator=generator).to(dtype) for d in (16, 24))
        q = torch.randn(rows, 2, 4, 16, generator=generator).to(dtype)
        extra = torch.randn(4, generator=generator).to(dtype) if sinks else None
        owner = [[rng.randrange(count) for _ in range(length)] for length in lengths]
        owner[1] = [count - 1] * 3
        mine = [[j for j, at in enumerate(of) if at == rank] for of in owner]
        local = _cache(k, v, mine, paged)
        positions = torch.zeros(rows, max(map(len, mine)), dtype=torch.int32)
        for b, of in enumerate(mine):
            positions[b, : len(of)] = torch.tensor(of, dtype=torch.int32)
        total = torch.tensor(lengths, dtype=torch.int32)
        cache = ShardedKVCache(
            local, dist.group.WORLD, block=3, positions=positions, lengths=total
        )  # fmt: skip
        for count_new in (2, 5):
            spots = [range(length, length + count_new) for length in lengths]
            new = [torch.stack([x[b, of] for b, of in enumerate(spots)]) for x in (k, v)]
            cache.append(*new)
            lengths = [length + count_new for length in lengths]
            call: dict[str, Any] = {"causal": causal, "window_size": window, "sinks": extra}
            out, lse = cache.attention(q, return_lse=True, **call)
            t = AttentionTensors(q, k, v, sinks=extra)
            t.seqused_k = torch.tensor(lengths, dtype=torch.int32)
            right = 0 if causal else window[1]
            o = Options(16**-0.5, causal, (window[0], right), max_seqlen_k=max(lengths))
            check({"out": out, "lse": lse}, expected(t, o), dtype, f"decode, paged={paged}")
            first = out.clone()
            dist.broadcast(first, 0)
            assert torch.equal(first, out), "ranks have other bits"


def _cache(
    k: Tensor, v: Tensor, mine: list[list[int]], paged: bool
) -> ContiguousKVCache | PagedKVCache:
    """A rank's tokens of every sequence, with room for more."""
    used = torch.tensor([len(of) for of in mine], dtype=torch.int32)
    stores = [x.new_full((len(mine), 64, *x.shape[2:]), torch.nan) for x in (k, v)]
    for store, x in zip(stores, (k, v), strict=True):
        for b, of in enumerate(mine):
            store[b, : len(of)] = x[b, of]
    if not paged:
        return ContiguousKVCache.from_tensors(*stores, used)
    table = torch.arange(len(mine) * 4, dtype=torch.int32).view(len(mine), 4)
    return PagedKVCache.from_tensors(
        *(s.unflatten(1, (4, 16)).flatten(0, 1) for s in stores), table, used
    )


def _disagreement(seed: int) -> None:
    """A rank with another argument: an error that names it, on every rank, and then all goes on."""
    cp = ContextParallel(dist.group.WORLD)
    layout = cp.layout(8)
    q = cp.shard(torch.randn(1, 8, 2, 8), layout)
    with pytest.raises(ArgumentError, match="softcap: must be the same on all"):
        cp.attention(q, q, q, layout, softcap=1.0 + dist.get_rank())
    with pytest.raises(ArgumentError, match="dropout_p"):
        cp.attention(q, q, q, layout, dropout_p=0.1)
    with pytest.raises(ArgumentError, match="tokens that the layout gives"):
        cp.attention(q[:, :1], q, q, layout)
    with pytest.raises(ArgumentError, match="positions"):
        ShardedKVCache(
            ContiguousKVCache(1, 4, 2, 8), dist.group.WORLD
        ).attention(torch.randn(1, 1, 2, 8), window_size=(4, 0))  # fmt: skip
    assert cp.attention(q, q, q, layout).shape == q.shape  # type: ignore[union-attr]


def test_one_process_needs_no_group(generator: torch.Generator) -> None:
    cp = ContextParallel()
    q, k = (torch.randn(2, 9, 4, 8, generator=generator) for _ in range(2))
    layout = cp.layout(9)
    assert torch.equal(cp.gather(cp.shard(q, layout), layout), q)
    out = cp.attention(q, k, k, layout, causal=True)
    assert torch.equal(out, portattn.attention(q, k, k, causal=True))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="layout"):
        cp.attention(q, k, k, Layout((9,), (9,), 2))
