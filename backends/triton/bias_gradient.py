"""The gradient of a bias, without atomics: one program owns a tile of it.

A broadcast entry of the bias is read by many scores: by every sequence, head, row or key. Its
program visits them all, in order, recomputing ds as backward.py defines it, so the sum has the same
bits for the same call. That costs two more products per tile, only where the gradient is wanted.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from portattn.backends.common import launch
from portattn.backends.triton import arguments, tiles
from portattn.backends.triton.gradients import (
    given,
    known,
    load_row_terms,
    load_tile,
    probabilities,
    score_gradients,
    switches,
)
from portattn.backends.triton.primitives import (
    kept,
    key_span,
    query_span,
    visible_keys,
)


@triton.jit
def add_score_gradients(
    acc, q0, q1, g0, g1, lse2, row_delta, k, v, terms, heads, b, h, h_kv, rows, row, first,
    seqlen_q, seqlen_k, lo, hi,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add ds of one tile of rows against keys lo .. hi, tile upon tile, to acc."""
    for start in tl.range(lo, hi, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        inside = keys < seqlen_k
        key = first + start
        k0 = load_tile(k, row, h_kv, key, inside, BLOCK_N, 0, D0, D, True, WIDE)
        v0 = load_tile(v, row, h_kv, key, inside, BLOCK_N, 0, DV0, DV, True, WIDE)
        x = tl.dot(q0, k0.T, input_precision=PRECISION)
        dp = tl.dot(g0, v0.T, input_precision=PRECISION)
        if D1 > 0:
            k1 = load_tile(k, row, h_kv, key, inside, BLOCK_N, D0, D1, D, True, WIDE)
            x = tl.dot(q1, k1.T, x, input_precision=PRECISION)
        if DV1 > 0:
            v1 = load_tile(v, row, h_kv, key, inside, BLOCK_N, DV0, DV1, DV, True, WIDE)
            dp = tl.dot(g1, v1.T, dp, input_precision=PRECISION)
        p, x, t = probabilities(
            x, lse2[:, None], terms, b, h, rows[:, None], keys[None, :], seqlen_q, seqlen_k,
            True, False,
        )  # fmt: skip
        keep = True
        if terms.rng_state is not None:
            keep = kept(terms, heads, b, h, rows[:, None], keys[None, :])
        ds, _ = score_gradients(p, x, t, dp, row_delta[:, None], keep, terms, True)
        acc += ds
    return acc


@triton.jit
def dbias_kernel(
    q, k, v, g, dbias, row_terms, extents, terms, batch, heads,
    bias_rows, bias_keys, row_tiles, key_tiles,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    ALL_BATCHES: tl.constexpr, ALL_HEADS: tl.constexpr, ALL_ROWS: tl.constexpr,
    ALL_KEYS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of dbias, summed over everything that reads it: ALL_ where it is broadcast."""
    pid = tl.program_id(0)
    key_start = pid % key_tiles * BLOCK_N
    row_start = pid // key_tiles % row_tiles * BLOCK_M
    pid = pid // key_tiles // row_tiles
    h_lo = pid * 0
    members = heads
    b_lo = pid
    if not ALL_HEADS:
        h_lo = pid % heads
        members = 1
        b_lo = pid // heads
    batches = batch if ALL_BATCHES else 1

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for sequence in tl.range(0, batches):
        b = b_lo + sequence
        first_row, seqlen_q = query_span(extents, b)
        row, first, seqlen_k = key_span(extents, b)
        rows_hi = seqlen_q if ALL_ROWS else tl.minimum(row_start + BLOCK_M, seqlen_q)
        for member in tl.range(0, members):
            h = h_lo + member
            for start in tl.range(row_start, rows_hi, BLOCK_M):
                rows = start + tl.arange(0, BLOCK_M)
                inside = rows < seqlen_q
                at = first_row + start
                q0 = load_tile(q, b, h, at, inside, BLOCK_M, 0, D0, D, True, WIDE)
                g0 = load_tile(g, b, h, at, inside, BLOCK_M, 0, DV0, DV, True, WIDE)
                q1 = q0
                g1 = g0
                if D1 > 0:
                    q1 = load_tile(q, b, h, at, inside, BLOCK_M, D0, D1, D, True, WIDE)
                if DV1 > 0:
                    g1 = load_tile(g, b, h, at, inside, BLOCK_M, DV0, DV1, DV, True, WIDE)
                lse2, row_delta = load_row_terms(row_terms, b, h, at, inside, BLOCK_M, True)
                last_row = tl.minimum(start + BLOCK_M, seqlen_q) - 1
                lo, hi = visible_keys(terms, seqlen_q, seqlen_k, start, last_row)
                lo = tl.maximum(lo // BLOCK_N * BLOCK_N, key_start)
                if not ALL_KEYS:
                    hi = tl.minimum(hi, key_start + BLOCK_N)
                acc = add_score_gradients(
                    acc, q0, q1, g0, g1, lse2, row_delta, k, v, terms, heads, b, h, h // GROUP,
                    rows, row, first, seqlen_q, seqlen_k, lo, hi,
                    D, D0, D1, DV, DV0, DV1, BLOCK_N, WIDE, PRECISION,
                )  # fmt: skip

    ptr = dbias.ptr + b_lo.to(tl.int64) * dbias.batch + h_lo.to(tl.int64) * dbias.head
    rows = row_start + tl.arange(0, BLOCK_M)
    keys = key_start + tl.arange(0, BLOCK_N)
    if ALL_ROWS:
        acc = tl.sum(acc, 0, keep_dims=True)
        rows = tl.arange(0, 1)
    if ALL_KEYS:
        acc = tl.sum(acc, 1, keep_dims=True)
        keys = tl.arange(0, 1)
    at = rows[:, None].to(tl.int64) * dbias.row + keys[None, :].to(tl.int64) * dbias.key
    inside = (rows < bias_rows)[:, None] & (keys < bias_keys)[None, :]
    tl.store(ptr + at, acc.to(dbias.ptr.dtype.element_ty), mask=inside)


def fill(dbias: Tensor, row_terms: Tensor, tile: tiles.Tile, call: launch.Call) -> None:
    """Fill dbias, one program per tile of it."""
    if not dbias.numel():
        return
    batches, heads, rows, keys = dbias.shape
    tile = tile._replace(block_m=min(tile.block_m, 64), block_n=min(tile.block_n, 64), stages=1)
    row_tiles, key_tiles = tiles.cdiv(rows, tile.block_m), tiles.cdiv(keys, tile.block_n)

    def plan() -> launch.Plan:
        args = (
            *given(call),
            arguments.matrix(launch.further(5), dbias, dbias.shape),
            *known(call, row_terms),
            rows,
            keys,
            row_tiles,
            key_tiles,
        )
        constants = {
            "GROUP": call.problem.heads // call.problem.kv_heads,
            **arguments.dims(call.problem),
            "ALL_BATCHES": batches == 1,
            "ALL_HEADS": heads == 1,
            "ALL_ROWS": rows == 1,
            "ALL_KEYS": keys == 1,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            **{name: value for name, value in switches(call).items() if name != "FUSED"},
        }
        return launch.Plan(batches * heads * row_tiles * key_tiles, args, constants, tile.options)

    launch.run(dbias_kernel, call, (row_terms, dbias), plan)
