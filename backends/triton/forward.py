"""Forward attention (FlashAttention-2, arXiv 2307.08691): one program per tile of query rows.

Over tiles of keys, with scores x in base 2, running maximum m, sum l and unnormalised output acc:

    m' = max(m, max_j x_j)      p_j = 2^(x_j - m')      a = 2^(m - m')
    l  = a l + sum_j p_j        acc = a acc + sum_j d_j p_j v_j

and at the end out = acc / l, lse = ln 2 · m + ln l. A sink z enters as m = z log2(e), l = 1. Keys
that every row of the tile sees are visited without a mask, those at the window's edges with one.

A masked key has p = 0, but 0 · NaN is NaN in a matrix product. So a tile that ends up with a NaN is
computed again key by key.

Keys and values that are stored with scales are converted as they are loaded; k's scale multiplies
the products, v's the finished sums.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from portattn.backends.common import launch
from portattn.backends.triton import arguments, tiles
from portattn.backends.triton.primitives import (
    LN2,
    LOG2E,
    is_visible,
    kept,
    key_offsets,
    key_span,
    like,
    load_rows,
    page_ids,
    query_span,
    scale_of,
    scores,
    softmax_step,
    store_rows,
    tile_spans,
    visible_keys,
    whole_keys,
)
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem


@triton.jit
def attend(
    acc0, acc1, l, m, q0, q1, k, v, extents, terms, heads, b, h, h_kv, rows, seqlen_q, seqlen_k,
    row, first, lo, hi,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, FUSED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add keys lo .. hi to the state (acc, l, m) of a tile of rows."""
    k_head = k.ptr + h_kv.to(tl.int64) * k.head
    v_head = v.ptr + h_kv.to(tl.int64) * v.head
    k_scale = scale_of(extents, extents.k_scale, b, h_kv)
    lanes = tl.arange(0, BLOCK_N)
    pages = lanes
    if extents.block_table is not None:
        pages = page_ids(extents, b, first, lo, lanes, seqlen_k)
    for start in tl.range(lo, hi, BLOCK_N):
        keys = start + lanes
        inside = keys < seqlen_k
        at = key_offsets(extents, k, row, first, start, lanes, pages, WIDE)
        k0 = like(load_rows(k_head, at, inside, k.dim, 0, D0, D, MASKED), q0)
        x = tl.dot(q0, k0.T, input_precision=PRECISION)
        if D1 > 0:
            k1 = like(load_rows(k_head, at, inside, k.dim, D0, D1, D, MASKED), q0)
            x = tl.dot(q1, k1.T, x, input_precision=PRECISION)
        if extents.k_scale is not None:
            x = x * k_scale
        x, factor, _ = scores(
            x, terms, b, h, rows[:, None], keys[None, :], seqlen_q, seqlen_k, MASKED, FUSED
        )
        p, alpha, l, m = softmax_step(x, factor, l, m)
        if terms.rng_state is not None:
            p = tl.where(kept(terms, heads, b, h, rows[:, None], keys[None, :]), p, 0.0)
        p = p.to(q0.dtype)
        at = key_offsets(extents, v, row, first, start, lanes, pages, WIDE)
        if extents.block_table is not None:
            # A tile ahead: where keys are can be known before they are loaded.
            pages = page_ids(extents, b, first, start + BLOCK_N, lanes, seqlen_k)
        acc0 = acc0 * alpha[:, None]
        v0 = like(load_rows(v_head, at, inside, v.dim, 0, DV0, DV, MASKED), q0)
        acc0 = tl.dot(p, v0, acc0, input_precision=PRECISION)
        if DV1 > 0:
            acc1 = acc1 * alpha[:, None]
            v1 = like(load_rows(v_head, at, inside, v.dim, DV0, DV1, DV, MASKED), q0)
            acc1 = tl.dot(p, v1, acc1, input_precision=PRECISION)
    return acc0, acc1, l, m


@triton.jit
def attend_one_by_one(
    acc0, acc1, l, m, q0, q1, k, v, extents, terms, heads, b, h, h_kv, rows, seqlen_q, seqlen_k,
    row, first, lo, hi,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, FUSED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Add keys lo .. hi, whose values reach only the rows that see them: slow, and right with NaN.

    In a product of tiles 0 times a hidden value's NaN or inf is NaN.
    """
    k_head = k.ptr + h_kv.to(tl.int64) * k.head
    v_head = v.ptr + h_kv.to(tl.int64) * v.head
    k_scale = scale_of(extents, extents.k_scale, b, h_kv)
    for key in tl.range(lo, hi, num_stages=1):
        lane = tl.arange(0, 1)
        keys = key + lane
        inside = keys < seqlen_k
        pages = lane
        if extents.block_table is not None:
            pages = page_ids(extents, b, first, key, lane, seqlen_k)
        at = key_offsets(extents, k, row, first, key, lane, pages, WIDE)
        k0 = like(load_rows(k_head, at, inside, k.dim, 0, D0, D, True), q0)
        x = tl.sum(q0.to(tl.float32) * k0.to(tl.float32), 1)
        if D1 > 0:
            k1 = like(load_rows(k_head, at, inside, k.dim, D0, D1, D, True), q0)
            x += tl.sum(q1.to(tl.float32) * k1.to(tl.float32), 1)
        if extents.k_scale is not None:
            x = x * k_scale
        x, factor, _ = scores(
            x[:, None], terms, b, h, rows[:, None], keys[None, :], seqlen_q, seqlen_k, True, FUSED
        )
        p, alpha, l, m = softmax_step(x, factor, l, m)
        seen = is_visible(terms, b, h, rows[:, None], keys[None, :], seqlen_q, seqlen_k)
        if terms.rng_state is not None:
            seen = seen & kept(terms, heads, b, h, rows[:, None], keys[None, :])
        p = p.to(q0.dtype).to(tl.float32)
        at = key_offsets(extents, v, row, first, key, lane, pages, WIDE)
        v0 = like(load_rows(v_head, at, inside, v.dim, 0, DV0, DV, True), q0).to(tl.float32)
        acc0 = acc0 * alpha[:, None] + tl.where(seen, p * v0, 0.0)
        if DV1 > 0:
            v1 = like(load_rows(v_head, at, inside, v.dim, DV0, DV1, DV, True), q0).to(tl.float32)
            acc1 = acc1 * alpha[:, None] + tl.where(seen, p * v1, 0.0)
    return acc0, acc1, l, m


@triton.jit
def clear_rows(out, lse, h, first_row, last_row, DV: tl.constexpr, WIDTH: tl.constexpr,
               BLOCK_M: tl.constexpr):  # fmt: skip
    """Rows of a packed tensor that belong to no sequence: out 0, lse -inf."""
    for start in tl.range(first_row, last_row, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        inside = rows < last_row
        at = rows.to(tl.int64) * out.row + h.to(tl.int64) * out.head
        zero = tl.zeros([BLOCK_M, WIDTH], tl.float32)
        store_rows(out.ptr, at, inside, out.dim, zero, 0, WIDTH, DV)
        lse_at = h.to(tl.int64) * lse.head + rows.to(tl.int64) * lse.row
        tl.store(lse.ptr + lse_at, tl.zeros([BLOCK_M], tl.float32) - float("inf"), mask=inside)


@triton.jit
def forward_kernel(
    q, k, v, out, lse, extents, terms, batch, heads, total_q, row_tiles,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FUSED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M query rows of one head; the last tiles of a causal head come first."""
    pid = tl.program_id(0)
    tile = row_tiles - 1 - pid % row_tiles
    h = (pid // row_tiles) % heads
    b = pid // row_tiles // heads
    h_kv = h // GROUP
    if extents.cu_seqlens_q is not None:
        if b == batch:
            # One program per head clears what lies past the last sequence.
            if tile == 0:
                past = tl.load(extents.cu_seqlens_q + batch)
                clear_rows(out, lse, h, past, total_q, DV, DV0 + DV1 if DV1 == DV0 else 2 * DV0,
                           BLOCK_M)  # fmt: skip
            return
    first_row, seqlen_q = query_span(extents, b)
    row, first, seqlen_k = key_span(extents, b)
    if tile * BLOCK_M >= seqlen_q:
        return

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < seqlen_q
    q_at = b.to(tl.int64) * q.batch + h.to(tl.int64) * q.head
    q_at += (first_row + rows).to(tl.int64) * q.row
    q0 = load_rows(q.ptr, q_at, inside, q.dim, 0, D0, D, True)
    q1 = q0
    if D1 > 0:
        q1 = load_rows(q.ptr, q_at, inside, q.dim, D0, D1, D, True)

    last_row = tl.minimum(tile * BLOCK_M + BLOCK_M, seqlen_q) - 1
    lo, hi = visible_keys(terms, seqlen_q, seqlen_k, tile * BLOCK_M, last_row)
    whole_lo, whole_hi = whole_keys(terms, seqlen_q, seqlen_k, tile * BLOCK_M, last_row)
    lo, whole_lo, whole_hi = tile_spans(lo, hi, whole_lo, whole_hi, BLOCK_N)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    if terms.sinks is not None:
        sink = tl.load(terms.sinks + h).to(tl.float32) * LOG2E
        m = tl.zeros([BLOCK_M], tl.float32) + sink
        l += tl.where(sink == float("-inf"), 0.0, 1.0)
    sink_m, sink_l = m, l
    acc0 = tl.zeros([BLOCK_M, DV0], tl.float32)
    acc1 = tl.zeros([BLOCK_M, DV1 if DV1 > 0 else 1], tl.float32)

    if terms.left is not None:
        acc0, acc1, l, m = attend(
            acc0, acc1, l, m, q0, q1, k, v, extents, terms, heads, b, h, h_kv, rows, seqlen_q,
            seqlen_k, row, first, lo, whole_lo,
            D, D0, D1, DV, DV0, DV1, BLOCK_N, True, FUSED, WIDE, PRECISION,
        )  # fmt: skip
    acc0, acc1, l, m = attend(
        acc0, acc1, l, m, q0, q1, k, v, extents, terms, heads, b, h, h_kv, rows, seqlen_q,
        seqlen_k, row, first, whole_lo, whole_hi,
        D, D0, D1, DV, DV0, DV1, BLOCK_N, False, FUSED, WIDE, PRECISION,
    )  # fmt: skip
    acc0, acc1, l, m = attend(
        acc0, acc1, l, m, q0, q1, k, v, extents, terms, heads, b, h, h_kv, rows, seqlen_q,
        seqlen_k, row, first, whole_hi, hi,
        D, D0, D1, DV, DV0, DV1, BLOCK_N, True, FUSED, WIDE, PRECISION,
    )  # fmt: skip

    broken = tl.max((acc0 != acc0).to(tl.int32))
    if DV1 > 0:
        broken = tl.maximum(broken, tl.max((acc1 != acc1).to(tl.int32)))
    if broken > 0:
        acc0, acc1, l, m = attend_one_by_one(
            tl.zeros_like(acc0), tl.zeros_like(acc1), sink_l, sink_m, q0, q1, k, v, extents, terms,
            heads, b, h, h_kv, rows, seqlen_q, seqlen_k, row, first, lo, hi,
            D, D0, D1, DV, DV0, DV1, FUSED, WIDE,
        )  # fmt: skip

    weight = tl.where(l == 0.0, 0.0, 1.0 / l)
    if terms.rng_state is not None:
        weight = weight * terms.keep_scale
    out_at = b.to(tl.int64) * out.batch + h.to(tl.int64) * out.head
    out_at += (first_row + rows).to(tl.int64) * out.row
    store_rows(out.ptr, out_at, inside, out.dim, acc0 * weight[:, None], 0, DV0, DV)
    if DV1 > 0:
        store_rows(out.ptr, out_at, inside, out.dim, acc1 * weight[:, None], DV0, DV1, DV)
    lse_at = b.to(tl.int64) * lse.batch + h.to(tl.int64) * lse.head
    lse_at += (first_row + rows).to(tl.int64) * lse.row
    value = tl.where(l == 0.0, float("-inf"), m * LN2 + tl.log(l))
    tl.store(lse.ptr + lse_at, value, mask=inside)


def forward(
    tensors: AttentionTensors, problem: AttentionProblem, config: Config
) -> tuple[Tensor, Tensor]:
    """out and lse of any layout; see AttentionTensors for shapes."""
    tensors = arguments.packed(tensors)
    q = tensors.q
    out = q.new_empty((*q.shape[:-1], problem.head_dim_v))
    lse = launch.new_lse(q)
    if not lse.numel():
        return out, lse

    def plan() -> launch.Plan:
        size = tiles.forward(problem, launch.family(q), config)
        row_tiles = max(1, tiles.cdiv(problem.seqlen_q, size.block_m))
        args = (
            arguments.rows(launch.operand("q"), q),
            arguments.rows(launch.operand("k"), tensors.k),
            arguments.rows(launch.operand("v"), tensors.v),
            arguments.rows(launch.further(0), out),
            arguments.vector(launch.further(1), lse),
            arguments.extents(tensors, problem, size.block_n),
            arguments.terms(tensors, problem),
            problem.batch,
            problem.heads,
            q.shape[0] if q.dim() == 3 else 0,
            row_tiles,
        )
        constants = {
            "GROUP": problem.heads // problem.kv_heads,
            **arguments.dims(problem),
            "BLOCK_M": size.block_m,
            "BLOCK_N": size.block_n,
            **arguments.switches(tensors, problem),
        }
        sequences = problem.batch + (tensors.cu_seqlens_q is not None)
        return launch.Plan(row_tiles * problem.heads * sequences, args, constants, size.options)

    launch.run(forward_kernel, launch.Call(tensors, problem, config), (out, lse), plan)
    return out, lse
