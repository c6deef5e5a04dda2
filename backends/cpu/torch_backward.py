"""Backward in tiles, recomputing the probabilities from lse (FlashAttention-2, arXiv 2307.08691).

With p_ij = exp(s_ij - lse_i), dp_ij = d_ij (g_i . v_j) and delta_i = g_i . out_i - dlse_i:

    ds_ij = p_ij (dp_ij - delta_i)        du_ij = ds_ij (1 - tanh_ij^2) softmax_scale
    dv_j = sum_i d_ij p_ij g_i            dk_j = sum_i du_ij q_i        dq_i = sum_j du_ij k_j

Key tiles outside, row tiles inside, always in this order: the sums are deterministic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.common.philox import keep_scale
from portattn.backends.common.pieces import Piece
from portattn.backends.common.scores import isolated_product, row_range, sum_to, tile_scores
from portattn.backends.cpu.torch_forward import rows_per_tile, tiles
from portattn.dispatch.backend import AttentionTensors, Gradients
from portattn.dispatch.problem import AttentionProblem


def piece_backward(
    piece: Piece,
    problem: AttentionProblem,
    tensors: AttentionTensors,
    tile: tuple[int, int],
    grad_out: Tensor,
    delta: Tensor,
    lse: Tensor,
    sums: Gradients,
) -> None:
    """Add this piece's gradients to `sums`, whose members are shaped like the inputs."""
    wide = delta.dtype
    g, deltas, row_lse = (
        piece.queries_of(grad_out),
        piece.row_values_of(delta),
        piece.row_values_of(lse).to(wide),
    )
    dq, dk, dv = piece.queries_of(sums.dq), piece.keys_of(sums.dk), piece.keys_of(sums.dv)
    exact = not all(bool(torch.isfinite(t).all()) for t in (piece.q, piece.k, piece.v, g))
    for keys in tiles(0, piece.seqlen_k, tile[1]):
        columns = slice(keys.start, keys.stop)
        k, v = piece.k[:, :, columns].to(wide), piece.v[:, :, columns].to(wide)
        dk_tile, dv_tile = torch.zeros_like(k), torch.zeros_like(v)
        for rows in tiles(*row_range(problem, piece, keys), rows_per_tile(tile[0], piece)):
            span = slice(rows.start, rows.stop)
            q, g_tile = piece.q[..., span, :].to(wide), g[..., span, :].to(wide)
            s, visible, tanh = tile_scores(q, k, piece, problem, rows, keys)
            p = (s - row_lse[..., span, None]).exp()
            dp = (g_tile.flatten(2, 3) @ v.transpose(-1, -2)).unflatten(2, p.shape[2:4])
            dropped = p
            if problem.dropout_p:
                assert tensors.rng_state is not None
                keep = keep_scale(tensors.rng_state, problem.dropout_p, piece.heads, rows, keys)
                dropped, dp = p * keep.to(wide), dp * keep.to(wide)
            ds = p * (dp - deltas[..., span, None])
            if visible is not None:
                # Rows that see nothing have lse = -inf and p = NaN; masked keys may hold NaN.
                ds, dropped = (t.masked_fill(~visible, 0.0) for t in (ds, dropped))
            if sums.dbias is not None:
                _add_bias(piece, tensors, sums.dbias, ds, rows, keys)
            du = ds * problem.softmax_scale
            if tanh is not None:
                du *= 1 - tanh**2
            seen = None if visible is None else visible.expand(p.shape).flatten(2, 3)
            products = _exact if exact else _plain
            add_q, add_k, add_v = products(
                du.flatten(2, 3), dropped.flatten(2, 3), q, k, g_tile, seen
            )
            dq[..., span, :] += add_q.unflatten(2, p.shape[2:4])
            dk_tile += add_k
            dv_tile += add_v
        dk[:, :, columns] += dk_tile
        dv[:, :, columns] += dv_tile
    if sums.dsinks is not None and piece.sinks is not None:
        # The sink carries no value: its score's gradient is -p_sink delta.
        p_sink = (piece.sinks[..., None].to(wide) - row_lse).exp()
        sums.dsinks.sub_((p_sink * deltas).sum((0, -1)).flatten())


def _plain(
    du: Tensor, p: Tensor, q: Tensor, k: Tensor, g: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The additions to dq, dk and dv of one tile."""
    return du @ k, du.mT @ q.flatten(2, 3), p.mT @ g.flatten(2, 3)


def _exact(
    du: Tensor, p: Tensor, q: Tensor, k: Tensor, g: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As _plain, where inputs hold NaN or inf that masked entries must not spread."""
    turned = None if visible is None else visible.mT
    return (
        isolated_product(du, k, visible),
        isolated_product(du.mT, q.flatten(2, 3), turned),
        isolated_product(p.mT, g.flatten(2, 3), turned),
    )


def _add_bias(
    piece: Piece, tensors: AttentionTensors, dbias: Tensor, ds: Tensor, rows: range, keys: range
) -> None:
    view = dbias
    if dbias.shape[0] != 1:
        view = dbias[piece.query_index[0]]
    view = view[:, :, None] if view.shape[1] == 1 else view.unflatten(1, (piece.k.shape[1], -1))
    for dim, span in ((3, rows), (4, keys)):
        if view.shape[dim] != 1:
            view = view.narrow(dim, span.start, len(span))
    view += sum_to(ds, view.shape)
