"""Rotary position embedding of the first dimensions of a head (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.errors import ShapeError


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
) -> Tensor:
    """x [B, S, H, D] with its first 2 * cos.shape[1] dimensions rotated; a new tensor.

    cos, sin [positions, rotary_dim / 2]. Token s of sequence b is at position
    seqlen_offsets[b] + s. interleaved pairs dimensions (0, 1), (2, 3), …; otherwise the first half
    of the rotated dimensions pairs with the second.
    """
    batch, seqlen = x.shape[:2]
    start = torch.as_tensor(seqlen_offsets, device=x.device).expand(batch)
    positions = start[:, None] + torch.arange(seqlen, device=x.device)
    return rotate(x, cos, sin, interleaved, positions)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, positions: Tensor) -> Tensor:
    """x [B, S, H, D] rotated by positions [B, S]."""
    half = cos.shape[-1]
    if cos.shape != sin.shape or cos.dim() != 2:
        raise ShapeError("sin", f"must be 2-D like cos, {tuple(cos.shape)}", tuple(sin.shape))
    if 2 * half > x.shape[-1]:
        raise ShapeError(
            "rotary_cos", f"must rotate at most the head_dim, {x.shape[-1]}", f"{2 * half}"
        )
    c, s = (table[positions.long()].float()[:, :, None] for table in (cos, sin))
    turned, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        pairs = torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        pairs = torch.cat((a * c - b * s, b * c + a * s), -1)
    return torch.cat((pairs.to(x.dtype), rest), -1)
