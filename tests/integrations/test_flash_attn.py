"""flash-attn's signatures against a plain formula in float64."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest
import torch
from torch import Tensor

from portattn.errors import ArgumentError, CacheFullError, IntegrationError, ShapeError
from portattn.integrations import flash_attn as fa


def plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi: Tensor | None = None,
) -> Tensor:
    """One sequence: q [Sq, H, D], k and v [Sk, Hkv, D]."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    s = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    i = torch.arange(len(q))[:, None] + len(k) - len(q)
    j = torch.arange(len(k))
    if alibi is not None:
        s = s - alibi[:, None, None].double() * (i - j).abs()
    seen = torch.ones(len(q), len(k), dtype=torch.bool)
    if causal:
        seen &= j <= i
    if window[0] >= 0:
        seen &= j >= i - window[0]
    if window[1] >= 0:
        seen &= j <= i + window[1]
    p = s.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num()
    return torch.einsum("hqk,khd->qhd", p, v)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("dim", [32, 59, 64, 111, 128])
@pytest.mark.parametrize(("queries", "keys"), [(17, 17), (5, 40), (40, 5), (1, 33)])
def test_dense(kv_heads: int, dim: int, queries: int, keys: int) -> None:
    q, k, v = (
        random(2, queries, 6, dim),
        random(2, keys, kv_heads, dim),
        random(2, keys, kv_heads, dim),
    )
    alibi = torch.rand(6)
    for options in (
        {},
        {"causal": True},
        {"window_size": (7, 3)},
        {"causal": True, "softcap": 3.0},
        {"alibi_slopes": alibi},
    ):
        out = fa.flash_attn_func(q, k, v, **options)
        names = {"window_size": "window", "alibi_slopes": "alibi"}
        same = {names.get(name, name): value for name, value in options.items()}
        want = torch.stack([plain(q[b], k[b], v[b], **same) for b in range(2)])
        torch.testing.assert_close(out, want)


def test_packed_forms_are_the_unpacked_one_with_gradients() -> None:
    qkv = random(2, 9, 3, 4, 16).requires_grad_()
    want = fa.flash_attn_func(*qkv.unbind(2), causal=True)
    grad = torch.autograd.grad(want.sum(), qkv)[0]
    for out in (
        fa.flash_attn_qkvpacked_func(qkv, causal=True),
        fa.flash_attn_kvpacked_func(qkv[:, :, 0], qkv[:, :, 1:], causal=True),
    ):
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(torch.autograd.grad(out.sum(), qkv)[0], grad)
    with pytest.raises(ShapeError, match=r"qkv: must be \[B, S, 3, H, D\]"):
        fa.flash_attn_qkvpacked_func(qkv[:, :, :2])


def test_return_attn_probs() -> None:
    q, k = random(2, 5, 4, 8), random(2, 7, 4, 8)
    out, lse, s_dmask = fa.flash_attn_func(q, k, k, return_attn_probs=True)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    assert out.shape == q.shape and s_dmask is None


def test_varlen_from_a_padded_batch() -> None:
    lengths = [3, 0, 9, 5]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    x = random(4, 9, 6, 16).requires_grad_()
    q, indices, cu, longest, used = fa.unpad_input(x, mask)
    assert cu.tolist() == [0, 3, 3, 12, 17] and longest == 9 and used.tolist() == lengths
    out = fa.flash_attn_varlen_func(q, q, q, cu, cu, longest, longest, causal=True)
    padded = fa.pad_input(out, indices, 4, 9)
    for b, n in enumerate(lengths):
        torch.testing.assert_close(padded[b, :n], plain(*(x[b, :n],) * 3, causal=True))
        assert not padded[b, n:].any()
    packed = torch.stack((q, q, q), 1)
    for same in (
        fa.flash_attn_varlen_qkvpacked_func(packed, cu, longest, causal=True),
        fa.flash_attn_varlen_kvpacked_func(q, packed[:, 1:], cu, cu, longest, longest, causal=True),
    ):
        torch.testing.assert_close(same, out)
    padded.sum().backward()
    assert x.grad is not None and not x.grad[~mask].any()


def test_unpad_keeps_unused_slots() -> None:
    x, mask = random(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    unused = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 0]])
    packed, indices, cu, longest, used = fa.unpad_input(x, mask, unused)
    assert cu.tolist() == [0, 3, 6] and longest == 3 and used.tolist() == [2, 1]
    assert torch.equal(packed, fa.index_first_axis(x.flatten(0, 1), indices))


@pytest.mark.parametrize("page_size", [0, 16, 256])
@pytest.mark.parametrize("rotary", ["", "interleaved", "halves"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("new", [0, 1, 4])
def test_kvcache(page_size: int, rotary: str, causal: bool, new: int) -> None:
    if rotary and not new:
        return
    batch, heads, kv_heads, dim, room = 3, 4, 2, 32, 64
    queries = max(new, 1)
    seqlens = (
        torch.tensor([0, 17, 40], dtype=torch.int32) if new else torch.tensor([1, 17, 40]).int()
    )
    before = seqlens.clone()
    q, k, v = random(batch, queries, heads, dim), *(random(batch, new, kv_heads, dim) for _ in "kv")
    table = None
    if page_size:
        per_row = -(-room // page_size)
        table = torch.randperm(batch * per_row).view(batch, per_row).int()
        k_cache, v_cache = (random(batch * per_row, page_size, kv_heads, dim) for _ in "kv")
    else:
        k_cache, v_cache = (random(batch, room, kv_heads, dim) for _ in "kv")
    angle = torch.rand(room + 8, 8, dtype=torch.float64) * 6
    cos, sin = angle.cos(), angle.sin()
    tables = {"rotary_cos": cos, "rotary_sin": sin} if rotary else {}

    def row(cache: Tensor, b: int) -> Tensor:
        return cache[table[b].long()].flatten(0, 1) if table is not None else cache[b]

    held = [
        (row(k_cache, b)[:n].clone(), row(v_cache, b)[:n].clone()) for b, n in enumerate(before)
    ]
    out = fa.flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        *((k, v) if new else (None, None)),
        **tables,
        cache_seqlens=seqlens,
        block_table=table,
        causal=causal,
        rotary_interleaved=rotary == "interleaved",
        num_splits=3,
    )
    assert torch.equal(seqlens, before)
    for b, n in enumerate(before.tolist()):
        q_b, k_b = q[b], k[b]
        if rotary:
            steps = torch.arange(queries) if causal else torch.zeros(queries, dtype=torch.long)
            q_b = rotated(q_b, angle[n + steps], rotary == "interleaved")
            k_b = rotated(k_b, angle[n + torch.arange(new)], rotary == "interleaved")
        keys, values = torch.cat((held[b][0], k_b)), torch.cat((held[b][1], v[b]))
        torch.testing.assert_close(out[b], plain(q_b, keys, values, causal), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(row(k_cache, b)[: n + new], keys, rtol=1e-5, atol=1e-6)
        assert torch.equal(row(v_cache, b)[: n + new], values)


def rotated(x: Tensor, angle: Tensor, interleaved: bool) -> Tensor:
    """Complex multiplication of pairs: x [S, H, D], angle [S, r / 2]."""
    half = angle.shape[-1]
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    first = x[..., : 2 * half]
    pairs = first.unflatten(-1, (half, 2)) if interleaved else first.unflatten(-1, (2, half)).mT
    done = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    flat = done.flatten(-2) if interleaved else done.mT.flatten(-2)
    return torch.cat((flat, x[..., 2 * half :]), -1)


def test_kvcache_rows_and_left_padding() -> None:
    k_cache, v_cache, q = random(5, 30, 2, 16), random(5, 30, 2, 16), random(2, 1, 4, 16)
    rows, pads = torch.tensor([3, 1], dtype=torch.int32), torch.tensor([2, 0], dtype=torch.int32)
    out, lse = fa.flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        cache_seqlens=torch.tensor([9, 20], dtype=torch.int32),
        cache_batch_idx=rows,
        cache_leftpad=pads,
        return_softmax_lse=True,
    )
    torch.testing.assert_close(out[0], plain(q[0], k_cache[3, 2:9], v_cache[3, 2:9]))
    torch.testing.assert_close(out[1], plain(q[1], k_cache[1, :20], v_cache[1, :20]))
    assert lse.shape == (2, 4, 1)
    whole = fa.flash_attn_with_kvcache(q, k_cache[:2], v_cache[:2])
    torch.testing.assert_close(whole[0], plain(q[0], k_cache[0], v_cache[0]))
    seven = fa.flash_attn_with_kvcache(q, k_cache[:2], v_cache[:2], cache_seqlens=7)
    torch.testing.assert_close(seven[1], plain(q[1], k_cache[1, :7], v_cache[1, :7]))


def test_kvcache_refusals_leave_the_cache_alone() -> None:
    k_cache, q, new = random(1, 8, 2, 16), random(1, 1, 2, 16), random(1, 3, 2, 16)
    before = k_cache.clone()
    with pytest.raises(CacheFullError):
        fa.flash_attn_with_kvcache(q, k_cache, k_cache, new, new, cache_seqlens=6)
    with pytest.raises(ArgumentError, match="cache_seqlens"):
        fa.flash_attn_with_kvcache(q, k_cache, k_cache, new, new)
    with pytest.raises(ArgumentError, match="rotary_cos"):
        fa.flash_attn_with_kvcache(q, k_cache, k_cache, rotary_cos=q[0, 0], rotary_sin=q[0, 0])
    with pytest.raises(ArgumentError, match="block_table: must hold pages"):
        fa.flash_attn_with_kvcache(
            q,
            k_cache,
            k_cache,
            cache_seqlens=3,
            block_table=torch.tensor([[5]], dtype=torch.int32),
        )
    assert torch.equal(k_cache, before)


def test_signatures_are_flash_attns() -> None:
    """Argument order of release 2.8, as its users pass them by position."""
    common = [
        "dropout_p",
        "softmax_scale",
        "causal",
        "window_size",
        "softcap",
        "alibi_slopes",
        "deterministic",
        "return_attn_probs",
    ]
    lengths = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
    expected = {
        fa.flash_attn_func: ["q", "k", "v", *common],
        fa.flash_attn_kvpacked_func: ["q", "kv", *common],
        fa.flash_attn_qkvpacked_func: ["qkv", *common],
        fa.flash_attn_varlen_func: ["q", "k", "v", *lengths, *common, "block_table"],
        fa.flash_attn_varlen_kvpacked_func: ["q", "kv", *lengths, *common],
        fa.flash_attn_varlen_qkvpacked_func: ["qkv", "cu_seqlens", "max_seqlen", *common],
        fa.flash_attn_with_kvcache: [
            "q",
            "k_cache",
            "v_cache",
            "k",
            "v",
            "rotary_cos",
            "rotary_sin",
            "cache_seqlens",
            "cache_batch_idx",
            "cache_leftpad",
            "block_table",
            "softmax_scale",
            "causal",
            "window_size",
            "softcap",
            "rotary_interleaved",
            "alibi_slopes",
            "num_splits",
            "return_softmax_lse",
        ],
    }
    for function, names in expected.items():
        assert list(inspect.signature(function).parameters) == names


def test_install_and_undo() -> None:
    before = {name for name in sys.modules if name.startswith("flash_attn")}
    assert not before
    with fa.install() as first:
        fa.install()
        module = importlib.import_module("flash_attn")
        assert module.flash_attn_func is fa.flash_attn_func
        interface = importlib.import_module("flash_attn.flash_attn_interface")
        assert interface.flash_attn_with_kvcache is fa.flash_attn_with_kvcache
        assert importlib.import_module("flash_attn.bert_padding").pad_input is fa.pad_input
        rotary = importlib.import_module("flash_attn.layers.rotary")
        assert rotary.apply_rotary_emb is fa.apply_rotary_emb
        assert importlib.util.find_spec("flash_attn") is not None
    assert not [name for name in sys.modules if name.startswith("flash_attn")]
    first.undo()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("flash_attn")


def test_install_refuses_beside_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(sys)("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", real)
    with pytest.raises(IntegrationError, match="is installed"):
        fa.install()
    assert sys.modules["flash_attn"] is real
