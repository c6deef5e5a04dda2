"""Scores of one tile, in the order that defines them: scale, softcap, alibi, bias, masks.

Rows i and keys j count within their sequence. With offset = Sk - Sq, query i stands at key
position i + offset (bottom-right alignment), and key j is visible iff

    i + offset - left <= j <= i + offset + right,   an unbounded side being left out,

and the boolean mask allows it, and its bias isn't -inf.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from portattn.backends.common.pieces import Piece
from portattn.dispatch.problem import AttentionProblem


class Scores(NamedTuple):
    """s [B, Hkv, G, m, n], -inf where hidden; visible (None: all of it); tanh of the softcap."""

    s: Tensor
    visible: Tensor | None
    tanh: Tensor | None


def tile_scores(
    q: Tensor, k: Tensor, piece: Piece, problem: AttentionProblem, rows: range, keys: range
) -> Scores:
    """Scores of q [B, Hkv, G, m, D] (rows) against k [B, Hkv, n, D] (keys) in their dtype."""
    s = (q.flatten(2, 3) @ k.transpose(-1, -2)).unflatten(2, q.shape[2:4])
    s *= problem.softmax_scale
    tanh = None
    if problem.softcap:
        tanh = torch.tanh(s / problem.softcap)
        s = tanh * problem.softcap
    offset = piece.seqlen_k - piece.seqlen_q
    if piece.slopes is not None:
        s = s - piece.slopes[..., None, None].to(s.dtype) * _distance(rows, keys, offset, s).abs()
    visible = _band(problem.window, rows, keys, offset, s.device)
    if piece.bias is not None:
        bias = _tile(piece.bias, rows, keys)
        s = s + bias.to(s.dtype)
        visible = _both(visible, bias != float("-inf"))
    if piece.mask is not None:
        visible = _both(visible, _tile(piece.mask, rows, keys))
    if visible is not None:
        s = s.masked_fill(~visible, float("-inf"))
    return Scores(s, visible, tanh)


def key_range(problem: AttentionProblem, piece: Piece, rows: range) -> tuple[int, int]:
    """The keys that at least one of the rows can see through the window: [first, last)."""
    offset = piece.seqlen_k - piece.seqlen_q
    left, right = problem.window
    first = 0 if left < 0 else max(0, rows.start + offset - left)
    last = piece.seqlen_k
    if right >= 0:
        last = min(last, rows.stop + offset + right)
    return first, max(first, last)


def row_range(problem: AttentionProblem, piece: Piece, keys: range) -> tuple[int, int]:
    """The rows that can see at least one of the keys through the window: [first, last)."""
    offset = piece.seqlen_k - piece.seqlen_q
    left, right = problem.window
    first = 0 if right < 0 else max(0, keys.start - offset - right)
    last = piece.seqlen_q
    if left >= 0:
        last = min(last, keys.stop - offset + left)
    return first, max(first, last)


def isolated_product(p: Tensor, x: Tensor, visible: Tensor | None) -> Tensor:
    """p @ x where p is 0 outside visible and x may hold NaN or inf there.

    0 * NaN is NaN in a matrix product, but a masked-out key must change nothing. So non-finite
    entries of x are left out of the product, and those that are visible are put back as what they
    do to a sum: NaN, or inf of the product's sign.
    """
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return p @ x
    out = p @ torch.where(finite, x, torch.zeros((), dtype=x.dtype, device=x.device))
    seen = torch.ones_like(p) if visible is None else visible.expand(p.shape).to(p.dtype)
    zero_p = seen * (p == 0)
    infinite = torch.isinf(x)
    nan = (seen @ torch.isnan(x).to(p.dtype)) + (zero_p @ infinite.to(p.dtype)) > 0
    up, down = (x == float("inf")).to(p.dtype), (x == float("-inf")).to(p.dtype)
    positive, negative = (p > 0).to(p.dtype), (p < 0).to(p.dtype)
    plus = positive @ up + negative @ down > 0
    minus = positive @ down + negative @ up > 0
    out = out.masked_fill(plus & ~minus, float("inf")).masked_fill(minus & ~plus, float("-inf"))
    return out.masked_fill(nan | (plus & minus), float("nan"))


def sum_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Sum over the dimensions along which a tensor of this shape was broadcast."""
    dims = [d for d in range(gradient.dim()) if shape[d] == 1 and gradient.shape[d] != 1]
    return gradient.sum(dims, keepdim=True) if dims else gradient


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b


def _tile(tensor: Tensor, rows: range, keys: range) -> Tensor:
    for dim, span in ((3, rows), (4, keys)):
        if tensor.shape[dim] != 1:
            tensor = tensor.narrow(dim, span.start, len(span))
    return tensor


def _distance(rows: range, keys: range, offset: int, like: Tensor) -> Tensor:
    """j - (i + offset), in like's dtype: [m, n]."""
    i = torch.arange(rows.start, rows.stop, device=like.device)[:, None]
    j = torch.arange(keys.start, keys.stop, device=like.device)
    return (j - i - offset).to(like.dtype)


def _band(
    window: tuple[int, int], rows: range, keys: range, offset: int, device: torch.device
) -> Tensor | None:
    """Which keys the window shows to which rows: [m, n] bool, None when all of them."""
    left, right = window
    if not rows or not keys:
        return None
    cuts_left = left >= 0 and keys.start < rows.stop - 1 + offset - left
    cuts_right = right >= 0 and keys.stop - 1 > rows.start + offset + right
    if not cuts_left and not cuts_right:
        return None
    i = torch.arange(rows.start, rows.stop, device=device)[:, None] + offset
    j = torch.arange(keys.start, keys.stop, device=device)
    visible = torch.ones(len(rows), len(keys), dtype=torch.bool, device=device)
    if cuts_left:
        visible &= j >= i - left
    if cuts_right:
        visible &= j <= i + right
    return visible
