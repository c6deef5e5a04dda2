"""Attention over dense, variable-length and cached keys; shapes and names as in flash-attn."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn import arguments, calls, ops
from portattn.arguments import as_scores_shape
from portattn.cache import CacheView, KVCache
from portattn.dispatch.backend import AttentionTensors
from portattn.errors import ArgumentError, ShapeError

Window = tuple[int, int]
Result = Tensor | tuple[Tensor, Tensor]
# bias, mask, alibi_slopes and sinks.
_Scores = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    deterministic: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> Result:
    """Softmax attention of dense queries over dense keys, differentiable.

    q [B, Sq, H, D], k [B, Sk, Hkv, D], v [B, Sk, Hkv, Dv]; H a multiple of Hkv. float16, bfloat16,
    float32 or float64, any strides. Returns out [B, Sq, H, Dv], and with `return_lse` also the
    natural-log softmax normaliser lse [B, H, Sq], float32.

    causal: query i sees keys up to i + Sk - Sq (bottom-right aligned).
    softmax_scale: factor on q·k, default D ** -0.5. softcap: scores become cap * tanh(s / cap).
    window_size: (left, right) keys around i + Sk - Sq, -1 is unbounded.
    alibi_slopes: [H] or [B, H] float32. sinks: [H] logits that only join the denominator.
    bias: float, broadcastable to [B, H, Sq, Sk], added to the scores; -inf masks.
    mask: bool, same shape rule, True takes part. Rows that see no key give 0 and lse -inf.
    dropout_p: probability of dropping an attention weight. deterministic: same gradient bits for
    the same call. backend: the backend that must run, or an error.

    Raises ArgumentError and its kinds for bad arguments, NoBackendError when nothing can run.
    """
    tensors = AttentionTensors(
        q,
        k,
        v,
        as_scores_shape("bias", bias),
        as_scores_shape("mask", mask),
        alibi_slopes,
        sinks,
    )
    if dropout_p:
        tensors.rng_state = _rng_state(q)
    left, right = window_size
    out, lse = ops.attend(
        (causal, softmax_scale, left, right, softcap, dropout_p, deterministic, 0, 0, backend),
        tensors,
    )
    return (out, lse) if return_lse else out


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    deterministic: bool = False,
    return_lse: bool = False,
    block_table: Tensor | None = None,
    backend: str | None = None,
) -> Result:
    """Attention of B sequences of different lengths packed without padding, differentiable.

    q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv]; sequence b owns rows cu_seqlens[b] up to
    cu_seqlens[b + 1] ([B + 1] int32, from 0, never decreasing). max_seqlen_q and max_seqlen_k are
    at least the longest lengths. Returns out [Tq, H, Dv], with `return_lse` also lse [H, Tq].

    With block_table [B, pages] int32, k and v are pages [P, page_size, Hkv, D(v)] and cu_seqlens_k
    gives only the key counts (no gradient then). bias and mask broadcast to
    [B, H, max_seqlen_q, max_seqlen_k]. The other arguments are those of `attention`.
    """
    tensors = AttentionTensors(
        q,
        k,
        v,
        as_scores_shape("bias", bias),
        as_scores_shape("mask", mask),
        alibi_slopes,
        sinks,
        cu_seqlens_q,
        cu_seqlens_k,
        block_table=block_table,
    )
    if dropout_p:
        tensors.rng_state = _rng_state(q)
    left, right = window_size
    scalars = (
        causal, softmax_scale, left, right, softcap, dropout_p, deterministic,
        max_seqlen_q, max_seqlen_k, backend,
    )  # fmt: skip
    out, lse = ops.attend(scalars, tensors)
    return (out, lse) if return_lse else out


def attention_with_kvcache(
    q: Tensor,
    cache: KVCache,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> Result:
    """Append k and v to a cache, then attend to all that it holds; for inference, no gradient.

    q [B, Sq, H, D]; k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv] are optional. Sequence b's queries
    are its newest positions. bias and mask broadcast to [B, H, Sq, longest]. Returns out
    [B, Sq, H, Dv], with `return_lse` also lse [B, H, Sq]. deterministic: where keys are split over
    a device, a sequence is split by its own length alone. The rest as in `attention`.

    Raises CacheFullError, with the cache unchanged, when k and v don't fit.
    """
    if (k is None) != (v is None):
        raise ArgumentError("k" if k is None else "v", "k and v must be given together")
    bias, mask = as_scores_shape("bias", bias), as_scores_shape("mask", mask)
    exact = not (bias is None and mask is None)

    scores = bias, mask, alibi_slopes, sinks
    left, right = window_size
    given = (causal, softmax_scale, left, right, softcap, 0.0, deterministic, 0)
    if k is not None and v is not None:
        # A call that can't run must leave the cache as it was; a compiled one was tried before.
        if not torch.compiler.is_compiling():
            view = cache.view()
            longest = view.max_seqlen_k + k.shape[1]
            longest = longest if exact else _bound(longest)
            options = arguments.from_scalars(q, (*given, longest, backend))
            calls.decide("decode", _cached(q, view, scores), options)
        cache.append(k, v)
    view = cache.view()
    longest = view.max_seqlen_k if exact else _bound(view.max_seqlen_k)
    out, lse = ops.attend((*given, longest, backend), _cached(q, view, scores))
    return (out, lse) if return_lse else out


def _cached(q: Tensor, view: CacheView, scores: _Scores) -> AttentionTensors:
    """The tensors of a call over a cache."""
    k, v, seqused_k, _, block_table, cache_batch_idx, leftpad_k, k_scale, v_scale = view
    bias, mask, alibi_slopes, sinks = scores
    return AttentionTensors(
        q, k, v, bias, mask, alibi_slopes, sinks, None, None,
        seqused_k, block_table, cache_batch_idx, leftpad_k, None, k_scale, v_scale,
    )  # fmt: skip


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention with its layout and its causal alignment.

    query [..., H, Sq, D], key [..., Hkv, Sk, D], value [..., Hkv, Sk, Dv]; out [..., H, Sq, Dv].
    attn_mask: bool (True takes part) or float (added), broadcastable to [..., H, Sq, Sk].
    is_causal is top-left aligned: query i sees keys up to i, whatever the lengths.
    """
    if is_causal and attn_mask is not None:
        raise ArgumentError("attn_mask", "must be None when is_causal is set")
    if query.dim() < 3:
        raise ShapeError("query", "must be [..., H, S, D]", f"shape {tuple(query.shape)}")
    if query.shape[-3] != key.shape[-3] and not enable_gqa:
        raise ShapeError("key", "must have as many heads as query unless enable_gqa", key.shape[-3])
    q, k, v = (
        _from_bhsd(name, t) for name, t in (("query", query), ("key", key), ("value", value))
    )
    window = (-1, -1)
    if is_causal:
        # Top-left causal: keys past Sq are never seen; with more queries than keys, the
        # bottom-right diagonal shifted by Sq - Sk is the top-left one.
        k, v = k[:, : q.shape[1]], v[:, : q.shape[1]]
        window = (-1, q.shape[1] - k.shape[1])
    mask = as_scores_shape("attn_mask", _flat_mask(attn_mask, query))
    boolean = mask is not None and mask.dtype == torch.bool
    out = attention(
        q,
        k,
        v,
        softmax_scale=scale,
        window_size=window,
        bias=None if boolean else mask,
        mask=mask if boolean else None,
        dropout_p=dropout_p,
    )
    assert isinstance(out, Tensor)
    return out.transpose(1, 2).reshape(*query.shape[:-1], value.shape[-1])


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Exact attention over the union of two disjoint key sets from the results over each.

    out_a, out_b [B, S, H, Dv] with lse_a, lse_b [B, H, S], or varlen [T, H, Dv] with [H, T].
    Returns (out, lse) in those shapes and dtypes. A part that saw no key (lse -inf) contributes
    nothing; two such parts give 0 and -inf. Parts must not both include the same sinks.
    Source: FlashAttention (arXiv 2205.14135), section 3.1, written for log-sum-exp.
    """
    if out_a.shape != out_b.shape:
        raise ShapeError(
            "out_b", f"must have the shape of out_a, {tuple(out_a.shape)}", tuple(out_b.shape)
        )
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        if lse.transpose(-1, -2).shape != out_a.shape[:-1]:
            raise ShapeError(
                name,
                f"must hold one value per row of out_a, {tuple(out_a.shape)}",
                tuple(lse.shape),
            )
    lse = torch.logaddexp(lse_a, lse_b)
    # exp(lse_part - lse): 0 for an empty part, also when both are empty (-inf - -inf).
    weights = (
        torch.where(part == float("-inf"), 0.0, (part - lse).exp()).transpose(-1, -2)[..., None]
        for part in (lse_a, lse_b)
    )
    out = sum(
        torch.where(weight == 0, 0.0, part.to(weight.dtype) * weight)
        for weight, part in zip(weights, (out_a, out_b), strict=True)
    )
    assert isinstance(out, Tensor)
    return out.to(out_a.dtype), lse


def _bound(length: int) -> int:
    """A bound that stays the same for many steps, so that their decision is made once."""
    return 1 << max(length - 1, 0).bit_length()


def _rng_state(q: Tensor) -> Tensor:
    """A Philox seed and offset from torch's generator of q's device."""
    return torch.randint(0, 2**62, (2,), dtype=torch.int64, device=q.device)


def _from_bhsd(name: str, tensor: Tensor) -> Tensor:
    """[..., H, S, D] as [B, S, H, D], a view where the leading dimensions allow."""
    if tensor.dim() < 3:
        raise ShapeError(name, "must be [..., H, S, D]", f"shape {tuple(tensor.shape)}")
    batched = tensor[None] if tensor.dim() == 3 else tensor.flatten(0, -4)
    return batched.transpose(1, 2)


def _flat_mask(attn_mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Leading batch dimensions of a mask folded into one, as those of the query are."""
    if attn_mask is None or attn_mask.dim() <= 4:
        return attn_mask
    batch = query.shape[:-3]
    return attn_mask.expand(*batch, *attn_mask.shape[-3:]).flatten(0, -4)
