"""flash_attn_with_kvcache and its rotary embedding against plain formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from portattn.arguments import Options
from portattn.dispatch.backend import AttentionTensors
from portattn.errors import ArgumentError, CacheFullError, DtypeError, PortattnError, ShapeError
from portattn.integrations import flash_attn as fa
from tests.conformance import naive

Random = Callable[..., Tensor]
ROOM, PAGE = 48, 16
ROTARY = ("rotary_cos", "rotary_sin")


@pytest.fixture
def random(generator: torch.Generator) -> Random:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return draw


def rotated(x: Tensor, angle: Tensor, interleaved: bool) -> Tensor:
    """Pairs as complex numbers, turned by an angle: x [S, H, D], angle [S, r / 2]."""
    half = angle.shape[-1]
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    first = x[..., : 2 * half]
    pairs = first.unflatten(-1, (half, 2)) if interleaved else first.unflatten(-1, (2, half)).mT
    done = torch.view_as_real(torch.complex(*pairs.unbind(-1)) * turn)
    flat = done.flatten(-2) if interleaved else done.mT.flatten(-2)
    return torch.cat((flat, x[..., 2 * half :]), -1)


class Case:
    """A cache of two sequences in one of the forms that flash-attn knows, and its tokens."""

    def __init__(self, form: str, kv_heads: int, dim: int, random: Random) -> None:
        self.seqlens = torch.tensor([0, 29], dtype=torch.int32)
        self.where: dict[str, Tensor] = {}
        shape = (4, ROOM, kv_heads, dim) if form == "rows" else (2, ROOM, kv_heads, dim)
        if form == "pages":
            shape = (8, PAGE, kv_heads, dim)
            table = torch.tensor([[5, 2, 7], [0, 6, 3]], dtype=torch.int32)
            self.where = {"block_table": table}
        elif form == "rows":
            self.where = {"cache_batch_idx": torch.tensor([3, 1], dtype=torch.int32)}
        elif form == "leftpad":
            self.where = {"cache_leftpad": torch.tensor([0, 11], dtype=torch.int32)}
        self.k_cache, self.v_cache = random(*shape), random(*shape)

    def row(self, cache: Tensor, b: int) -> Tensor:
        """The slots of sequence b: [ROOM, Hkv, D]."""
        if "block_table" in self.where:
            return cache[self.where["block_table"][b].long()].flatten(0, 1)
        rows = self.where.get("cache_batch_idx")
        return cache[b if rows is None else int(rows[b])].clone()


KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "local": {"window_size": (6, 2)},
    "capped": {"causal": True, "softcap": 2.0, "softmax_scale": 0.3},
}


# Queries, new tokens, kv heads, head dim; flash-attn rotates only what it appends.
SHAPES = ((1, 1, 4, 64), (3, 3, 1, 59), (2, 5, 2, 32), (5, 2, 2, 64), (3, 0, 2, 32))
ROTATED = [(r, *s) for r in ("", "interleaved", "halves") for s in SHAPES if s[1] or not r]


@pytest.mark.parametrize("form", ["plain", "rows", "leftpad", "pages"])
@pytest.mark.parametrize("kind", [*KINDS, "alibi"])
@pytest.mark.parametrize(("rotary", "queries", "new", "kv_heads", "dim"), ROTATED)
def test_new_tokens_are_rotated_stored_and_attended_to(
    form: str,
    kind: str,
    rotary: str,
    queries: int,
    new: int,
    kv_heads: int,
    dim: int,
    random: Random,
) -> None:
    case = Case(form, kv_heads, dim, random)
    alibi = random(2, 4).abs().float() if kind == "alibi" else None
    q, k, v = random(2, queries, 4, dim), *(random(2, new, kv_heads, dim) for _ in "kv")
    angle = random(ROOM + 8, 8) * 3
    before = case.seqlens.clone()
    tokens = [(case.row(case.k_cache, b), case.row(case.v_cache, b)) for b in range(2)]
    out, lse = fa.flash_attn_with_kvcache(
        q,
        case.k_cache,
        case.v_cache,
        *((k, v) if new else (None, None)),
        **({"rotary_cos": angle.cos(), "rotary_sin": angle.sin()} if rotary else {}),
        cache_seqlens=case.seqlens,
        **case.where,
        **KINDS.get(kind, {}),
        alibi_slopes=alibi,
        rotary_interleaved=rotary == "interleaved",
        return_softmax_lse=True,
    )
    assert torch.equal(case.seqlens, before)
    turned = q.clone()
    for b, n in enumerate(before.tolist()):
        if rotary:
            steps = torch.arange(queries) if kind in ("causal", "local", "capped") else 0
            at = n + steps * torch.ones(queries, dtype=torch.long)
            turned[b] = rotated(q[b], angle[at], rotary == "interleaved")
            k[b] = rotated(k[b], angle[n : n + new], rotary == "interleaved")
        tokens[b][0][n : n + new], tokens[b][1][n : n + new] = k[b], v[b]
        torch.testing.assert_close(case.row(case.k_cache, b), tokens[b][0])
        assert torch.equal(case.row(case.v_cache, b), tokens[b][1])
    want = naive.attention(
        AttentionTensors(
            turned,
            *(torch.stack(list(rows)) for rows in zip(*tokens, strict=True)),
            alibi_slopes=alibi,
            seqused_k=before + new,
            leftpad_k=case.where.get("cache_leftpad"),
        ),
        _options(dim, **KINDS.get(kind, {})),
    )
    torch.testing.assert_close((out, lse), want, check_dtype=False)


def _options(
    dim: int,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    softmax_scale: float | None = None,
) -> Options:
    return Options(softmax_scale or dim**-0.5, causal, window_size, softcap)


def test_causal_counts_every_row_of_q_as_one_of_the_newest(random: Random) -> None:
    """Token by token or all at once: a cache filled either way gives the same rows."""
    q, k, v = random(1, 6, 4, 16), random(1, 6, 2, 16), random(1, 6, 2, 16)
    step_by_step, at_once = (torch.zeros(2, 1, 8, 2, 16, dtype=torch.float64) for _ in "ab")
    whole = fa.flash_attn_with_kvcache(q, *at_once, k, v, cache_seqlens=0, causal=True)
    for i in range(6):
        step = slice(i, i + 1)
        out = fa.flash_attn_with_kvcache(
            q[:, step], *step_by_step, k[:, step], v[:, step], cache_seqlens=i, causal=True
        )
        torch.testing.assert_close(out, whole[:, step])
    assert torch.equal(step_by_step, at_once)


def test_a_batch_smaller_than_the_cache_is_its_first_rows(random: Random) -> None:
    k_cache, v_cache, new = random(4, 8, 2, 16), random(4, 8, 2, 16), random(2, 1, 2, 16)
    untouched = k_cache[2:].clone()
    out = fa.flash_attn_with_kvcache(new, k_cache, v_cache, new, new, cache_seqlens=5)
    same = fa.flash_attn_with_kvcache(new, k_cache[:2], v_cache[:2], cache_seqlens=6)
    torch.testing.assert_close(out, same)
    assert torch.equal(k_cache[:2, 5], new[:, 0]) and torch.equal(k_cache[2:], untouched)


def test_no_graph_is_kept(random: Random) -> None:
    k_cache, v_cache = random(1, 8, 2, 16), random(1, 8, 2, 16)
    q = random(1, 1, 2, 16).requires_grad_()
    cos = torch.ones(8, 4, dtype=torch.float64)
    out = fa.flash_attn_with_kvcache(q, k_cache, v_cache, q, q, cos, cos, cache_seqlens=2)
    assert not out.requires_grad and not k_cache.requires_grad and k_cache.grad_fn is None


@pytest.mark.parametrize("window", [[-1, -1], torch.tensor([-1, -1]), (-7, -1)])
def test_any_negative_window_is_unbounded(window: Any, random: Random) -> None:
    """And is no window either where rotary asks for one: all rows of q at cache_seqlens."""
    cache, new = random(2, 1, 8, 2, 16), random(1, 3, 2, 16)
    angle = random(8, 4)
    turn = {"rotary_cos": angle.cos(), "rotary_sin": angle.sin(), "cache_seqlens": 4}
    out = fa.flash_attn_with_kvcache(new, *cache, new, new, **turn, window_size=window)
    torch.testing.assert_close(out, fa.flash_attn_with_kvcache(new, *cache, new, new, **turn))


def test_half_types_stay_within_twice_the_plain_formula(random: Random) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        q, cache = random(2, 1, 4, 64).to(dtype), random(2, 2, 40, 2, 64).to(dtype)
        t = AttentionTensors(q, *cache, seqused_k=torch.tensor([40, 23], dtype=torch.int32))
        wide = AttentionTensors(q.double(), *cache.double(), seqused_k=t.seqused_k)
        exact, plain = (naive.attention(x, _options(64))[0].double() for x in (wide, t))
        out = fa.flash_attn_with_kvcache(q, *cache, cache_seqlens=t.seqused_k).double()
        rounding = torch.finfo(dtype).eps * float(exact.abs().max())
        assert (out - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding


@pytest.mark.parametrize(
    ("kind", "argument", "changes"),
    [
        (ArgumentError, "cache_seqlens", dict(cache_seqlens=None)),
        (ArgumentError, "cache_seqlens", dict(cache_seqlens=-1)),
        (ArgumentError, "cache_seqlens", dict(cache_seqlens=torch.tensor([9, 0]).int())),
        (DtypeError, "cache_seqlens", dict(cache_seqlens=torch.tensor([3, 3]))),
        (ShapeError, "cache_seqlens", dict(cache_seqlens=torch.tensor(3).int())),
        (ShapeError, "q", dict(q=torch.zeros(2, 1, 4, 8))),
        (ShapeError, "q", dict(q=torch.zeros(1, 4, 16))),
        (ShapeError, "k", dict(k=torch.zeros(2, 1, 1, 16))),
        (DtypeError, "k", dict(k=torch.zeros(2, 1, 2, 16).half())),
        (ArgumentError, "v", dict(v=None)),
        (ShapeError, "v_cache", dict(v_cache=torch.zeros(2, 7, 2, 16))),
        (ArgumentError, "cache_batch_idx", dict(cache_batch_idx=torch.tensor([0, -1]).int())),
        (ShapeError, "cache_batch_idx", dict(cache_batch_idx=torch.tensor([0]).int())),
        (ArgumentError, "leftpad_k", dict(cache_leftpad=torch.tensor([4, 0]).int())),
        (ArgumentError, "block_table", dict(block_table=torch.tensor([[0], [2]]).int())),
        (DtypeError, "block_table", dict(block_table=torch.tensor([[0], [1]]))),
        (ShapeError, "block_table", dict(block_table=torch.tensor([[0]]).int())),
        (ArgumentError, "num_splits", dict(num_splits=-1)),
        (ArgumentError, "window_size", dict(window_size=(1,))),
        (ArgumentError, "rotary_sin", dict(rotary_cos=torch.ones(8, 4))),
        (ArgumentError, "rotary_cos", dict.fromkeys(ROTARY, torch.ones(3, 4))),
        (ShapeError, "rotary_cos", dict.fromkeys(ROTARY, torch.ones(8, 9))),
        (ShapeError, "rotary_sin", dict(rotary_cos=torch.ones(8, 8), rotary_sin=torch.ones(8, 4))),
        (CacheFullError, None, dict(cache_seqlens=8)),
        (CacheFullError, None, dict(cache_seqlens=torch.tensor([2, 8]).int())),
    ],
)  # fmt: skip
def test_bad_arguments_are_named_before_anything_is_written(
    kind: type[PortattnError], argument: str | None, changes: dict[str, Any]
) -> None:
    k_cache = torch.randn(2, 8, 2, 16)
    before, new = k_cache.clone(), torch.randn(2, 1, 2, 16)
    given = {"q": torch.randn(2, 1, 4, 16), "k_cache": k_cache, "v_cache": k_cache, "k": new,
             "v": new, "cache_seqlens": 3} | changes  # fmt: skip
    with pytest.raises(kind) as caught:
        fa.flash_attn_with_kvcache(**given)
    assert type(caught.value) is kind and getattr(caught.value, "argument", None) == argument
    assert torch.equal(k_cache, before)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_embedding(interleaved: bool, random: Random) -> None:
    x, angle = random(3, 5, 2, 16).requires_grad_(), random(22, 6)
    tables = angle.cos(), angle.sin()
    offsets = torch.tensor([0, 7, 15])
    out = fa.apply_rotary_emb(x, *tables, interleaved, seqlen_offsets=offsets)
    want = torch.stack(
        [rotated(x[b], angle[n : n + 5], interleaved) for b, n in enumerate(offsets)]
    )
    torch.testing.assert_close(out, want)
    grad = random(3, 5, 2, 16)
    torch.testing.assert_close(
        torch.autograd.grad(out, x, grad), torch.autograd.grad(want, x, grad)
    )
    packed = x.detach().flatten(0, 1)[:11]
    cu_seqlens = torch.tensor([0, 4, 4, 11], dtype=torch.int32)
    written = packed.clone()
    again = fa.apply_rotary_emb(written, *tables, interleaved, True, offsets, cu_seqlens, 7)
    assert again is written
    for b in range(3):
        own = slice(int(cu_seqlens[b]), int(cu_seqlens[b + 1]))
        at = angle[int(offsets[b]) :][: own.stop - own.start]
        torch.testing.assert_close(written[own], rotated(packed[own], at, interleaved))
    with pytest.raises(ArgumentError, match=r"cos: must have a row .* 18 \.\. 22"):
        fa.apply_rotary_emb(x, *tables, seqlen_offsets=18)


def test_a_decode_step_compiles_once() -> None:
    torch.compiler.reset()
    step = torch.compile(fa.flash_attn_with_kvcache, fullgraph=True, backend="aot_eager")
    caches = torch.zeros(2, 2, 2, 16, 2, 16)
    table = torch.tensor([[0], [1]], dtype=torch.int32)
    for where in ({}, {"block_table": table}):
        for i in range(12):
            new, seqlens = torch.randn(2, 1, 2, 16), torch.tensor([i, i + 1], dtype=torch.int32)
            args = {"cache_seqlens": seqlens, "causal": True, **where}
            out = step(new, *caches[0], new, new, **args)
            torch.testing.assert_close(
                out, fa.flash_attn_with_kvcache(new, *caches[1], new, new, **args)
            )
    assert torch.equal(caches[0], caches[1])
