"""What the kernels share: operands, spans of visible keys, scores, the online softmax.

Scores are kept in base 2, s2 = s * log2(e), since the hardware's exponential is 2^x. A head
dimension is covered by two powers of two, D0 + D1 >= D, the second one often 0; copies fill the
rest with zeros.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)


class Rows(NamedTuple):
    """q, k, v, out: [batch, row, head, dim] in elements, dims contiguous; packed: batch 0."""

    ptr: Any
    batch: int
    row: int
    head: int


class Vector(NamedTuple):
    """A value per query row and head, such as lse: [batch, head, row]; packed: batch stride 0."""

    ptr: Any
    batch: int
    head: int
    row: int


class Extents(NamedTuple):
    """Where each sequence's rows and keys lie; see AttentionTensors."""

    seqlen_q: int
    seqlen_k: int
    cu_seqlens_q: Any
    cu_seqlens_k: Any


class Terms(NamedTuple):
    """What makes scores of q·k; softcap, left and right are None where they don't apply."""

    scale: float
    softcap: Any
    left: Any
    right: Any


class Schedule(NamedTuple):
    """Tiles of rows: `row_tiles` for each of `heads` of `batch` sequences.

    `section` is None where a head's tiles follow each other. Otherwise so many heads are worked on
    side by side, from their last tile, the longest under a causal mask, to their first.
    """

    batch: int
    heads: int
    row_tiles: int
    section: Any


class Span(NamedTuple):
    """Tiles of keys hi - 1 down to lo that a tile of rows visits.

    Those from whole_lo to whole_hi are visible to all of its rows.
    """

    lo: Any
    whole_lo: Any
    whole_hi: Any
    hi: Any


@gluon.jit
def tile_of(schedule, index):
    """(sequence, head, tile of rows) of the index-th tile."""
    if schedule.section is not None:
        heads = schedule.batch * schedule.heads
        start = index // (schedule.row_tiles * schedule.section) * schedule.section
        width = gl.minimum(schedule.section, heads - start)
        rest = index % (schedule.row_tiles * schedule.section)
        head = start + rest % width
        tile = schedule.row_tiles - 1 - rest // width
    else:
        head = index // schedule.row_tiles
        tile = index % schedule.row_tiles
    return head // schedule.heads, head % schedule.heads, tile


@gluon.jit
def query_span(extents, b):
    """(batch row, first row, number of rows) of sequence b."""
    if extents.cu_seqlens_q is not None:
        first = gl.load(extents.cu_seqlens_q + b)
        return b * 0, first, gl.load(extents.cu_seqlens_q + b + 1) - first
    else:
        return b, b * 0, b * 0 + extents.seqlen_q


@gluon.jit
def key_span(extents, b):
    """(batch row, first key, number of keys) of sequence b."""
    if extents.cu_seqlens_k is not None:
        first = gl.load(extents.cu_seqlens_k + b)
        return b * 0, first, gl.load(extents.cu_seqlens_k + b + 1) - first
    else:
        return b, b * 0, b * 0 + extents.seqlen_k


@gluon.jit
def visited(terms, seqlen_q, seqlen_k, first_row, rows, BLOCK_N: gl.constexpr):
    """The Span of rows first_row .. first_row + rows; hi = lo where they see nothing."""
    offset = seqlen_k - seqlen_q
    last_row = gl.minimum(first_row + rows, seqlen_q) - 1
    first = seqlen_k * 0
    last = seqlen_k
    whole_first = first
    whole_last = last
    if terms.left is not None:
        first = gl.maximum(first_row + offset - terms.left, 0)
        whole_first = gl.maximum(last_row + offset - terms.left, 0)
    if terms.right is not None:
        last = gl.minimum(last_row + offset + terms.right + 1, seqlen_k)
        whole_last = gl.minimum(first_row + offset + terms.right + 1, seqlen_k)
    last = gl.maximum(last, first)
    lo = first // BLOCK_N
    hi = (last + BLOCK_N - 1) // BLOCK_N
    hi = gl.where(last > first, hi, lo)
    whole_hi = gl.minimum(gl.maximum(gl.maximum(whole_last, 0) // BLOCK_N, lo), hi)
    whole_lo = gl.minimum(gl.maximum((whole_first + BLOCK_N - 1) // BLOCK_N, lo), whole_hi)
    return Span(lo, whole_lo, whole_hi, hi)


@gluon.jit
def visiting(terms, seqlen_q, seqlen_k, key, KEYS: gl.constexpr, BLOCK_M: gl.constexpr):
    """The Span of rows that see some of `KEYS` keys from `key` on; whole tiles see all of them.

    Rows that aren't there count as seeing everything: their lse is inf and their weights 0.
    """
    offset = seqlen_k - seqlen_q
    first = seqlen_q * 0
    last = seqlen_q
    whole_first = first
    whole_last = last
    if terms.right is not None:
        first = gl.maximum(key - offset - terms.right, 0)
        whole_first = gl.maximum(key + KEYS - 1 - offset - terms.right, 0)
    if terms.left is not None:
        last = gl.minimum(key + KEYS - offset + terms.left, seqlen_q)
        whole_last = gl.minimum(key - offset + terms.left + 1, seqlen_q)
    lo = first // BLOCK_M
    hi = gl.where(last > first, (gl.maximum(last, 0) + BLOCK_M - 1) // BLOCK_M, lo)
    whole_lo = gl.minimum(gl.maximum((whole_first + BLOCK_M - 1) // BLOCK_M, lo), hi)
    # Past the last key, every row needs the mask.
    whole_lo = gl.where(key + KEYS > seqlen_k, hi, whole_lo)
    ragged = gl.where(whole_last < seqlen_q, 0, BLOCK_M - 1)
    whole_hi = gl.maximum(whole_last + ragged, 0) // BLOCK_M
    whole_hi = gl.minimum(gl.maximum(whole_hi, whole_lo), hi)
    return Span(lo, whole_lo, whole_hi, hi)


@gluon.jit
def seen(terms, rows, keys, seqlen_q, seqlen_k):
    """Whether rows see keys, one of them along each dimension."""
    offset = seqlen_k - seqlen_q
    end = seqlen_k + rows * 0
    if terms.right is not None:
        end = gl.minimum(end, rows + (offset + terms.right + 1))
    visible = keys < end
    if terms.left is not None:
        visible = visible & (keys >= rows + (offset - terms.left))
    return visible


@gluon.jit
def padded_tile(extents, b, first_row, BLOCK_M: gl.constexpr):
    """Tile of BLOCK_M rows where sequence b begins in memory in which all begin with a tile."""
    if extents.cu_seqlens_q is not None:
        return first_row // BLOCK_M + b
    else:
        return b * 0


@gluon.jit
def hide(s, terms, rows, key, seqlen_q, seqlen_k, KEYS: gl.constexpr):
    """Scores s of `rows` and keys from `key` on, -inf where the window or the end hides them."""
    offset = seqlen_k - seqlen_q
    end = seqlen_k + rows * 0
    if terms.right is not None:
        end = gl.minimum(end, rows + (offset + terms.right + 1))
    keys = gl.arange(0, s.shape[1], layout=KEYS)
    visible = keys[None, :] < (end - key)[:, None]
    if terms.left is not None:
        visible = visible & (keys[None, :] >= (rows + (offset - terms.left - key))[:, None])
    return gl.where(visible, s, -float("inf"))


@gluon.jit
def tanh(x):
    """tanh, exact to a rounding for small x too, where 1 - 2 / (e^2x + 1) would cancel."""
    e = gl.exp2(gl.abs(x) * (-2.0 * LOG2E))
    large = (1.0 - e) / (1.0 + e)
    large = gl.where(x < 0.0, -large, large)
    y = x * x
    series = 62.0 / 2835.0 + y * (-1382.0 / 155925.0)
    series = 1.0 + y * (-1.0 / 3.0 + y * (2.0 / 15.0 + y * (-17.0 / 315.0 + y * series)))
    return gl.where(gl.abs(x) < 0.3, x * series, large)


@gluon.jit
def scores(product, terms, FUSED: gl.constexpr):
    """(x, factor) with x * factor the scores in base 2, from products q·k.

    FUSED: nothing but a positive scale stands between product and scores, so the multiplication is
    left to the exponential's fused multiply-add.
    """
    if FUSED:
        return product, terms.scale * LOG2E
    else:
        x = product * terms.scale
        if terms.softcap is not None:
            x = tanh(x / terms.softcap) * terms.softcap
        return x * LOG2E, 1.0


@gluon.jit
def softmax_step(x, factor, l, m):
    """One tile of the online softmax over scores x * factor: (weights, rescaling, l, m).

    A row that has seen nothing keeps m at -inf; its weights are exp2(-inf - 0) = 0.
    """
    m_new = gl.maximum(m, gl.max(x, 1) * factor)
    base = gl.where(m_new == -float("inf"), 0.0, m_new)
    p = gl.exp2(x * factor - base[:, None])
    alpha = gl.exp2(m - base)
    return p, alpha, l * alpha + gl.sum(p, 1), m_new


@gluon.jit
def store_rows(out, b, h, first_row, rows, seqlen_q, value, START: gl.constexpr, DV: gl.constexpr):
    """Write the rows that exist, straight from registers."""
    LAYOUT: gl.constexpr = value.type.layout
    WIDTH: gl.constexpr = value.shape[1]
    rows = gl.convert_layout(rows, gl.SliceLayout(1, LAYOUT))
    dims = START + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    at = b.to(gl.int64) * out.batch + h.to(gl.int64) * out.head
    at = at + (first_row + rows).to(gl.int64) * out.row
    inside = (rows < seqlen_q)[:, None] & (dims < DV)[None, :]
    value = value.to(out.ptr.dtype.element_ty)
    gl.store(out.ptr + at[:, None] + dims[None, :], value, mask=inside)


@gluon.jit
def tiles_of_memory(DTYPE: gl.constexpr, COUNT: gl.constexpr, ROWS: gl.constexpr, D: gl.constexpr):
    """Shared memory for COUNT tiles as a copy lays them out."""
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], DTYPE)
    return gl.allocate_shared_memory(DTYPE, [COUNT, ROWS, D], LAYOUT)


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """COUNT barriers that complete a phase with so many arrivals."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(made.index(i), count=ARRIVALS)
    return made
