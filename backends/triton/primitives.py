"""What the kernels share: operands, sequences, tiles of keys, scores, the online softmax, dropout.

Scores are kept in base 2, s2 = s * log2(e), since the hardware's exponential is 2^x. An operand
that a problem doesn't have is None, which compiles to nothing.

A head dimension is covered by two powers of two, D0 + D1 >= D, the second one often 0: 96 is
64 + 32, 192 is 128 + 64, 576 is 512 + 64. So no matrix product works on more than a third of
padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Rows(NamedTuple):
    """q, k, v, out and their gradients: [batch, row, head, dim] with strides in elements.

    Packed tensors have batch stride 0; pages are [page, slot, head, dim].
    """

    ptr: Any
    batch: int
    row: int
    head: int
    dim: int


class Matrix(NamedTuple):
    """A bias or mask over scores: [batch, head, row, key], stride 0 where it is broadcast."""

    ptr: Any
    batch: int
    head: int
    row: int
    key: int


class Vector(NamedTuple):
    """A value per query row and head, such as lse: [batch, head, row]; packed: batch stride 0."""

    ptr: Any
    batch: int
    head: int
    row: int


class Extents(NamedTuple):
    """Where each sequence's rows and keys lie; see AttentionTensors.

    tile_in_page is None where a tile of keys may span pages. k_scale and v_scale are [B, Hkv], rows
    scale_stride apart.
    """

    seqlen_q: int
    seqlen_k: int
    cu_seqlens_q: Any
    cu_seqlens_k: Any
    seqused_k: Any
    leftpad_k: Any
    cache_batch_idx: Any
    block_table: Any
    table_stride: int
    page_size: int
    tile_in_page: Any
    k_scale: Any = None
    v_scale: Any = None
    scale_stride: int = 0


class Terms(NamedTuple):
    """What makes scores of q·k: scale, softcap, alibi, bias, mask, window, and the sink.

    softcap, left and right are None where they don't apply. keep_below is dropout's threshold in
    units of 2**-24 and keep_scale 1 / (1 - p). `nothing` is for Triton 3.6, which loses a constant
    inside bias or mask (a stride of 1) unless the tuple around them holds a constant itself.
    """

    scale: float
    softcap: Any
    left: Any
    right: Any
    slopes: Any
    slopes_batch: int
    bias: Any
    mask: Any
    sinks: Any
    rng_state: Any
    drop_below: int
    keep_scale: float
    nothing: None = None


@triton.jit
def query_span(extents, b):
    """(first row in the packed tensor, number of rows) of sequence b."""
    if extents.cu_seqlens_q is not None:
        first = tl.load(extents.cu_seqlens_q + b)
        return first, tl.load(extents.cu_seqlens_q + b + 1) - first
    else:
        return b * 0, b * 0 + extents.seqlen_q


@triton.jit
def key_span(extents, b):
    """(batch row of k and v, first key there, number of keys) of sequence b."""
    if extents.seqused_k is not None:
        first = b * 0
        if extents.leftpad_k is not None:
            first = tl.load(extents.leftpad_k + b)
        row = b
        if extents.cache_batch_idx is not None:
            row = tl.load(extents.cache_batch_idx + b).to(tl.int32)
        return row, first, tl.load(extents.seqused_k + b) - first
    elif extents.cu_seqlens_k is not None:
        first = tl.load(extents.cu_seqlens_k + b)
        count = tl.load(extents.cu_seqlens_k + b + 1) - first
        if extents.block_table is not None:
            first = b * 0
        return b * 0, first, count
    else:
        return b, b * 0, b * 0 + extents.seqlen_k


@triton.jit
def visible_keys(terms, seqlen_q, seqlen_k, first_row, last_row):
    """[first, last) keys that some row of first_row .. last_row (inclusive) sees by the window."""
    offset = seqlen_k - seqlen_q
    first = 0
    last = seqlen_k
    if terms.left is not None:
        first = tl.maximum(first_row + offset - terms.left, 0)
    if terms.right is not None:
        last = tl.minimum(last_row + offset + terms.right + 1, seqlen_k)
    return first, tl.maximum(last, first)


@triton.jit
def whole_keys(terms, seqlen_q, seqlen_k, first_row, last_row):
    """[first, last) keys that every row of first_row .. last_row (inclusive) sees."""
    offset = seqlen_k - seqlen_q
    first = 0
    last = seqlen_k
    if terms.left is not None:
        first = tl.maximum(last_row + offset - terms.left, 0)
    if terms.right is not None:
        last = tl.minimum(first_row + offset + terms.right + 1, seqlen_k)
    return first, last


@triton.jit
def tile_spans(lo, hi, whole_lo, whole_hi, BLOCK: tl.constexpr):
    """(start, whole start, whole end) of the tiles over lo .. hi, in multiples of BLOCK.

    Tiles between the last two lie in whole_lo .. whole_hi and need no mask; those before and after
    them do.
    """
    start = lo // BLOCK * BLOCK
    whole_start = tl.minimum(tl.cdiv(whole_lo, BLOCK) * BLOCK, tl.cdiv(hi, BLOCK) * BLOCK)
    whole_start = tl.maximum(whole_start, start)
    return start, whole_start, tl.maximum(whole_hi // BLOCK * BLOCK, whole_start)


@triton.jit
def page_ids(extents, b, first, start, lanes, seqlen_k):
    """The pages of keys start + lanes of one sequence: one where a tile never spans two."""
    table = extents.block_table + b.to(tl.int64) * extents.table_stride
    if extents.tile_in_page is not None:
        inside = start < seqlen_k
        return tl.load(table + (first + start) // extents.page_size, mask=inside, other=0)
    else:
        inside = start + lanes < seqlen_k
        return tl.load(table + (first + start + lanes) // extents.page_size, mask=inside, other=0)


@triton.jit
def key_offsets(extents, operand, row, first, start, lanes, pages, WIDE: tl.constexpr):
    """Offsets in elements of keys start + lanes of one sequence in k or v, without head and dim.

    pages: their page_ids, if there are pages.
    """
    if extents.block_table is not None:
        if extents.tile_in_page is not None:
            slot = (first + start) % extents.page_size + lanes
        else:
            slot = (first + start + lanes) % extents.page_size
        return pages.to(tl.int64) * operand.batch + slot * operand.row
    else:
        at = row.to(tl.int64) * operand.batch + (first + start).to(tl.int64) * operand.row
        if WIDE:
            return at + lanes.to(tl.int64) * operand.row
        else:
            return at + lanes * operand.row


@triton.jit
def load_rows(
    ptr, offsets, inside, dim_stride, START: tl.constexpr, WIDTH: tl.constexpr,
    DIM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Columns START .. START + WIDTH of rows at `offsets`: [rows, WIDTH], 0 outside."""
    dims = START + tl.arange(0, WIDTH)
    pointers = ptr + offsets[:, None] + dims[None, :] * dim_stride
    if START + WIDTH > DIM:
        if MASKED:
            return tl.load(pointers, mask=inside[:, None] & (dims < DIM)[None, :], other=0.0)
        else:
            return tl.load(pointers, mask=(dims < DIM)[None, :], other=0.0)
    else:
        if MASKED:
            return tl.load(pointers, mask=inside[:, None], other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def like(stored, operand):
    """Keys or values in the dtype of an operand that multiplies them.

    uint8 holds the bits of e4m3 numbers, for chips that have no such type: its exponent and
    mantissa are those of a float16 that is 2^-8 of it, but for NaN, which is all ones.
    """
    if stored.dtype == tl.uint8:
        wide = stored.to(tl.uint16)
        bits = ((wide & 0x7F) << 7) | ((wide & 0x80) << 8)
        value = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return tl.where((wide & 0x7F) == 0x7F, float("nan"), value).to(operand.dtype)
    elif stored.dtype == tl.int8:
        return stored.to(tl.float32).to(operand.dtype)
    else:
        return stored.to(operand.dtype)


@triton.jit
def scale_of(extents, scales, b, h_kv):
    """The scale of one sequence's kv head; 1 where numbers are stored as they are."""
    if scales is not None:
        return tl.load(scales + b.to(tl.int64) * extents.scale_stride + h_kv)
    else:
        return 1.0


@triton.jit
def store_rows(
    ptr, offsets, inside, dim_stride, value, START: tl.constexpr, WIDTH: tl.constexpr,
    DIM: tl.constexpr,
):  # fmt: skip
    """Write [rows, WIDTH] to columns START .. START + WIDTH of rows at `offsets`."""
    dims = START + tl.arange(0, WIDTH)
    pointers = ptr + offsets[:, None] + dims[None, :] * dim_stride
    value = value.to(ptr.dtype.element_ty)
    tl.store(pointers, value, mask=inside[:, None] & (dims < DIM)[None, :])


@triton.jit
def tanh(x):
    """tanh, exact to a rounding for small x too, where 1 - 2 / (e^2x + 1) would cancel."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    large = (1.0 - e) / (1.0 + e)
    large = tl.where(x < 0.0, -large, large)
    y = x * x
    series = 62.0 / 2835.0 + y * (-1382.0 / 155925.0)
    series = 1.0 + y * (-1.0 / 3.0 + y * (2.0 / 15.0 + y * (-17.0 / 315.0 + y * series)))
    return tl.where(tl.abs(x) < 0.3, x * series, large)


@triton.jit
def is_visible(terms, b, h, rows, keys, seqlen_q, seqlen_k):
    """Which keys each row may look at, windows, mask and -inf bias counted; broadcasts.

    rows and keys count within the sequence, as broadcastable index tensors.
    """
    offset = seqlen_k - seqlen_q
    visible = (keys < seqlen_k) & (rows < seqlen_q)
    if terms.right is not None:
        visible = visible & (keys <= rows + offset + terms.right)
    if terms.left is not None:
        visible = visible & (keys >= rows + offset - terms.left)
    if terms.mask is not None:
        visible = visible & (load_matrix(terms.mask, b, h, rows, keys, visible) != 0)
    if terms.bias is not None:
        bias = load_matrix(terms.bias, b, h, rows, keys, visible).to(tl.float32)
        visible = visible & (bias != float("-inf"))
    return visible


@triton.jit
def load_matrix(matrix, b, h, rows, keys, inside):
    """Entries of a bias or mask at broadcastable indices, 0 outside."""
    base = matrix.ptr + b.to(tl.int64) * matrix.batch + h.to(tl.int64) * matrix.head
    at = rows.to(tl.int64) * matrix.row + keys.to(tl.int64) * matrix.key
    return tl.load(base + at, mask=inside, other=0)


@triton.jit
def scores(
    product, terms, b, h, rows, keys, seqlen_q, seqlen_k, MASKED: tl.constexpr, FUSED: tl.constexpr
):
    """(x, factor, tanh of the softcap) with x * factor the scores in base 2, from product q·k.

    x is -inf at hidden keys where MASKED, which may be false only where the window shows every key.
    rows [M, 1] and keys [1, N] count within the sequence; with rows [1, M] and keys [N, 1] the
    tile is transposed. FUSED: nothing but a positive scale stands between product and scores, so
    the multiplication is left to the exponential's fused multiply-add.
    """
    t = product
    if FUSED:
        x = product
        factor = terms.scale * LOG2E
    else:
        x = product * terms.scale
        if terms.softcap is not None:
            t = tanh(x / terms.softcap)
            x = t * terms.softcap
        if terms.slopes is not None:
            slope = tl.load(terms.slopes + b.to(tl.int64) * terms.slopes_batch + h)
            x = x - slope * tl.abs((keys - rows - (seqlen_k - seqlen_q)).to(tl.float32))
        if terms.bias is not None:
            inside = (keys < seqlen_k) & (rows < seqlen_q)
            x = x + load_matrix(terms.bias, b, h, rows, keys, inside).to(tl.float32)
        x = x * LOG2E
        factor = 1.0
    if MASKED or terms.mask is not None or terms.bias is not None:
        visible = is_visible(terms, b, h, rows, keys, seqlen_q, seqlen_k)
        x = tl.where(visible, x, float("-inf"))
    return x, factor, t


@triton.jit
def softmax_step(x, factor, l, m):
    """One tile of the online softmax over scores x * factor: (weights, rescaling, l, m).

    A row that has seen nothing keeps m at -inf; its weights are exp2(-inf - 0) = 0.
    """
    m_new = tl.maximum(m, tl.max(x, 1) * factor)
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(x * factor - base[:, None])
    alpha = tl.exp2(m - base)
    return p, alpha, l * alpha + tl.sum(p, 1), m_new


@triton.jit
def kept(terms, heads, b, h, rows, keys):
    """Which attention weights dropout keeps: backends/common/philox.py, element by element."""
    seed = tl.load(terms.rng_state)
    offset = tl.load(terms.rng_state + 1)
    zero = (rows + keys) * 0
    low = (offset & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    word, _, _, _ = tl.philox(seed, keys + zero, rows + zero, b * heads + h + zero, low + zero)
    return (word >> 8).to(tl.int32) >= terms.drop_below


@triton.jit
def finite(x):
    """x with NaN and inf replaced by 0."""
    return tl.where(tl.abs(x.to(tl.float32)) < float("inf"), x, 0.0).to(x.dtype)
