"""Attention as its definition, forward and backward, in float64 and bounded memory.

Forward, for each query row, over its visible keys j and the sink z where there is one:

    s_j  = scores (backends/common/scores.py)
    lse  = log(sum_j exp(s_j) + exp(z))
    p_j  = exp(s_j - lse)
    out  = sum_j d_j p_j v_j                 with d_j = 0 or 1 / (1 - dropout_p)

Backward, from g = dL/dout and l = dL/dlse. With dp_j = d_j (g . v_j) and

    delta = sum_j p_j dp_j - l = g . out - l

the softmax gives  ds_j = p_j (dp_j - delta)  and  dz = sum over rows of -p_z delta, since the sink
carries no value. Then, t being the tanh of the softcap,

    dbias = ds,   du = ds (1 - t^2) softmax_scale,
    dq = sum_j du_j k_j,   dk_j = sum over rows of du_j q,   dv_j = sum over rows of d_j p_j g.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from portattn.backends.common.philox import keep_scale
from portattn.backends.common.pieces import Piece, pieces
from portattn.backends.common.scores import isolated_product, sum_to, tile_scores
from portattn.dispatch.backend import AttentionTensors, Gradients
from portattn.dispatch.problem import AttentionProblem

# Scores held at once, in elements: 64 MiB of float64.
_CHUNK = 8 * 2**20


def forward(tensors: AttentionTensors, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """out and lse of a call, shaped as the Backend protocol says."""
    out, lse = empty_result(tensors)
    for piece in pieces(tensors, problem):
        _piece_forward(
            piece, problem, tensors.rng_state, piece.queries_of(out), piece.row_values_of(lse)
        )
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: AttentionTensors,
    problem: AttentionProblem,
) -> Gradients:
    """Gradients of a call, given its results."""
    sums = zero_gradients(tensors, problem, _wide(tensors.q[:0]).dtype)
    for piece in pieces(tensors, problem):
        _piece_backward(piece, problem, tensors, grad_out, grad_lse, out, lse, sums)
    return like_inputs(sums, tensors)


def empty_result(tensors: AttentionTensors) -> tuple[Tensor, Tensor]:
    """out of zeros and lse of -inf: what rows without a visible key get."""
    q = tensors.q
    out = q.new_zeros((*q.shape[:-1], tensors.v.shape[-1]))
    shape = (q.shape[1], q.shape[0]) if q.dim() == 3 else (q.shape[0], q.shape[2], q.shape[1])
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return out, torch.full(shape, float("-inf"), dtype=dtype, device=q.device)


def zero_gradients(
    tensors: AttentionTensors, problem: AttentionProblem, dtype: torch.dtype
) -> Gradients:
    """Sums to add to, in a wide dtype."""
    bias, sinks = tensors.bias, tensors.sinks
    return Gradients(
        torch.zeros_like(tensors.q, dtype=dtype),
        torch.zeros_like(tensors.k, dtype=dtype),
        torch.zeros_like(tensors.v, dtype=dtype),
        dbias=torch.zeros_like(bias, dtype=dtype)
        if bias is not None and problem.bias_grad
        else None,
        dsinks=None if sinks is None else torch.zeros_like(sinks, dtype=dtype),
    )


def like_inputs(sums: Gradients, tensors: AttentionTensors) -> Gradients:
    """The sums in the dtypes of what they are gradients of."""
    bias, sinks = tensors.bias, tensors.sinks
    return Gradients(
        sums.dq.to(tensors.q.dtype),
        sums.dk.to(tensors.k.dtype),
        sums.dv.to(tensors.v.dtype),
        None if sums.dbias is None or bias is None else sums.dbias.to(bias.dtype),
        None if sums.dsinks is None or sinks is None else sums.dsinks.to(sinks.dtype),
    )


def _piece_forward(
    piece: Piece,
    problem: AttentionProblem,
    rng_state: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fill out [B, Hkv, G, Sq, Dv] and lse [B, Hkv, G, Sq]."""
    for rows, part, where in _chunks(piece):
        k, v = _wide(part.k), _wide(part.v)
        p, visible, _, row_lse = _probabilities(part, problem, k, rows, None)
        p = _dropped(p, part, problem, rng_state, rows)
        result = isolated_product(p.flatten(2, 3), v, _flat(visible, p))
        out[where][..., rows.start : rows.stop, :] = result.unflatten(2, p.shape[2:4]).to(out.dtype)
        lse[where][..., rows.start : rows.stop] = row_lse.to(lse.dtype)


def _piece_backward(
    piece: Piece,
    problem: AttentionProblem,
    tensors: AttentionTensors,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    sums: Gradients,
) -> None:
    """Add this piece's gradients to `sums`, whose members are shaped like the inputs."""
    dq, dk, dv = piece.queries_of(sums.dq), piece.keys_of(sums.dk), piece.keys_of(sums.dv)
    for rows, part, where in _chunks(piece):
        span = slice(rows.start, rows.stop)
        q, k, v = _wide(part.q[..., span, :]), _wide(part.k), _wide(part.v)
        g = _wide(piece.queries_of(grad_out)[where][..., span, :])
        row_lse = _wide(piece.row_values_of(lse)[where][..., span])
        p, visible, tanh, _ = _probabilities(part, problem, k, rows, row_lse)
        keep = _dropped(torch.ones_like(p), part, problem, tensors.rng_state, rows)
        delta = (g * _wide(piece.queries_of(out)[where][..., span, :])).sum(-1)
        if grad_lse is not None:
            delta = delta - _wide(piece.row_values_of(grad_lse)[where][..., span])
        dp = (g.flatten(2, 3) @ v.transpose(-1, -2)).unflatten(2, g.shape[2:4]) * keep
        ds = p * (dp - delta[..., None])
        if visible is not None:
            ds = ds.masked_fill(~visible, 0.0)
        _add_bias_and_sinks(part, tensors, sums, ds, delta, row_lse, where, span)
        du = (
            ds * problem.softmax_scale
            if tanh is None
            else ds * (1 - tanh**2) * problem.softmax_scale
        )
        flat, seen = du.flatten(2, 3), _flat(visible, du)
        turned = None if seen is None else seen.transpose(-1, -2)
        dq[where][..., span, :] += isolated_product(flat, k, seen).unflatten(2, g.shape[2:4])
        dk[where[:2]] += isolated_product(flat.transpose(-1, -2), q.flatten(2, 3), turned)
        pd = (p * keep).flatten(2, 3).transpose(-1, -2)
        dv[where[:2]] += isolated_product(pd, g.flatten(2, 3), turned)


def _chunks(piece: Piece) -> Iterator[tuple[range, Piece, tuple[slice, slice]]]:
    """Row ranges and (batch, kv head) parts whose scores fit in _CHUNK elements."""
    batch, kv_heads, group, seqlen_q, _ = piece.q.shape
    per_row = max(1, group * piece.seqlen_k)
    block = max(1, min(seqlen_q, _CHUNK // per_row))
    matrices = max(1, _CHUNK // (per_row * block))
    for b in range(batch):
        for h in range(0, kv_heads, matrices):
            where = (slice(b, b + 1), slice(h, min(h + matrices, kv_heads)))
            part = _part(piece, where)
            for start in range(0, seqlen_q, block):
                yield range(start, min(start + block, seqlen_q)), part, where


def _part(piece: Piece, where: tuple[slice, slice]) -> Piece:
    def cut(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        for dim, span in enumerate(where):
            if tensor.shape[dim] != 1:
                tensor = tensor[(slice(None),) * dim + (span,)]
        return tensor

    q, k, v, heads = piece.q[where], piece.k[where], piece.v[where], piece.heads[where]
    sinks = None if piece.sinks is None else piece.sinks[where[1]]
    return Piece(
        q,
        k,
        v,
        cut(piece.bias),
        cut(piece.mask),
        cut(piece.slopes),
        sinks,
        heads,
        piece.query_index,
        piece.key_index,
    )


def _probabilities(
    part: Piece, problem: AttentionProblem, k: Tensor, rows: range, lse: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """p, visible, tanh of the softcap, and lse (computed unless given)."""
    q = _wide(part.q[..., rows.start : rows.stop, :])
    s, visible, tanh = tile_scores(q, k, part, problem, rows, range(part.seqlen_k))
    if lse is None:
        lse = s.logsumexp(-1) if part.seqlen_k else s.new_full(s.shape[:-1], float("-inf"))
        if part.sinks is not None:
            lse = torch.logaddexp(lse, part.sinks.to(lse.dtype)[..., None])
    p = (s - lse[..., None]).exp()
    if visible is not None:
        p = p.masked_fill(~visible, 0.0)
    return p, visible, tanh, lse


def _dropped(
    p: Tensor, part: Piece, problem: AttentionProblem, rng_state: Tensor | None, rows: range
) -> Tensor:
    if problem.dropout_p == 0.0:
        return p
    assert rng_state is not None
    keys = range(part.seqlen_k)
    return p * keep_scale(rng_state, problem.dropout_p, part.heads, rows, keys).to(p.dtype)


def _add_bias_and_sinks(
    part: Piece,
    tensors: AttentionTensors,
    sums: Gradients,
    ds: Tensor,
    delta: Tensor,
    lse: Tensor,
    where: tuple[slice, slice],
    span: slice,
) -> None:
    if sums.dbias is not None:
        target = _bias_target(part, tensors, sums.dbias, where, span)
        target += sum_to(ds, target.shape)
    if sums.dsinks is not None and part.sinks is not None:
        p_sink = (part.sinks.to(lse.dtype)[..., None] - lse).exp()
        dsinks = sums.dsinks.unflatten(0, (-1, part.q.shape[2]))[where[1]]
        dsinks -= (p_sink * delta).sum((0, -1))


def _bias_target(
    part: Piece, tensors: AttentionTensors, dbias: Tensor, where: tuple[slice, slice], span: slice
) -> Tensor:
    """The entries of dbias that this chunk's scores read, as [B, Hkv, G, m, n]."""
    batch = part.query_index[0] if tensors.q.dim() == 3 else where[0]
    view = dbias if dbias.shape[0] == 1 else dbias[batch]
    if view.shape[1] == 1:
        view = view[:, :, None]
    else:
        view = view.unflatten(1, (-1, part.q.shape[2]))[:, where[1]]
    if view.shape[3] != 1:
        view = view[..., span, :]
    return view if view.shape[4] == 1 else view[..., : part.seqlen_k]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _flat(visible: Tensor | None, p: Tensor) -> Tensor | None:
    return None if visible is None else visible.expand(p.shape).flatten(2, 3)
