"""The problems every backend is held to: one line each, every rule in some line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from portattn.arguments import Options, options
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import Layout

Lengths = tuple[tuple[int, int], ...]
Broadcast = tuple[bool, bool, bool, bool]
FULL: Broadcast = (True, True, True, True)


@dataclass(frozen=True)
class Case:
    """One problem. `lengths` holds (queries, keys) of each sequence; dense ones are all equal.

    bias and mask name the dimensions of [B, H, Sq, Sk] that aren't broadcast. `strides`: "bhsd" is
    a transposed view, "sliced" has a last stride of 2, "padded" has gaps between rows. `stored` is
    the dtype of a cache with scales.
    """

    name: str
    lengths: Lengths
    layout: Layout = "dense"
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 16
    head_dim_v: int | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    scale: float | None = None
    alibi: Literal["", "H", "BH"] = ""
    bias: Broadcast | None = None
    bias_masks: bool = False
    mask: Broadcast | None = None
    mask_keeps: float = 0.7
    sinks: bool = False
    dropout_p: float = 0.0
    page_size: int = 0
    leftpad: bool = False
    batch_idx: bool = False
    strides: Literal["", "bhsd", "sliced", "padded"] = ""
    equal_rows: bool = False
    stored: Literal["", "int8", "float8_e4m3fn"] = ""
    differentiable: bool = True


def dense(name: str, batch: int, queries: int, keys: int, **kwargs: object) -> Case:
    return replace(Case(name, ((queries, keys),) * batch), **kwargs)  # type: ignore[arg-type]


def ragged(name: str, *lengths: tuple[int, int], **kwargs: object) -> Case:
    return replace(Case(name, lengths, layout="varlen"), **kwargs)  # type: ignore[arg-type]


def cached(name: str, queries: int, *keys: int, **kwargs: object) -> Case:
    case = Case(name, tuple((queries, k) for k in keys), layout="cache", differentiable=False)
    return replace(case, **kwargs)  # type: ignore[arg-type]


_ALIGNED = [
    dense(f"causal {q}x{k}", 2, q, k, causal=True)
    for q, k in ((17, 17), (5, 40), (40, 5), (1, 33), (64, 65), (129, 200))
]
_WINDOWS = [
    dense(f"window {left},{right} causal={causal}", 1, 33, 40, window=(left, right), causal=causal)
    for left, right, causal in (
        (4, 0, True),
        (0, 0, False),
        (7, 3, False),
        (-1, 5, False),
        (5, -1, False),
        (100, 100, True),
    )
] + [dense("window 5,-1 of more queries than keys", 1, 40, 12, window=(5, -1))]
_LENGTHS = [
    dense(f"length {q}x{k}", 1, q, k)
    for q, k in ((1, 1), (2, 3), (63, 65), (64, 64), (65, 63), (127, 129), (128, 257), (200, 211))
]
_DIMS = [
    dense(f"head_dim {d}/{dv}", 1, 9, 19, head_dim=d, head_dim_v=dv, causal=True)
    for d, dv in (
        (1, 1),
        (8, 8),
        (59, 59),
        (111, 111),
        (128, 128),
        (256, 256),
        (192, 128),
        (40, 24),
    )
]
_GROUPS = [
    dense(f"heads {h}/{kv}", 2, 12, 20, heads=h, kv_heads=kv, causal=True)
    for h, kv in ((1, 1), (6, 2), (4, 1), (8, 1), (9, 3))
]
_BIASES = [
    dense(f"bias {''.join('01'[full] for full in shape)}", 2, 9, 13, heads=4, bias=shape)
    for shape in (
        FULL,
        (False, True, True, True),
        (True, False, False, True),
        (False, False, True, True),
        (False, True, False, False),
        (True, True, True, False),
        (False, False, False, False),
    )
]
_MASKS = [
    dense(f"mask {''.join('01'[full] for full in shape)}", 2, 9, 13, heads=4, mask=shape)
    for shape in (FULL, (True, False, False, True), (False, False, True, True))
]

CASES: tuple[Case, ...] = (
    dense("plain", 2, 24, 24),
    *_ALIGNED,
    *_WINDOWS,
    *_LENGTHS,
    *_DIMS,
    *_GROUPS,
    *_BIASES,
    *_MASKS,
    dense("softcap", 1, 20, 30, softcap=2.0, causal=True),
    dense("alibi per head", 2, 20, 30, alibi="H", heads=4),
    dense("alibi per sequence, causal", 2, 20, 30, alibi="BH", causal=True, heads=4),
    dense(
        "bias and mask", 2, 9, 13, bias=(False, True, True, True), mask=(True, False, True, True)
    ),
    dense("bias of -inf", 1, 9, 13, bias=FULL, bias_masks=True),
    dense("mask and causal", 2, 13, 13, mask=(True, False, True, True), causal=True),
    dense("mask with grouped heads", 2, 7, 13, heads=6, kv_heads=2, mask=FULL),
    dense("sinks", 2, 15, 21, heads=6, kv_heads=2, sinks=True, causal=True),
    dense("sinks and blind rows", 1, 21, 9, sinks=True, causal=True),
    dense("mask, mostly blind", 2, 9, 13, mask=FULL, mask_keeps=0.05),
    dense("mask, all blind", 1, 5, 7, mask=FULL, mask_keeps=0.0),
    dense("one visible key", 1, 9, 30, window=(0, 0)),
    dense("all rows equal", 1, 9, 30, equal_rows=True),
    dense("large logits", 1, 12, 24, scale=1e4 / 16),
    dense("large logits, causal", 1, 24, 24, scale=-1e4 / 16, causal=True),
    dense("scale", 1, 12, 24, scale=0.07),
    dense("no queries", 2, 0, 5),
    dense("no keys", 2, 5, 0),
    dense("no keys, sinks", 2, 5, 0, sinks=True),
    dense("no sequences", 0, 5, 5),
    dense("strides bhsd", 2, 17, 23, strides="bhsd", causal=True),
    dense("strides sliced", 2, 17, 23, strides="sliced"),
    dense("strides padded", 2, 17, 23, strides="padded", causal=True, heads=4, kv_heads=2),
    dense("dropout", 2, 17, 23, heads=4, kv_heads=2, dropout_p=0.3, causal=True),
    dense(
        "everything",
        2,
        30,
        41,
        heads=4,
        kv_heads=2,
        head_dim=24,
        head_dim_v=16,
        causal=True,
        window=(11, 0),
        softcap=3.0,
        alibi="BH",
        bias=FULL,
        mask=(True, False, True, True),
        sinks=True,
        dropout_p=0.2,
    ),
    ragged("varlen", (5, 9), (17, 17), (1, 33), (40, 12)),
    ragged("varlen causal", (5, 9), (17, 17), (1, 33), (40, 12), causal=True),
    ragged("varlen with empty members", (0, 9), (7, 0), (0, 0), (5, 5), causal=True),
    ragged("varlen, all empty", (0, 0), (0, 0)),
    ragged(
        "varlen features",
        (9, 9),
        (12, 20),
        heads=6,
        kv_heads=2,
        causal=True,
        window=(6, 0),
        softcap=3.0,
        alibi="BH",
        sinks=True,
    ),
    ragged("varlen bias and mask", (9, 9), (12, 20), bias=FULL, mask=(True, True, True, True)),
    ragged("varlen dropout", (9, 9), (12, 20), dropout_p=0.4),
    ragged(
        "varlen paged", (5, 9), (17, 40), (3, 16), page_size=16, causal=True, differentiable=False
    ),
    cached("cache", 1, 5, 40, 17, heads=4, kv_heads=2),
    *(
        cached(f"cache of {n} queries", n, 16, 40, 33, heads=8, kv_heads=2, causal=True)
        for n in (1, 2, 5, 16)
    ),
    cached("cache rows elsewhere", 1, 5, 40, 17, batch_idx=True),
    cached("cache with left padding", 2, 9, 40, 17, leftpad=True, causal=True),
    cached("cache, empty sequences", 1, 0, 3, 0),
    cached(
        "cache features",
        3,
        20,
        7,
        heads=4,
        kv_heads=2,
        causal=True,
        window=(5, 0),
        softcap=2.0,
        alibi="H",
        sinks=True,
    ),
    cached("cache bias and mask", 2, 20, 7, bias=FULL, mask=(True, False, True, True)),
    cached("cache 576/512", 1, 21, heads=16, kv_heads=1, head_dim=576, head_dim_v=512),
    *(
        cached(f"pages of {size}", 1, 300, 17, 1, heads=4, kv_heads=2, page_size=size, causal=True)
        for size in (16, 64, 256)
    ),
    *(
        cached(f"{stored} cache", 1, 5, 40, 17, heads=4, kv_heads=2, stored=stored)
        for stored in ("int8", "float8_e4m3fn")
    ),
    *(
        cached(
            f"{stored} pages and features",
            3,
            40,
            17,
            heads=6,
            kv_heads=2,
            head_dim=40,
            head_dim_v=24,
            page_size=16,
            causal=True,
            window=(30, 0),
            softcap=2.0,
            sinks=True,
            stored=stored,
        )
        for stored in ("int8", "float8_e4m3fn")
    ),
    cached("pages and windows", 4, 70, 35, page_size=16, causal=True, window=(20, 0)),
)


@dataclass(frozen=True)
class Built:
    """A case as tensors, with the indices that say what of K and V no query may see."""

    tensors: AttentionTensors
    options: Options


def build(
    case: Case, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Built:
    """Fresh random tensors for a case."""

    def normal(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(of).to(device)

    batch = len(case.lengths)
    longest_q = max((q for q, _ in case.lengths), default=5)
    longest_k = max((k for _, k in case.lengths), default=5)
    dim_v = case.head_dim_v or case.head_dim
    tensors = _lay_out(case, normal, batch, longest_q, longest_k, dim_v, device, generator)
    if case.stored:
        _store(tensors, getattr(torch, case.stored))
    if case.equal_rows:
        tensors.k = tensors.k[:, :1].expand_as(tensors.k)
    scores = (batch, case.heads, longest_q, longest_k)
    if case.bias is not None:
        tensors.bias = normal(*_shape(scores, case.bias))
        if case.bias_masks:
            hidden = normal(*tensors.bias.shape, of=torch.float32) > 0.8
            tensors.bias = tensors.bias.masked_fill(hidden, float("-inf"))
    if case.mask is not None:
        draw = torch.rand(_shape(scores, case.mask), generator=generator)
        tensors.mask = (draw < case.mask_keeps).to(device)
    if case.alibi:
        shape = (case.heads,) if case.alibi == "H" else (batch, case.heads)
        tensors.alibi_slopes = normal(*shape, of=torch.float32).abs()
    if case.sinks:
        tensors.sinks = normal(case.heads)
    if case.dropout_p:
        tensors.rng_state = torch.tensor([2**40 + 12345, 7], device=device)
    settings = options(
        tensors.q,
        causal=case.causal,
        softmax_scale=case.scale,
        window_size=case.window,
        softcap=case.softcap,
        dropout_p=case.dropout_p,
        max_seqlen_q=0 if case.layout == "dense" else longest_q,
        max_seqlen_k=0 if case.layout == "dense" else longest_k,
    )
    return Built(tensors, settings)


def _store(tensors: AttentionTensors, dtype: torch.dtype) -> None:
    """Keys and values as numbers of another dtype, with another scale for every sequence and head;
    one scale covers what any sequence may find in a shared store."""
    batch, kv_heads = len(tensors.q), tensors.k.shape[-2]
    for name in ("k", "v"):
        values = getattr(tensors, name).float()
        reach = float(values.abs().max()) if values.numel() else 1.0
        largest = 127.0 if dtype == torch.int8 else 448.0
        held = values * (largest / reach)
        setattr(tensors, name, (held.round() if dtype == torch.int8 else held).to(dtype))
        steps = torch.arange(batch * kv_heads, dtype=torch.float32, device=values.device)
        scale = (1 + steps.view(batch, kv_heads) / 8) * (reach / largest)
        setattr(tensors, f"{name}_scale", scale)


def _shape(full: tuple[int, ...], flags: Broadcast) -> tuple[int, ...]:
    return tuple(size if flag else 1 for size, flag in zip(full, flags, strict=True))


def _lay_out(
    case: Case,
    normal: Callable[..., Tensor],
    batch: int,
    longest_q: int,
    longest_k: int,
    dim_v: int,
    device: torch.device,
    generator: torch.Generator,
) -> AttentionTensors:
    dims = (case.head_dim, dim_v)
    if case.layout == "dense":
        q = normal(batch, longest_q, case.heads, case.head_dim)
        k, v = (normal(batch, longest_k, case.kv_heads, d) for d in dims)
        return AttentionTensors(*(_with_strides(t, case.strides) for t in (q, k, v)))
    keys = [k for _, k in case.lengths]
    if case.layout == "varlen":
        # Five rows past the last sequence belong to none.
        q = normal(sum(n for n, _ in case.lengths) + 5, case.heads, case.head_dim)
        tensors = AttentionTensors(q, q, q)
        tensors.cu_seqlens_q = _cumulative([n for n, _ in case.lengths], device)
        tensors.cu_seqlens_k = _cumulative(keys, device)
        if not case.page_size:
            tensors.k, tensors.v = (normal(sum(keys) + 5, case.kv_heads, d) for d in dims)
            return tensors
    else:
        q = normal(batch, longest_q, case.heads, case.head_dim)
        tensors = AttentionTensors(q, q, q)
        pads = [i % 3 for i in range(batch)] if case.leftpad else [0] * batch
        keys = [k + pad for k, pad in zip(keys, pads, strict=True)]
        tensors.seqused_k = torch.tensor(keys, dtype=torch.int32, device=device)
        if case.leftpad:
            tensors.leftpad_k = torch.tensor(pads, dtype=torch.int32, device=device)
    if case.page_size:
        per_row = -(-max(keys) // case.page_size) + 1
        pages = batch * per_row + 2
        order = torch.randperm(pages, generator=generator)[: batch * per_row]
        tensors.block_table = order.view(batch, per_row).to(torch.int32).to(device)
        tensors.k, tensors.v = (normal(pages, case.page_size, case.kv_heads, d) for d in dims)
        return tensors
    rows = batch + 2 if case.batch_idx else batch
    if case.batch_idx:
        chosen = torch.randperm(rows, generator=generator)[:batch]
        tensors.cache_batch_idx = chosen.to(torch.int32).to(device)
    tensors.k, tensors.v = (normal(rows, longest_k + 6, case.kv_heads, d) for d in dims)
    return tensors


def _cumulative(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(
        0, dtype=torch.int32
    )


def _with_strides(tensor: Tensor, strides: str) -> Tensor:
    """The same values under other strides."""
    if strides == "bhsd":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if strides == "sliced":
        return torch.stack((tensor, torch.full_like(tensor, float("nan"))), -1).flatten(-2)[
            ..., ::2
        ]
    if strides == "padded":
        wide = torch.full_like(tensor, float("nan")).repeat(1, 1, 1, 2)
        wide[..., : tensor.shape[-1]] = tensor
        return wide[..., : tensor.shape[-1]]
    return tensor
