"""Rotary position embedding of the first dimensions of a head (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.errors import ArgumentError, DeviceError, ShapeError

__all__ = ["apply_rotary_emb"]


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """x [B, S, H, D] with its first 2 * cos.shape[1] dimensions rotated, differentiable.

    cos, sin [positions, rotary_dim / 2]. Token s of sequence b is at position
    seqlen_offsets[b] + s. interleaved pairs dimensions (0, 1), (2, 3), …; otherwise the first half
    of the rotated dimensions pairs with the second. With cu_seqlens [B + 1], x is packed [T, H, D].
    inplace: the result is written into x too. max_seqlen is accepted for flash-attn's sake.

    Raises ShapeError, or ArgumentError where the tables have no row for a position (on the CPU).
    """
    packed = cu_seqlens is not None
    batched = x[None] if packed else x
    positions = _positions(batched, seqlen_offsets, cu_seqlens)
    turned = rotate(batched, cos, sin, interleaved, positions)
    out = turned[0] if packed else turned
    return x.copy_(out) if inplace else out


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    positions: Tensor,
    names: tuple[str, str] = ("cos", "sin"),
) -> Tensor:
    """x [B, S, H, D] rotated by positions [B, S]; errors call the tables by `names`."""
    _check_tables(x, cos, sin, positions, names)
    half = cos.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    c, s = (table[positions.long()].to(wide)[:, :, None] for table in (cos, sin))
    turned, rest = x[..., : 2 * half].to(wide), x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        pairs = torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        pairs = torch.cat((a * c - b * s, b * c + a * s), -1)
    return torch.cat((pairs.to(x.dtype), rest), -1)


def _positions(x: Tensor, offsets: int | Tensor, cu_seqlens: Tensor | None) -> Tensor:
    batch, seqlen = x.shape[:2]
    tokens = torch.arange(seqlen, device=x.device)
    if cu_seqlens is None:
        start = offsets[:, None] if isinstance(offsets, Tensor) else offsets
        return (tokens + start).expand(batch, seqlen)
    owner = torch.bucketize(tokens, cu_seqlens[1:], right=True).clamp(max=len(cu_seqlens) - 2)
    start = offsets[owner] if isinstance(offsets, Tensor) else offsets
    return (tokens - cu_seqlens[owner] + start)[None]


def _check_tables(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, names: tuple[str, str]
) -> None:
    if cos.dim() != 2 or 2 * cos.shape[1] > x.shape[-1]:
        expected = f"must be [positions, rotary_dim / 2], rotary_dim at most {x.shape[-1]}"
        raise ShapeError(names[0], expected, tuple(cos.shape))
    if sin.shape != cos.shape:
        expected = f"must have the shape of {names[0]}, {tuple(cos.shape)}"
        raise ShapeError(names[1], expected, tuple(sin.shape))
    for name, table in zip(names, (cos, sin), strict=True):
        if table.device != x.device:
            raise DeviceError(name, f"must be on {x.device}", table.device)
    if type(positions) is not Tensor or torch.compiler.is_compiling():
        return
    if positions.device.type == "cpu" and positions.numel():
        low, high = (int(end) for end in positions.aminmax())
        if low < 0 or high >= cos.shape[0]:
            expected = f"must have a row for every position, {low} .. {high}"
            raise ArgumentError(names[0], expected, f"{cos.shape[0]} rows")
