"""The dense and variable-length functions of flash-attn 2.8, all differentiable."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from portattn.attention import attention, attention_varlen
from portattn.errors import ArgumentError, ShapeError

Window = Sequence[int] | Tensor
# out, or (out, softmax_lse, None) with return_attn_probs.
Result = Tensor | tuple[Tensor, Tensor, None]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """q [B, Sq, H, D], k [B, Sk, Hkv, D], v [B, Sk, Hkv, Dv] to out [B, Sq, H, Dv].

    With return_attn_probs: (out, softmax_lse [B, H, Sq], None).
    """
    result = attention(
        q,
        k,
        v,
        causal=causal,
        softmax_scale=softmax_scale,
        window_size=as_window(window_size),
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        deterministic=deterministic,
        return_lse=True,
    )
    return _result(result, return_attn_probs)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """flash_attn_func with k and v as kv [B, Sk, 2, Hkv, D]."""
    k, v = _unpack("kv", kv, 2, 5)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """flash_attn_func with q, k and v as qkv [B, S, 3, H, D]."""
    q, k, v = _unpack("qkv", qkv, 3, 5)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv] to out [Tq, H, Dv].

    With block_table [B, pages] int32, k and v are pages [P, page_size, Hkv, D(v)]. With
    return_attn_probs: (out, softmax_lse [H, Tq], None).
    """
    result = attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        _as_int(max_seqlen_q),
        _as_int(max_seqlen_k),
        causal=causal,
        softmax_scale=softmax_scale,
        window_size=as_window(window_size),
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        deterministic=deterministic,
        return_lse=True,
        block_table=block_table,
    )
    return _result(result, return_attn_probs)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """flash_attn_varlen_func with k and v as kv [Tk, 2, Hkv, D]."""
    k, v = _unpack("kv", kv, 2, 4)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """flash_attn_varlen_func with q, k and v as qkv [T, 3, H, D]."""
    q, k, v = _unpack("qkv", qkv, 3, 4)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def as_window(window_size: Window) -> tuple[int, int]:
    """Any pair of numbers, a tensor's too, as (left, right); flash-attn reads all < 0 as -1."""
    if len(window_size) != 2:
        raise ArgumentError("window_size", "must be (left, right)", window_size)
    left, right = (max(int(side), -1) for side in window_size)
    return left, right


def _as_int(length: int | Tensor) -> int:
    """A length that may come as a tensor of one number, which is then waited for."""
    return int(length) if isinstance(length, Tensor) else length


def _unpack(name: str, packed: Tensor, parts: int, rank: int) -> tuple[Tensor, ...]:
    if packed.dim() != rank or packed.shape[-3] != parts:
        lead = "B, S" if rank == 5 else "T"
        raise ShapeError(name, f"must be [{lead}, {parts}, H, D]", tuple(packed.shape))
    return packed.unbind(-3)


def _result(result: Tensor | tuple[Tensor, Tensor], return_attn_probs: bool) -> Result:
    out, lse = result
    return (out, lse, None) if return_attn_probs else out
