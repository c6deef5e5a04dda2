"""Forward in tiles with an online softmax (FlashAttention, arXiv 2205.14135).

For each tile of rows, over the tiles of keys that any of them sees, with running maximum m, sum l
and accumulator a:

    m' = max(m, max_j s_j)       p_j = exp(s_j - m')
    l' = l exp(m - m') + sum_j p_j
    a' = a exp(m - m') + sum_j d_j p_j v_j

and at the end the sink z joins l with exp(z - m), lse = m + log l, and out = a / l.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from portattn.backends.common.philox import keep_scale
from portattn.backends.common.pieces import Piece
from portattn.backends.common.scores import isolated_product, key_range, tile_scores
from portattn.dispatch.problem import AttentionProblem


def piece_forward(
    piece: Piece,
    problem: AttentionProblem,
    rng_state: Tensor | None,
    tile: tuple[int, int],
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fill out [B, Hkv, G, Sq, Dv] and lse [B, Hkv, G, Sq]."""
    for rows in tiles(0, piece.seqlen_q, rows_per_tile(tile[0], piece)):
        span = slice(rows.start, rows.stop)
        tile_out, tile_lse = _row_tile(piece, problem, rng_state, rows, tile[1], exact=False)
        # 0 * NaN from a key that these rows don't see: only then is the slower product needed.
        if not bool(torch.isfinite(tile_out).all()):
            tile_out, tile_lse = _row_tile(piece, problem, rng_state, rows, tile[1], exact=True)
        out[..., span, :] = tile_out.to(out.dtype)
        lse[..., span] = tile_lse


def tiles(first: int, last: int, size: int) -> Iterator[range]:
    """Ranges of at most `size` from first to last."""
    for start in range(first, last, size):
        yield range(start, min(start + size, last))


def rows_per_tile(block_m: int, piece: Piece) -> int:
    """Query positions per tile when the group's heads are packed into its block_m rows."""
    return max(1, block_m // piece.q.shape[2])


def _row_tile(
    piece: Piece,
    problem: AttentionProblem,
    rng_state: Tensor | None,
    rows: range,
    block_n: int,
    exact: bool,
) -> tuple[Tensor, Tensor]:
    """out [B, Hkv, G, m, Dv] and lse [B, Hkv, G, m] of some rows, in the wide dtype."""
    wide = torch.float64 if piece.q.dtype == torch.float64 else torch.float32
    q = piece.q[..., rows.start : rows.stop, :].to(wide)
    shape = q.shape[:-1]
    maximum = q.new_full(shape, float("-inf"))
    total = q.new_zeros(shape)
    acc = q.new_zeros((*shape, piece.v.shape[-1]))
    for keys in tiles(*key_range(problem, piece, rows), block_n):
        k = piece.k[:, :, keys.start : keys.stop].to(wide)
        v = piece.v[:, :, keys.start : keys.stop].to(wide)
        s, visible, _ = tile_scores(q, k, piece, problem, rows, keys)
        new_maximum = torch.maximum(maximum, s.amax(-1))
        # A row that has seen nothing yet has maximum -inf; any finite stand-in gives p = 0.
        base = new_maximum.masked_fill(new_maximum == float("-inf"), 0.0)
        p = s.sub_(base[..., None]).exp_()
        decay = (maximum - base).exp()
        total = total * decay + p.sum(-1)
        if problem.dropout_p:
            assert rng_state is not None
            p = p * keep_scale(rng_state, problem.dropout_p, piece.heads, rows, keys).to(wide)
        acc *= decay[..., None]
        acc += _product(p, v, visible, exact)
        maximum = new_maximum
    lse = maximum + total.log()
    if piece.sinks is not None:
        sinks = piece.sinks[..., None].to(wide)
        lse = torch.logaddexp(lse, sinks)
        total = total + (sinks - maximum).exp()
    # Rows that saw nothing have acc = 0 and total = 0, or inf with a sink.
    return acc / total.masked_fill(total == 0.0, 1.0)[..., None], lse


def _product(p: Tensor, v: Tensor, visible: Tensor | None, exact: bool) -> Tensor:
    """p [B, Hkv, G, m, n] @ v [B, Hkv, n, Dv], heads of a group packed into the rows."""
    if exact:
        seen = None if visible is None else visible.expand(p.shape).flatten(2, 3)
        flat = isolated_product(p.flatten(2, 3), v, seen)
    else:
        flat = p.flatten(2, 3) @ v
    product: Tensor = flat.unflatten(2, p.shape[2:4])
    return product
