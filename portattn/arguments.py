"""From the arguments of a call to an AttentionProblem, or to one error that names the culprit."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem, Layout, Operation
from portattn.errors import ArgumentError, DeviceError, DtypeError, ShapeError

QUERY_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of a cache whose keys and values are stored numbers times scales.
SCALED_DTYPES = (torch.int8, torch.float8_e4m3fn)


class Options(NamedTuple):
    """The scalar arguments of a call; hashable, so part of the decision's key."""

    softmax_scale: float
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    dropout_p: float = 0.0
    deterministic: bool = False
    max_seqlen_q: int = 0  # "varlen" and "cache" only
    max_seqlen_k: int = 0
    backend: str | None = None


def options(
    q: Tensor,
    *,
    causal: bool,
    softmax_scale: float | None,
    window_size: tuple[int, int],
    softcap: float,
    dropout_p: float = 0.0,
    deterministic: bool = False,
    max_seqlen_q: int | Tensor = 0,
    max_seqlen_k: int | Tensor = 0,
    backend: str | None = None,
) -> Options:
    """Fill the defaults: scale from the head dim, causal as a window that ends at the diagonal."""
    # Callers that take a maximum of lengths on the device have it as a tensor.
    if isinstance(max_seqlen_q, Tensor):
        max_seqlen_q = int(max_seqlen_q)
    if isinstance(max_seqlen_k, Tensor):
        max_seqlen_k = int(max_seqlen_k)
    left, right = window_size
    return Options(
        q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale),
        causal,
        (left, 0 if causal and right >= -1 else right),
        softcap,
        dropout_p,
        deterministic,
        max_seqlen_q,
        max_seqlen_k,
        backend,
    )


# causal, softmax_scale, window left and right, softcap, dropout_p, deterministic, max_seqlen_q,
# max_seqlen_k, backend: as they were given.
Scalars = tuple[
    bool, float | None, int, int, float, float, bool, int | Tensor, int | Tensor, str | None
]


def from_scalars(q: Tensor, scalars: Scalars) -> Options:
    """The options of a call."""
    causal, softmax_scale, left, right, softcap, dropout_p, deterministic = scalars[:7]
    max_seqlen_q, max_seqlen_k, backend = scalars[7:]
    return options(
        q,
        causal=causal,
        softmax_scale=softmax_scale,
        window_size=(left, right),
        softcap=softcap,
        dropout_p=dropout_p,
        deterministic=deterministic,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        backend=backend,
    )


def layout_of(tensors: AttentionTensors) -> Layout:
    """The layout follows from which lengths were given."""
    if tensors.cu_seqlens_q is not None:
        return "varlen"
    return "dense" if tensors.seqused_k is None else "cache"


def describe(
    operation: Operation,
    tensors: AttentionTensors,
    options: Options,
    *,
    bias_grad: bool = False,
    lse_grad: bool = False,
) -> AttentionProblem:
    """Check everything that shapes, dtypes, devices and scalars can show; describe the problem."""
    layout = layout_of(tensors)
    _check_scalars(options)
    _check_dtypes_and_devices(tensors, layout)
    _check_ranks(tensors, layout)
    _check_heads(tensors)
    batch, seqlen_q, seqlen_k = _lengths(tensors, options, layout)
    _check_extras(tensors, batch, seqlen_q, seqlen_k)
    q, k, v = tensors.q, tensors.k, tensors.v
    varlen = layout == "varlen"
    paged = tensors.block_table is not None
    return AttentionProblem(
        operation=operation,
        layout=layout,
        dtype=q.dtype,
        batch=batch,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        heads=q.shape[-2],
        kv_heads=k.shape[-2],
        head_dim=q.shape[-1],
        head_dim_v=v.shape[-1],
        softmax_scale=options.softmax_scale,
        kv_dtype=None if k.dtype == q.dtype else k.dtype,
        causal=options.causal,
        window=options.window,
        softcap=options.softcap,
        alibi=tensors.alibi_slopes is not None,
        bias=tensors.bias is not None,
        bias_grad=bias_grad,
        mask=tensors.mask is not None,
        sinks=tensors.sinks is not None,
        dropout_p=options.dropout_p,
        deterministic=options.deterministic,
        lse_grad=lse_grad,
        page_size=k.shape[1] if paged else 0,
        leftpad=tensors.leftpad_k is not None,
        kv_scale=tensors.k_scale is not None,
        unit_stride=all(t.stride(-1) == 1 or t.shape[-1] == 1 for t in (q, k, v)),
        aligned=all(_aligned(t) for t in (q, k, v)),
        full_size_mask=_full_size(tensors, seqlen_q, seqlen_k),
        total_q=q.shape[0] if varlen else None,
        total_k=k.shape[0] if varlen and not paged else None,
    )


def _aligned(tensor: Tensor) -> bool:
    """Whether it begins, and its rows, heads and sequences follow each other, at multiples of 16
    bytes; memory itself is taken to begin at one.
    """
    step = max(1, 16 // tensor.element_size())
    strides = zip(tensor.shape[:-1], tensor.stride(), strict=False)
    return tensor.storage_offset() % step == 0 and all(
        size == 1 or (stride > 0 and stride % step == 0) for size, stride in strides
    )


def as_scores_shape(name: str, tensor: Tensor | None) -> Tensor | None:
    """A bias or mask with leading dimensions of 1 up to [B, H, Sq, Sk]."""
    if tensor is None or tensor.dim() == 4:
        return tensor
    if tensor.dim() > 4 or tensor.dim() == 0:
        raise ShapeError(name, "must have 1 to 4 dimensions", tuple(tensor.shape))
    return tensor[(None,) * (4 - tensor.dim())]


def _full_size(tensors: AttentionTensors, seqlen_q: int, seqlen_k: int) -> bool:
    """Whether the bias and mask, together, already hold an entry per score of a matrix."""
    given = [t for t in (tensors.bias, tensors.mask) if t is not None]
    return any(tuple(t.shape[2:]) == (seqlen_q, seqlen_k) for t in given) or not given


def _check_scalars(options: Options) -> None:
    if not math.isfinite(options.softmax_scale):
        raise ArgumentError("softmax_scale", "must be finite", options.softmax_scale)
    if not (options.softcap >= 0.0 and math.isfinite(options.softcap)):
        raise ArgumentError("softcap", "must be 0 (off) or positive", options.softcap)
    if not 0.0 <= options.dropout_p < 1.0:
        raise ArgumentError("dropout_p", "must be at least 0 and below 1", options.dropout_p)
    for side in options.window:
        if not isinstance(side, int) or side < -1:
            raise ArgumentError(
                "window_size",
                "must be two whole numbers, each -1 (unbounded) or at least 0",
                options.window,
            )


def _check_dtypes_and_devices(tensors: AttentionTensors, layout: Layout) -> None:
    q, k, v = tensors.q, tensors.k, tensors.v
    if q.dtype not in QUERY_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in QUERY_DTYPES)
        raise DtypeError("q", f"must be one of {names}", q.dtype)
    if k.dtype != v.dtype:
        raise DtypeError("v", f"must have the dtype of k, {k.dtype}", v.dtype)
    # Only a cache may be stored in another dtype than the queries'.
    if layout != "cache" and k.dtype != q.dtype:
        raise DtypeError("k", f"must have the dtype of q, {q.dtype}", k.dtype)
    for name in ("k", "v", *_EXTRAS):
        tensor = getattr(tensors, name)
        if tensor is not None and tensor.device != q.device:
            raise DeviceError(name, f"must be on the device of q, {q.device}", tensor.device)


_EXTRAS = (
    "bias",
    "mask",
    "alibi_slopes",
    "sinks",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "seqused_k",
    "block_table",
    "cache_batch_idx",
    "leftpad_k",
    "k_scale",
    "v_scale",
)


def _check_ranks(tensors: AttentionTensors, layout: Layout) -> None:
    rank_q, names_q = (3, "[T, H, D]") if layout == "varlen" else (4, "[B, S, H, D]")
    rank_k, names_k = rank_q, names_q
    if tensors.block_table is not None:
        rank_k, names_k = 4, "[pages, page_size, Hkv, D]"
    for name, rank, names in (
        ("q", rank_q, names_q),
        ("k", rank_k, names_k),
        ("v", rank_k, names_k),
    ):
        tensor = getattr(tensors, name)
        if tensor.dim() != rank:
            raise ShapeError(name, f"must be {names}", f"shape {tuple(tensor.shape)}")
    if min(tensors.q.shape[-1], tensors.v.shape[-1]) < 1:
        raise ShapeError("q", "must have a head_dim of at least 1", tuple(tensors.q.shape))


def _check_heads(tensors: AttentionTensors) -> None:
    q, k, v = tensors.q, tensors.k, tensors.v
    if k.shape[:-1] != v.shape[:-1]:
        raise ShapeError(
            "v", f"must equal k, {tuple(k.shape)}, in all but the last dimension", tuple(v.shape)
        )
    if q.shape[-1] != k.shape[-1]:
        raise ShapeError(
            "k", f"must have the head_dim of q, {q.shape[-1]}", f"shape {tuple(k.shape)}"
        )
    heads, kv_heads = q.shape[-2], k.shape[-2]
    if kv_heads == 0 or heads % kv_heads or heads == 0:
        raise ShapeError(
            "k", f"must have a head count that divides that of q, {heads}", f"{kv_heads} heads"
        )


def _lengths(tensors: AttentionTensors, options: Options, layout: Layout) -> tuple[int, int, int]:
    """Batch and the longest query and key lengths, after checking the tensors that set them."""
    q, k = tensors.q, tensors.k
    if layout == "dense":
        if k.shape[0] != q.shape[0]:
            raise ShapeError("k", f"must have the batch of q, {q.shape[0]}", tuple(k.shape))
        return q.shape[0], q.shape[1], k.shape[1]
    if layout == "varlen":
        assert tensors.cu_seqlens_q is not None
        if tensors.cu_seqlens_k is None:
            raise ArgumentError("cu_seqlens_k", "must be given with cu_seqlens_q")
        batch = max(tensors.cu_seqlens_q.numel() - 1, 0)
        for name in ("cu_seqlens_q", "cu_seqlens_k"):
            _check_index(name, getattr(tensors, name), (batch + 1,))
    else:
        batch = q.shape[0]
        _check_index("seqused_k", tensors.seqused_k, (batch,))
    for name in ("max_seqlen_q", "max_seqlen_k"):
        if layout == "varlen" and getattr(options, name) < 0:
            raise ArgumentError(name, "must be at least 0", getattr(options, name))
    _check_cache_indices(tensors, batch)
    _check_scales(tensors, batch)
    return batch, q.shape[1] if layout == "cache" else options.max_seqlen_q, options.max_seqlen_k


def _check_cache_indices(tensors: AttentionTensors, batch: int) -> None:
    if tensors.block_table is not None:
        table = tensors.block_table
        _check_index("block_table", table, (batch, table.shape[-1] if table.dim() else 0))
        if tensors.cache_batch_idx is not None:
            raise ArgumentError("cache_batch_idx", "can't be combined with block_table")
    elif (
        tensors.seqused_k is not None
        and tensors.cache_batch_idx is None
        and tensors.k.shape[0] != batch
    ):
        raise ShapeError(
            "k",
            f"must have the batch of q, {batch}, or use cache_batch_idx",
            tuple(tensors.k.shape),
        )
    for name in ("cache_batch_idx", "leftpad_k"):
        tensor = getattr(tensors, name)
        if tensor is not None:
            _check_index(name, tensor, (batch,))


def _check_scales(tensors: AttentionTensors, batch: int) -> None:
    scaled = tensors.k.dtype in SCALED_DTYPES
    for name in ("k_scale", "v_scale"):
        scale = getattr(tensors, name)
        if scale is None and scaled:
            raise ArgumentError(name, f"must be given for a cache of {tensors.k.dtype}")
        if scale is None:
            continue
        if not scaled:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in SCALED_DTYPES)
            raise ArgumentError(name, f"needs a cache of {names}", tensors.k.dtype)
        if scale.dtype != torch.float32:
            raise DtypeError(name, "must be float32", scale.dtype)
        if tuple(scale.shape) != (batch, tensors.k.shape[-2]):
            expected = f"must be [{batch}, {tensors.k.shape[-2]}], per sequence and kv head"
            raise ShapeError(name, expected, tuple(scale.shape))


def _check_index(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    assert tensor is not None
    if tensor.dtype != torch.int32:
        raise DtypeError(name, "must be int32", tensor.dtype)
    if tuple(tensor.shape) != shape:
        raise ShapeError(name, f"must have shape {shape}", tuple(tensor.shape))


def _check_extras(tensors: AttentionTensors, batch: int, seqlen_q: int, seqlen_k: int) -> None:
    heads = tensors.q.shape[-2]
    scores = (batch, heads, seqlen_q, seqlen_k)
    for name in ("bias", "mask"):
        tensor = getattr(tensors, name)
        if tensor is None:
            continue
        if any(n not in (1, full) for n, full in zip(tensor.shape, scores, strict=True)):
            raise ShapeError(name, f"must broadcast to {scores}", tuple(tensor.shape))
    if tensors.mask is not None and tensors.mask.dtype != torch.bool:
        raise DtypeError("mask", "must be bool, True takes part", tensors.mask.dtype)
    if tensors.bias is not None and not tensors.bias.is_floating_point():
        raise DtypeError(
            "bias", "must be a float dtype; a bool mask goes to mask=", tensors.bias.dtype
        )
    slopes, sinks = tensors.alibi_slopes, tensors.sinks
    if slopes is not None:
        if slopes.dtype != torch.float32:
            raise DtypeError("alibi_slopes", "must be float32", slopes.dtype)
        if tuple(slopes.shape) not in ((heads,), (batch, heads)):
            raise ShapeError(
                "alibi_slopes", f"must be [{heads}] or [{batch}, {heads}]", tuple(slopes.shape)
            )
    if sinks is not None:
        if not sinks.is_floating_point():
            raise DtypeError("sinks", "must be a float dtype", sinks.dtype)
        if tuple(sinks.shape) != (heads,):
            raise ShapeError("sinks", f"must be [{heads}]", tuple(sinks.shape))
