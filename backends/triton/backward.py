"""Backward attention in two passes (FlashAttention-2, arXiv 2307.08691), without atomics.

With p_ij = 2^(x_ij - lse_i log2(e)), x the scores in base 2, d_ij dropout's 0 or 1 / (1 - p), and
t the softcap's tanh:

    delta_i = g_i . out_i - dlse_i        dp_ij = d_ij (g_i . v_j)
    ds_ij = p_ij (dp_ij - delta_i)        du_ij = ds_ij (1 - t_ij^2)
    dv_j = sum_i d_ij p_ij g_i            dbias_ij = ds_ij
    dk_j = softmax_scale sum_i du_ij q_i  dq_i = softmax_scale sum_j du_ij k_j

One pass owns a tile of keys and loops over the rows of every head that reads them; the other owns a
tile of rows and loops over keys. Each recomputes p and dp, so every entry is summed by one program
in a fixed order: the same bits for the same call, and no buffer beyond delta's.

Whatever multiplies a hidden entry is 0, but 0 · NaN is NaN in a matrix product. So a tile that ends
up with a NaN is computed again with the non-finite entries left out of the products, and put back
one by one where they are seen.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from portattn.backends.common import launch
from portattn.backends.triton import arguments, bias_gradient, tiles
from portattn.backends.triton.gradients import (
    GRAD_LSE,
    GRAD_OUT,
    KNOWN,
    LSE,
    OUT,
    ROW_TERMS,
    clear,
    given,
    has_nan,
    known,
    load_row_terms,
    load_tile,
    probabilities,
    put_back,
    score_gradients,
    steps,
    switches,
    tile_at,
    visible_rows,
    whole_rows,
)
from portattn.backends.triton.primitives import (
    LOG2E,
    finite,
    kept,
    key_span,
    query_span,
    store_rows,
    tile_spans,
    visible_keys,
    whole_keys,
)
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.problem import AttentionProblem

# delta is bound by memory, so its tiles only need to be large enough to fill the loads.
_PREPARED = tiles.Tile(64, 0, 4, 1)


@triton.jit
def prepare_kernel(
    g, out, lse, grad_lse, row_terms, sinks, cu_seqlens_q, batch, heads, rows_in_all, row_tiles,
    DV: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """lse in base 2, delta, and the sink's gradient by row; packed rows are one long sequence.

    A row that sees nothing gets an lse of inf, so that its p is 0.
    """
    pid = tl.program_id(0)
    start = pid % row_tiles * BLOCK_M
    h = (pid // row_tiles) % heads
    b = pid // row_tiles // heads
    last = rows_in_all
    if cu_seqlens_q is not None:
        # What lies past the last sequence may hold anything.
        last = tl.load(cu_seqlens_q + batch)
    rows = start + tl.arange(0, BLOCK_M)
    inside = rows < last
    delta = tl.zeros([BLOCK_M], tl.float32)
    for column in tl.static_range(0, DV, WIDTH):
        g_tile = load_tile(g, b, h, start, inside, BLOCK_M, column, WIDTH, DV, True, True)
        out_tile = load_tile(out, b, h, start, inside, BLOCK_M, column, WIDTH, DV, True, True)
        delta += tl.sum(g_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    if grad_lse is not None:
        at = tile_at(grad_lse, b, h, start) + tl.arange(0, BLOCK_M) * grad_lse.row
        delta -= tl.load(at, mask=inside, other=0.0).to(tl.float32)
    at = tile_at(lse, b, h, start) + tl.arange(0, BLOCK_M) * lse.row
    row_lse = tl.load(at, mask=inside, other=float("-inf"))
    blind = row_lse == float("-inf")
    sink_term = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:
        share = tl.exp2((tl.load(sinks + h).to(tl.float32) - row_lse) * LOG2E)
        sink_term = tl.where(blind, 0.0, -share * delta)
    lse2 = tl.where(blind, float("inf"), row_lse * LOG2E)

    columns = tl.arange(0, ROW_TERMS)[None, :]
    values = tl.where(columns == 2, sink_term[:, None], 0.0)
    values = tl.where(columns == 1, delta[:, None], values)
    values = tl.where(columns == 0, lse2[:, None], values)
    at = tile_at(row_terms, b, h, start) + tl.arange(0, BLOCK_M)[:, None] * ROW_TERMS + columns
    tl.store(at, values, mask=(rows < rows_in_all)[:, None])


@triton.jit
def add_rows(
    dk0, dk1, dv0, dv1, k0, k1, v0, v1, q, g, row_terms, terms, heads, b, h, keys, first_row,
    seqlen_q, seqlen_k, lo, hi,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr, FINITE: tl.constexpr, FUSED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what rows lo .. hi of head h give to a tile of keys; scores are [keys, rows] here."""
    # As in the forward: the rare second look isn't pipelined.
    STAGES: tl.constexpr = 1 if FINITE else None
    for start in tl.range(lo, hi, BLOCK_M, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_M)
        inside = rows < seqlen_q
        row = first_row + start
        q0 = load_tile(q, b, h, row, inside, BLOCK_M, 0, D0, D, MASKED, WIDE)
        x = tl.dot(k0, q0.T, input_precision=PRECISION)
        if D1 > 0:
            q1 = load_tile(q, b, h, row, inside, BLOCK_M, D0, D1, D, MASKED, WIDE)
            x = tl.dot(k1, q1.T, x, input_precision=PRECISION)
        lse2, row_delta = load_row_terms(row_terms, b, h, row, inside, BLOCK_M, MASKED)
        p, x, t = probabilities(
            x, lse2[None, :], terms, b, h, rows[None, :], keys[:, None], seqlen_q, seqlen_k,
            MASKED, FUSED,
        )  # fmt: skip
        g0 = load_tile(g, b, h, row, inside, BLOCK_M, 0, DV0, DV, MASKED, WIDE)
        dp = tl.dot(v0, g0.T, input_precision=PRECISION)
        if DV1 > 0:
            g1 = load_tile(g, b, h, row, inside, BLOCK_M, DV0, DV1, DV, MASKED, WIDE)
            dp = tl.dot(v1, g1.T, dp, input_precision=PRECISION)
        keep = True
        dropped = p
        if terms.rng_state is not None:
            keep = kept(terms, heads, b, h, rows[None, :], keys[:, None])
            dropped = tl.where(keep, p, 0.0)
        dropped = dropped.to(g0.dtype)
        dv0 = tl.dot(dropped, finite(g0) if FINITE else g0, dv0, input_precision=PRECISION)
        if DV1 > 0:
            dv1 = tl.dot(dropped, finite(g1) if FINITE else g1, dv1, input_precision=PRECISION)
        _, du = score_gradients(p, x, t, dp, row_delta[None, :], keep, terms, MASKED)
        du = du.to(q0.dtype)
        dk0 = tl.dot(du, finite(q0) if FINITE else q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dk1 = tl.dot(du, finite(q1) if FINITE else q1, dk1, input_precision=PRECISION)
    return dk0, dk1, dv0, dv1


@triton.jit
def add_keys(
    dq0, dq1, q0, q1, g0, g1, lse2, row_delta, k, v, terms, heads, b, h, h_kv, rows, row, first,
    seqlen_q, seqlen_k, lo, hi,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, FINITE: tl.constexpr, FUSED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what keys lo .. hi give to the dq of a tile of rows."""
    # As in the forward: the rare second look isn't pipelined.
    STAGES: tl.constexpr = 1 if FINITE else None
    for start in tl.range(lo, hi, BLOCK_N, num_stages=STAGES):
        keys = start + tl.arange(0, BLOCK_N)
        inside = keys < seqlen_k
        key = first + start
        k0 = load_tile(k, row, h_kv, key, inside, BLOCK_N, 0, D0, D, MASKED, WIDE)
        x = tl.dot(q0, k0.T, input_precision=PRECISION)
        if D1 > 0:
            k1 = load_tile(k, row, h_kv, key, inside, BLOCK_N, D0, D1, D, MASKED, WIDE)
            x = tl.dot(q1, k1.T, x, input_precision=PRECISION)
        v0 = load_tile(v, row, h_kv, key, inside, BLOCK_N, 0, DV0, DV, MASKED, WIDE)
        dp = tl.dot(g0, v0.T, input_precision=PRECISION)
        if DV1 > 0:
            v1 = load_tile(v, row, h_kv, key, inside, BLOCK_N, DV0, DV1, DV, MASKED, WIDE)
            dp = tl.dot(g1, v1.T, dp, input_precision=PRECISION)
        p, x, t = probabilities(
            x, lse2[:, None], terms, b, h, rows[:, None], keys[None, :], seqlen_q, seqlen_k,
            MASKED, FUSED,
        )  # fmt: skip
        keep = True
        if terms.rng_state is not None:
            keep = kept(terms, heads, b, h, rows[:, None], keys[None, :])
        _, du = score_gradients(p, x, t, dp, row_delta[:, None], keep, terms, MASKED)
        du = du.to(k0.dtype)
        dq0 = tl.dot(du, finite(k0) if FINITE else k0, dq0, input_precision=PRECISION)
        if D1 > 0:
            dq1 = tl.dot(du, finite(k1) if FINITE else k1, dq1, input_precision=PRECISION)
    return dq0, dq1


@triton.jit
def dkv_kernel(
    q, k, v, g, dk, dv, row_terms, extents, terms, batch, heads, total_k, key_tiles,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, DIMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FUSED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N keys of one kv head, over the rows of every head that reads them."""
    pid = tl.program_id(0)
    tile = pid % key_tiles
    h_kv = (pid // key_tiles) % (heads // GROUP)
    b = pid // key_tiles // (heads // GROUP)
    if extents.cu_seqlens_k is not None:
        if b == batch:
            # One program per head clears what lies past the last sequence.
            if tile == 0:
                past = tl.load(extents.cu_seqlens_k + batch)
                clear(dk, h_kv, past, total_k, D, DIMS, BLOCK_N)
                clear(dv, h_kv, past, total_k, DV, DIMS, BLOCK_N)
            return
    first_row, seqlen_q = query_span(extents, b)
    row, first, seqlen_k = key_span(extents, b)
    if tile * BLOCK_N >= seqlen_k:
        return

    keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = keys < seqlen_k
    key = first + tile * BLOCK_N
    k0 = load_tile(k, row, h_kv, key, inside, BLOCK_N, 0, D0, D, True, WIDE)
    v0 = load_tile(v, row, h_kv, key, inside, BLOCK_N, 0, DV0, DV, True, WIDE)
    k1 = k0
    v1 = v0
    if D1 > 0:
        k1 = load_tile(k, row, h_kv, key, inside, BLOCK_N, D0, D1, D, True, WIDE)
    if DV1 > 0:
        v1 = load_tile(v, row, h_kv, key, inside, BLOCK_N, DV0, DV1, DV, True, WIDE)

    # Keys past the sequence give rows that nobody stores, so whole tiles need no mask for them.
    last_key = tl.minimum(tile * BLOCK_N + BLOCK_N, seqlen_k) - 1
    lo, hi = visible_rows(terms, seqlen_q, seqlen_k, tile * BLOCK_N, last_key)
    whole_lo, whole_hi = whole_rows(terms, seqlen_q, seqlen_k, tile * BLOCK_N, last_key)
    lo, whole_lo, whole_hi = tile_spans(lo, hi, whole_lo, whole_hi, BLOCK_M)

    dk0 = tl.zeros([BLOCK_N, D0], tl.float32)
    dk1 = tl.zeros([BLOCK_N, D1 if D1 > 0 else 1], tl.float32)
    dv0 = tl.zeros([BLOCK_N, DV0], tl.float32)
    dv1 = tl.zeros([BLOCK_N, DV1 if DV1 > 0 else 1], tl.float32)
    for member in tl.range(0, GROUP):
        h = h_kv * GROUP + member
        if terms.right is not None:
            dk0, dk1, dv0, dv1 = add_rows(
                dk0, dk1, dv0, dv1, k0, k1, v0, v1, q, g, row_terms, terms, heads, b, h, keys,
                first_row, seqlen_q, seqlen_k, lo, whole_lo,
                D, D0, D1, DV, DV0, DV1, BLOCK_M, True, False, FUSED, WIDE, PRECISION,
            )  # fmt: skip
        dk0, dk1, dv0, dv1 = add_rows(
            dk0, dk1, dv0, dv1, k0, k1, v0, v1, q, g, row_terms, terms, heads, b, h, keys,
            first_row, seqlen_q, seqlen_k, whole_lo, whole_hi,
            D, D0, D1, DV, DV0, DV1, BLOCK_M, False, False, FUSED, WIDE, PRECISION,
        )  # fmt: skip
        dk0, dk1, dv0, dv1 = add_rows(
            dk0, dk1, dv0, dv1, k0, k1, v0, v1, q, g, row_terms, terms, heads, b, h, keys,
            first_row, seqlen_q, seqlen_k, whole_hi, hi,
            D, D0, D1, DV, DV0, DV1, BLOCK_M, True, False, FUSED, WIDE, PRECISION,
        )  # fmt: skip

    broken = tl.maximum(has_nan(dk0, inside), has_nan(dv0, inside))
    if D1 > 0:
        broken = tl.maximum(broken, has_nan(dk1, inside))
    if DV1 > 0:
        broken = tl.maximum(broken, has_nan(dv1, inside))
    if broken > 0:
        dk0, dk1 = tl.zeros_like(dk0), tl.zeros_like(dk1)
        dv0, dv1 = tl.zeros_like(dv0), tl.zeros_like(dv1)
        for member in tl.range(0, GROUP):
            h = h_kv * GROUP + member
            dk0, dk1, dv0, dv1 = add_rows(
                dk0, dk1, dv0, dv1, k0, k1, v0, v1, q, g, row_terms, terms, heads, b, h, keys,
                first_row, seqlen_q, seqlen_k, lo, hi,
                D, D0, D1, DV, DV0, DV1, BLOCK_M, True, True, FUSED, WIDE, PRECISION,
            )  # fmt: skip
            dk0 = put_back(dk0, q, terms, heads, b, h, b, h, first_row, keys, seqlen_q, seqlen_k,
                           lo, hi, D, 0, D0, False, False)  # fmt: skip
            dv0 = put_back(dv0, g, terms, heads, b, h, b, h, first_row, keys, seqlen_q, seqlen_k,
                           lo, hi, DV, 0, DV0, False, True)  # fmt: skip
            if D1 > 0:
                dk1 = put_back(dk1, q, terms, heads, b, h, b, h, first_row, keys, seqlen_q,
                               seqlen_k, lo, hi, D, D0, D1, False, False)  # fmt: skip
            if DV1 > 0:
                dv1 = put_back(dv1, g, terms, heads, b, h, b, h, first_row, keys, seqlen_q,
                               seqlen_k, lo, hi, DV, DV0, DV1, False, True)  # fmt: skip

    if terms.rng_state is not None:
        dv0 *= terms.keep_scale
        dv1 *= terms.keep_scale
    dk_ptr = tile_at(dk, row, h_kv, key)
    dv_ptr = tile_at(dv, row, h_kv, key)
    dk_at = steps(dk, BLOCK_N, True)
    dv_at = steps(dv, BLOCK_N, True)
    store_rows(dk_ptr, dk_at, inside, dk.dim, dk0 * terms.scale, 0, D0, D)
    store_rows(dv_ptr, dv_at, inside, dv.dim, dv0, 0, DV0, DV)
    if D1 > 0:
        store_rows(dk_ptr, dk_at, inside, dk.dim, dk1 * terms.scale, D0, D1, D)
    if DV1 > 0:
        store_rows(dv_ptr, dv_at, inside, dv.dim, dv1, DV0, DV1, DV)


@triton.jit
def dq_kernel(
    q, k, v, g, dq, row_terms, extents, terms, batch, heads, total_q, row_tiles,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, DIMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FUSED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of BLOCK_M rows of one head; the last tiles of a causal head come first."""
    pid = tl.program_id(0)
    tile = row_tiles - 1 - pid % row_tiles
    h = (pid // row_tiles) % heads
    b = pid // row_tiles // heads
    if extents.cu_seqlens_q is not None:
        if b == batch:
            # One program per head clears what lies past the last sequence.
            if tile == 0:
                past = tl.load(extents.cu_seqlens_q + batch)
                clear(dq, h, past, total_q, D, DIMS, BLOCK_M)
            return
    first_row, seqlen_q = query_span(extents, b)
    row, first, seqlen_k = key_span(extents, b)
    if tile * BLOCK_M >= seqlen_q:
        return

    h_kv = h // GROUP
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < seqlen_q
    at = first_row + tile * BLOCK_M
    q0 = load_tile(q, b, h, at, inside, BLOCK_M, 0, D0, D, True, WIDE)
    g0 = load_tile(g, b, h, at, inside, BLOCK_M, 0, DV0, DV, True, WIDE)
    q1 = q0
    g1 = g0
    if D1 > 0:
        q1 = load_tile(q, b, h, at, inside, BLOCK_M, D0, D1, D, True, WIDE)
    if DV1 > 0:
        g1 = load_tile(g, b, h, at, inside, BLOCK_M, DV0, DV1, DV, True, WIDE)
    lse2, row_delta = load_row_terms(row_terms, b, h, at, inside, BLOCK_M, True)

    last_row = tl.minimum(tile * BLOCK_M + BLOCK_M, seqlen_q) - 1
    lo, hi = visible_keys(terms, seqlen_q, seqlen_k, tile * BLOCK_M, last_row)
    whole_lo, whole_hi = whole_keys(terms, seqlen_q, seqlen_k, tile * BLOCK_M, last_row)
    lo, whole_lo, whole_hi = tile_spans(lo, hi, whole_lo, whole_hi, BLOCK_N)

    dq0 = tl.zeros([BLOCK_M, D0], tl.float32)
    dq1 = tl.zeros([BLOCK_M, D1 if D1 > 0 else 1], tl.float32)
    if terms.left is not None:
        dq0, dq1 = add_keys(
            dq0, dq1, q0, q1, g0, g1, lse2, row_delta, k, v, terms, heads, b, h, h_kv, rows, row,
            first, seqlen_q, seqlen_k, lo, whole_lo,
            D, D0, D1, DV, DV0, DV1, BLOCK_N, True, False, FUSED, WIDE, PRECISION,
        )  # fmt: skip
    dq0, dq1 = add_keys(
        dq0, dq1, q0, q1, g0, g1, lse2, row_delta, k, v, terms, heads, b, h, h_kv, rows, row,
        first, seqlen_q, seqlen_k, whole_lo, whole_hi,
        D, D0, D1, DV, DV0, DV1, BLOCK_N, False, False, FUSED, WIDE, PRECISION,
    )  # fmt: skip
    dq0, dq1 = add_keys(
        dq0, dq1, q0, q1, g0, g1, lse2, row_delta, k, v, terms, heads, b, h, h_kv, rows, row,
        first, seqlen_q, seqlen_k, whole_hi, hi,
        D, D0, D1, DV, DV0, DV1, BLOCK_N, True, False, FUSED, WIDE, PRECISION,
    )  # fmt: skip

    broken = has_nan(dq0, inside)
    if D1 > 0:
        broken = tl.maximum(broken, has_nan(dq1, inside))
    if broken > 0:
        dq0, dq1 = add_keys(
            tl.zeros_like(dq0), tl.zeros_like(dq1), q0, q1, g0, g1, lse2, row_delta, k, v, terms,
            heads, b, h, h_kv, rows, row, first, seqlen_q, seqlen_k, lo, hi,
            D, D0, D1, DV, DV0, DV1, BLOCK_N, True, True, FUSED, WIDE, PRECISION,
        )  # fmt: skip
        dq0 = put_back(dq0, k, terms, heads, b, h, row, h_kv, first, rows, seqlen_q, seqlen_k,
                       lo, hi, D, 0, D0, True, False)  # fmt: skip
        if D1 > 0:
            dq1 = put_back(dq1, k, terms, heads, b, h, row, h_kv, first, rows, seqlen_q, seqlen_k,
                           lo, hi, D, D0, D1, True, False)  # fmt: skip

    dq_ptr = tile_at(dq, b, h, at)
    dq_at = steps(dq, BLOCK_M, True)
    store_rows(dq_ptr, dq_at, inside, dq.dim, dq0 * terms.scale, 0, D0, D)
    if D1 > 0:
        store_rows(dq_ptr, dq_at, inside, dq.dim, dq1 * terms.scale, D0, D1, D)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: AttentionTensors,
    problem: AttentionProblem,
    config: Config,
) -> Gradients:
    """Gradients of dense and packed tensors; see AttentionTensors for shapes."""
    tensors = arguments.packed(tensors)
    q, k, v = tensors.q, tensors.k, tensors.v
    call = launch.Call(tensors, problem, config, (grad_out, grad_lse, out, lse))
    shape = (*lse.shape, ROW_TERMS.value)
    row_terms = torch.empty(shape, dtype=torch.float32, device=lse.device)
    if lse.numel():
        launch.run(prepare_kernel, call, (row_terms,), lambda: _plan_rows(call, row_terms))
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    size = tiles.backward(problem, launch.family(q), config)
    count_k = max(1, tiles.cdiv(problem.seqlen_k, size.dkv.block_n))
    count_q = max(1, tiles.cdiv(problem.seqlen_q, size.dq.block_m))
    for kernel, written, heads, count, tile in (
        (dkv_kernel, (dk, dv), problem.kv_heads, count_k, size.dkv),
        (dq_kernel, (dq,), problem.heads, count_q, size.dq),
    ):
        if written[0].numel():
            launch.run(
                kernel,
                call,
                (row_terms, *written),
                partial(_plan_pass, call, row_terms, written, heads, count, tile),
            )
    dbias = None
    if problem.bias_grad and tensors.bias is not None:
        dbias = torch.empty(tensors.bias.shape, dtype=tensors.bias.dtype, device=q.device)
        bias_gradient.fill(dbias, row_terms, size.dq, call)
    dsinks = None
    if tensors.sinks is not None:
        # All of [B, H, S] or [H, T] but the heads.
        dims = [0, 2] if q.dim() == 4 else [1]
        dsinks = row_terms[..., 2].sum(dims).to(tensors.sinks.dtype)
    return Gradients(dq, dk, dv, dbias, dsinks)


def _plan_rows(call: launch.Call, row_terms: Tensor) -> launch.Plan:
    tensors, problem = call.tensors, call.problem
    grad_out, grad_lse, out, lse = call.more
    assert grad_out is not None and out is not None and lse is not None
    row_tiles = tiles.cdiv(lse.shape[-1], _PREPARED.block_m)
    args = (
        arguments.rows(GRAD_OUT, grad_out),
        arguments.rows(OUT, out),
        arguments.vector(LSE, lse),
        None if grad_lse is None else arguments.vector(GRAD_LSE, grad_lse),
        arguments.vector(KNOWN, row_terms[..., 0]),
        None if tensors.sinks is None else launch.operand("sinks"),
        None if tensors.cu_seqlens_q is None else launch.operand("cu_seqlens_q"),
        problem.batch,
        problem.heads,
        lse.shape[-1],
        row_tiles,
    )
    constants = {
        "DV": problem.head_dim_v,
        "WIDTH": min(128, triton.next_power_of_2(problem.head_dim_v)),
        "BLOCK_M": _PREPARED.block_m,
    }
    sequences = 1 if tensors.cu_seqlens_q is not None else problem.batch
    return launch.Plan(row_tiles * problem.heads * sequences, args, constants, _PREPARED.options)


def _plan_pass(
    call: launch.Call,
    row_terms: Tensor,
    written: tuple[Tensor, ...],
    heads: int,
    count: int,
    tile: tiles.Tile,
) -> launch.Plan:
    """One of the two passes, with `count` tiles of each of `heads` heads."""
    problem = call.problem
    packed = call.tensors.cu_seqlens_q is not None
    args = (
        *given(call),
        *(arguments.rows(launch.further(5 + i), t) for i, t in enumerate(written)),
        *known(call, row_terms),
        written[0].shape[0] if packed else 0,
        count,
    )
    constants = {
        "GROUP": problem.heads // problem.kv_heads,
        **arguments.dims(problem),
        "DIMS": triton.next_power_of_2(max(problem.head_dim, problem.head_dim_v)),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        **switches(call),
    }
    return launch.Plan(count * heads * (problem.batch + packed), args, constants, tile.options)
