"""What the kernels of the backward share: tiles, what is known of a row, gradients of scores.

The formulas stand in backward.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from portattn.backends.common import launch
from portattn.backends.triton import arguments
from portattn.backends.triton.primitives import (
    is_visible,
    kept,
    load_rows,
    scores,
    store_rows,
)

# What is known of a row before the passes: lse in base 2, delta, the sink's gradient, nothing.
ROW_TERMS = tl.constexpr(4)

# The tensors of a launch beyond the call's own, before what it writes.
GRAD_OUT, GRAD_LSE, OUT, LSE, KNOWN = (launch.further(i) for i in range(5))


@triton.jit
def visible_rows(terms, seqlen_q, seqlen_k, first_key, last_key):
    """[first, last) rows that see some key of first_key .. last_key (inclusive) by the window."""
    offset = seqlen_k - seqlen_q
    first = 0
    last = seqlen_q
    if terms.right is not None:
        first = tl.maximum(first_key - offset - terms.right, 0)
    if terms.left is not None:
        last = tl.minimum(last_key - offset + terms.left + 1, seqlen_q)
    return first, tl.maximum(last, first)


@triton.jit
def whole_rows(terms, seqlen_q, seqlen_k, first_key, last_key):
    """[first, last) rows that see every key of first_key .. last_key (inclusive)."""
    offset = seqlen_k - seqlen_q
    first = 0
    last = seqlen_q
    if terms.right is not None:
        first = tl.maximum(last_key - offset - terms.right, 0)
    if terms.left is not None:
        last = tl.minimum(first_key - offset + terms.left + 1, seqlen_q)
    return first, last


@triton.jit
def tile_at(operand, b, h, row):
    """Where row `row` of head h lies; the tile's offsets from there fit in 32 bits unless WIDE."""
    at = b.to(tl.int64) * operand.batch + h.to(tl.int64) * operand.head
    return operand.ptr + at + row.to(tl.int64) * operand.row


@triton.jit
def steps(operand, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of a tile's rows from its first."""
    at = tl.arange(0, ROWS)
    if WIDE:
        return at.to(tl.int64) * operand.row
    else:
        return at * operand.row


@triton.jit
def load_tile(
    operand, b, h, row, inside, ROWS: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr,
    DIM: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """ROWS rows from `row` on, columns START .. START + WIDTH."""
    ptr = tile_at(operand, b, h, row)
    at = steps(operand, ROWS, WIDE)
    return load_rows(ptr, at, inside, operand.dim, START, WIDTH, DIM, MASKED)


@triton.jit
def load_row_terms(row_terms, b, h, row, inside, ROWS: tl.constexpr, MASKED: tl.constexpr):
    """(lse in base 2, delta) of ROWS rows.

    They lie in fours since a load with fewer elements than threads is done in the layout of what
    uses it, where every thread would fetch its own copy of every row's value.
    """
    columns = tl.arange(0, ROW_TERMS)[None, :]
    at = tile_at(row_terms, b, h, row) + tl.arange(0, ROWS)[:, None] * ROW_TERMS + columns
    if MASKED:
        other = tl.where(columns == 0, float("inf"), 0.0)
        values = tl.load(at, mask=inside[:, None], other=other)
    else:
        values = tl.load(at)
    lse2 = tl.sum(tl.where(columns == 0, values, 0.0), 1)
    return lse2, tl.sum(tl.where(columns == 1, values, 0.0), 1)


@triton.jit
def probabilities(
    product, lse2, terms, b, h, rows, keys, seqlen_q, seqlen_k,
    MASKED: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """(p, scores in base 2 up to a factor, tanh of the softcap); p is 0 at hidden entries."""
    x, factor, t = scores(product, terms, b, h, rows, keys, seqlen_q, seqlen_k, MASKED, FUSED)
    p = tl.exp2(x * factor - lse2)
    if MASKED or terms.mask is not None or terms.bias is not None:
        p = tl.where(x == float("-inf"), 0.0, p)
    return p, x, t


@triton.jit
def score_gradients(p, x, t, dp, delta, keep, terms, MASKED: tl.constexpr):
    """(ds, du), both 0 at hidden entries whatever they hold."""
    if terms.rng_state is not None:
        dp = tl.where(keep, dp * terms.keep_scale, 0.0)
    ds = p * (dp - delta)
    du = ds
    if terms.softcap is not None:
        du = ds * (1.0 - t * t)
    if MASKED or terms.mask is not None or terms.bias is not None:
        ds = tl.where(x == float("-inf"), 0.0, ds)
        du = tl.where(x == float("-inf"), 0.0, du)
    return ds, du


@triton.jit
def put_back(
    acc, operand, terms, heads, b, h, row, h_at, first, mine, seqlen_q, seqlen_k, lo, hi,
    DIM: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr,
    KEYS: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Add the non-finite entries of `operand` to the entries of acc that see them, one by one.

    `operand` holds keys and acc rows where KEYS, else the other way round. The factor of an
    infinite q or k is 0 or NaN, since its score is infinite, so it gives NaN; an infinite g has a
    positive factor where dropout keeps it (WEIGHTS).
    """
    for index in tl.range(lo, hi):
        theirs = index + tl.arange(0, 1)
        value = load_tile(operand, row, h_at, first + index, theirs < hi, 1, START, WIDTH, DIM,
                          True, True).to(tl.float32)  # fmt: skip
        bad = tl.where(tl.abs(value) < float("inf"), 0.0, value)
        if tl.max((bad != 0.0).to(tl.int32)) > 0:
            rows = theirs[None, :]
            keys = mine[:, None]
            if KEYS:
                rows = mine[:, None]
                keys = theirs[None, :]
            seen = is_visible(terms, b, h, rows, keys, seqlen_q, seqlen_k)
            if WEIGHTS:
                if terms.rng_state is not None:
                    seen = seen & kept(terms, heads, b, h, rows, keys)
            else:
                bad = tl.where(bad != 0.0, float("nan"), 0.0)
            acc += tl.where(seen, bad, 0.0)
    return acc


@triton.jit
def clear(operand, h, first, last, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Zero the rows of a packed gradient that belong to no sequence."""
    for start in tl.range(0, last - first, ROWS):
        at = tile_at(operand, h * 0, h, first + start)
        inside = first + start + tl.arange(0, ROWS) < last
        zero = tl.zeros([ROWS, WIDTH], tl.float32)
        store_rows(at, steps(operand, ROWS, True), inside, operand.dim, zero, 0, WIDTH, DIM)


@triton.jit
def has_nan(x, inside):
    """1 if x [rows, dims] holds a NaN in one of the rows inside."""
    return tl.max(((x != x) & inside[:, None]).to(tl.int32))


def given(call: launch.Call) -> tuple[Any, ...]:
    """q, k, v and the gradient of out, as arguments of a kernel."""
    grad_out = call.more[0]
    assert grad_out is not None
    tensors = call.tensors
    return (
        arguments.rows(launch.operand("q"), tensors.q),
        arguments.rows(launch.operand("k"), tensors.k),
        arguments.rows(launch.operand("v"), tensors.v),
        arguments.rows(GRAD_OUT, grad_out),
    )


def known(call: launch.Call, row_terms: Tensor) -> tuple[Any, ...]:
    """What is known of each row, where the sequences lie, and what makes their scores."""
    return (
        arguments.vector(KNOWN, row_terms[..., 0]),
        arguments.extents(call.tensors, call.problem, 1),
        arguments.terms(call.tensors, call.problem),
        call.problem.batch,
        call.problem.heads,
    )


def switches(call: launch.Call) -> dict[str, Any]:
    """How scores, offsets and products are computed, grad_out's strides counted."""
    chosen = arguments.switches(call.tensors, call.problem)
    grad_out = call.more[0]
    assert grad_out is not None
    chosen["WIDE"] |= arguments.wide(replace(call.tensors, q=grad_out))
    return chosen
