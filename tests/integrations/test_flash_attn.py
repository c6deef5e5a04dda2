"""flash-attn's signatures against a plain formula in float64."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from portattn.errors import IntegrationError, ShapeError
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
    blind = ~seen.any(-1, keepdim=True)
    s = s.masked_fill(~seen, float("-inf")).masked_fill(blind, 0.0)
    p = s.softmax(-1).masked_fill(blind, 0.0)
    return torch.einsum("hqk,khd->qhd", p, v)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"window": (7, 3)},
    {"window": (9, -1), "causal": True},
    {"causal": True, "softcap": 3.0},
    {"alibi": (6,)},
    {"alibi": (2, 6), "causal": True},
)


def batched(q: Tensor, k: Tensor, v: Tensor, kind: dict[str, Any]) -> Tensor:
    """The plain formula of each sequence of a batch."""
    slopes = kind.get("alibi")
    own = [kind if slopes is None else {**kind, "alibi": slopes.expand(len(q), -1)[b]}
           for b in range(len(q))]  # fmt: skip
    return torch.stack([plain(q[b], k[b], v[b], **own[b]) for b in range(len(q))])


def flash_arguments(kind: dict[str, Any]) -> dict[str, Any]:
    names = {"window": "window_size", "alibi": "alibi_slopes"}
    return {names.get(name, name): value for name, value in kind.items()}


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("dim", [32, 59, 64, 111, 128])
@pytest.mark.parametrize(("queries", "keys"), [(17, 17), (5, 40), (40, 5), (1, 33)])
def test_dense_with_gradients(kv_heads: int, dim: int, queries: int, keys: int) -> None:
    q, k, v = leaves = [
        random(2, queries, 6, dim).requires_grad_(),
        random(2, keys, kv_heads, dim).requires_grad_(),
        random(2, keys, kv_heads, dim).requires_grad_(),
    ]
    grad = random(2, queries, 6, dim)
    for kind in KINDS:
        given = {**kind, "alibi": torch.rand(kind["alibi"])} if "alibi" in kind else kind
        out = fa.flash_attn_func(q, k, v, **flash_arguments(given))
        want = batched(q, k, v, given)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(
            torch.autograd.grad(out, leaves, grad), torch.autograd.grad(want, leaves, grad)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "queries", "keys"), [(59, 33, 65), (111, 40, 40), (64, 70, 9)])
def test_half_types_stay_within_twice_the_plain_formula(
    dtype: torch.dtype, dim: int, queries: int, keys: int
) -> None:
    """Three times for gradients, plus one rounding of the result."""
    given = random(2, queries, 4, dim), random(2, keys, 2, dim), random(2, keys, 2, dim)
    halves = [x.to(dtype).requires_grad_() for x in given]
    wide = [x.detach().double().requires_grad_() for x in halves]
    grad = random(2, queries, 4, dim).to(dtype)
    for kind in ({}, {"causal": True, "window": (20, -1)}):
        results = []
        for leaves, run in ((wide, batched), (halves, batched), (halves, None)):
            out = (
                run(*leaves, kind) if run else fa.flash_attn_func(*leaves, **flash_arguments(kind))
            )
            results.append((out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))))
        for factor, exact, formula, got in zip((2, 3, 3, 3), *results, strict=True):
            error, allowed = (
                (x.detach().double() - exact.detach()).abs().max() for x in (got, formula)
            )
            rounding = torch.finfo(dtype).eps * float(exact.detach().abs().max())
            assert float(error) <= factor * float(allowed) + rounding


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


def test_varlen_over_pages_and_numbers_that_come_as_tensors() -> None:
    pages = random(2, 6, 4, 2, 16)
    table = torch.tensor([[4, 1, 3], [0, 5, 2]], dtype=torch.int32)
    cu_q, cu_k = (torch.tensor(ends, dtype=torch.int32) for ends in ([0, 3, 5], [0, 10, 17]))
    q = random(5, 4, 16)
    for longest in ((3, 10), (torch.tensor(3), torch.tensor(10))):
        out, lse, _ = fa.flash_attn_varlen_func(
            q, *pages, cu_q, cu_k, *longest, causal=True, window_size=torch.tensor([6, 0]),
            return_attn_probs=True, block_table=table,
        )  # fmt: skip
        assert lse.shape == (4, 5)
        for b, (rows, keys) in enumerate(((slice(0, 3), 10), (slice(3, 5), 7))):
            k, v = (x[table[b].long()].flatten(0, 1)[:keys] for x in pages)
            torch.testing.assert_close(out[rows], plain(q[rows], k, v, True, (6, 0)))


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
        assert fa.install() is first
        module = importlib.import_module("flash_attn")
        assert module.flash_attn_func is fa.flash_attn_func
        interface = importlib.import_module("flash_attn.flash_attn_interface")
        assert interface.flash_attn_with_kvcache is fa.flash_attn_with_kvcache
        assert importlib.import_module("flash_attn.bert_padding").pad_input is fa.pad_input
        rotary = importlib.import_module("flash_attn.layers.rotary")
        assert rotary.apply_rotary_emb is fa.apply_rotary_emb
        assert module.__version__.startswith("2.8.") and not hasattr(module, "pad_input")
        for name in ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.layers.rotary"):
            assert importlib.util.find_spec(name) is not None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("flash_attn.losses")
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("flash_attn")
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
