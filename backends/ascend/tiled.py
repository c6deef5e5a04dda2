"""Attention tiled on two levels for Ascend (FastAttention, arXiv 2410.16663), in Triton.

An Ascend core multiplies on its Cube unit and takes exponentials on its Vector units, and each
exchange of scores between them is a pair of synchronisations. The first level is one exchange:
BLOCK_M rows by BLOCK_N keys, as many as the Unified Buffer holds (tiles.py). The second level is
the compiler's: it cuts the products to the Cube's L0 buffers.

Over first-level blocks, with running maximum m, sum l and unnormalised output acc:

    m' = max(m, max_j s_j)      p_j = exp(s_j - m')      a = exp(m - m')
    l  = a l + sum_j p_j        acc = a acc + sum_j p_j v_j

and at the end out = acc / l, lse = m + ln l. A sink z enters as m = z, l = 1. Hidden keys of a
block come from windows of one triangular mask (tiling_mask.py).

Only what upstream Triton and triton-ascend 3.2 share is used: plain pointers with masks, no tuples.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hide(
    s, mask_ptr, start, seqlen_k, offset, left, right,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIDE: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """-inf for keys beyond the last and outside the window; see tiling_mask.window_start."""
    lanes = tl.arange(0, BLOCK_N)
    s = tl.where((start + lanes < seqlen_k)[None, :], s, float("-inf"))
    window = tl.arange(0, BLOCK_M)[:, None] * SIDE + lanes[None, :]
    if RIGHT:
        delta = offset + right - start
        corner = tl.minimum(tl.maximum(delta, 0), BLOCK_N) * SIDE
        corner += tl.minimum(tl.maximum(-delta, 0), BLOCK_M)
        hidden = tl.load(mask_ptr + corner + window)
        s = tl.where(hidden == 0, s, float("-inf"))
    if LEFT:
        delta = offset - left - 1 - start
        corner = tl.minimum(tl.maximum(delta, 0), BLOCK_N) * SIDE
        corner += tl.minimum(tl.maximum(-delta, 0), BLOCK_M)
        visible = tl.load(mask_ptr + corner + window)
        s = tl.where(visible != 0, s, float("-inf"))
    return s


@triton.jit
def attend(
    acc, l, m, q, k_ptr, v_ptr, mask_ptr, table_ptr, k_page, k_row, v_page, v_row,
    lo, hi, seqlen_k, offset, left, right, scale, softcap,
    D: tl.constexpr, WIDTH: tl.constexpr, DV: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIDE: tl.constexpr, PAGE: tl.constexpr,
    SOFTCAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add keys lo .. hi to the state (acc, l, m); unless MASKED every row sees all of them.

    The tile's first row sees keys from offset - left to offset + right.
    """
    lanes = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, WIDTH)
    dims_v = tl.arange(0, WIDTH_V)
    k_at = lanes[:, None] * k_row + dims[None, :]
    v_at = lanes[:, None] * v_row + dims_v[None, :]
    for begin in range(lo, hi, BLOCK_N):
        start = lo * 0 + begin  # the interpreter counts in Python's integers
        k_block = k_ptr
        v_block = v_ptr
        if PAGE > 0:
            page = tl.load(table_ptr + start // PAGE).to(tl.int64)
            k_block += page * k_page + (start % PAGE) * k_row
            v_block += page * v_page + (start % PAGE) * v_row
        else:
            k_block += start.to(tl.int64) * k_row
            v_block += start.to(tl.int64) * v_row
        in_k = dims[None, :] < D
        in_v = dims_v[None, :] < DV
        if MASKED:
            inside = (start + lanes < seqlen_k)[:, None]
            in_k = in_k & inside
            in_v = in_v & inside
        k = tl.load(k_block + k_at, mask=in_k, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if SOFTCAP:
            # tanh(x) = 1 - 2 / (exp(2x) + 1)
            s = softcap * (1.0 - 2.0 / (tl.exp(2.0 * s / softcap) + 1.0))
        if MASKED:
            s = hide(
                s, mask_ptr, start, seqlen_k, offset, left, right,
                BLOCK_M, BLOCK_N, SIDE, LEFT, RIGHT,
            )  # fmt: skip
        top = tl.maximum(m, tl.max(s, 1))
        # A row that has seen nothing: exp(-inf - 0) is 0, where exp(-inf + inf) is NaN.
        base = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp(s - base[:, None])
        a = tl.exp(m - base)
        l = l * a + tl.sum(p, 1)
        m = top
        v = tl.load(v_block + v_at, mask=in_v, other=0.0)
        acc = acc * a[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return acc, l, m


@triton.jit
def tiled_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, mask_ptr, sinks_ptr,
    starts_q, starts_k, used_k, first_k, rows_k, table,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    out_batch, out_row, out_head, lse_batch, lse_head, table_batch,
    scale, softcap, left, right, heads, tiles, all_queries, all_keys,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    DV: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EDGE: tl.constexpr, SIDE: tl.constexpr,
    PAGE: tl.constexpr, VARLEN: tl.constexpr, CACHE: tl.constexpr, LEFTPAD: tl.constexpr,
    INDEXED: tl.constexpr, PACKED: tl.constexpr, SINKS: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M query rows of one head or, PACKED, the heads of a group for one query."""
    pid = tl.program_id(0)
    tile = pid % tiles
    h = (pid // tiles) % heads
    b = pid // tiles // heads
    # PACKED: `heads` counts groups.
    h_kv = h if PACKED else h // GROUP

    first_row = b * 0
    seqlen_q = all_queries
    row_k = b
    skip = b * 0
    seqlen_k = all_keys
    if VARLEN:
        first_row = tl.load(starts_q + b)
        seqlen_q = tl.load(starts_q + b + 1) - first_row
        skip = tl.load(starts_k + b)
        seqlen_k = tl.load(starts_k + b + 1) - skip
        row_k = b * 0
    if CACHE:
        if INDEXED:
            row_k = tl.load(rows_k + b)
        if LEFTPAD:
            skip = tl.load(first_k + b)
        seqlen_k = tl.load(used_k + b) - skip

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, WIDTH)
    dims_v = tl.arange(0, WIDTH_V)
    if PACKED:
        limit = GROUP
        head_of = h * GROUP
        q_step = q_head
        out_step = out_head
        lse_step = lse_head
        lse_at = lse_ptr + b.to(tl.int64) * lse_batch + head_of * lse_head
    else:
        limit = seqlen_q - tile * BLOCK_M
        head_of = h
        q_step = q_row
        out_step = out_row
        lse_step = 1
        lse_at = lse_ptr + b.to(tl.int64) * lse_batch + h * lse_head + first_row + tile * BLOCK_M
    first = (first_row + tile * BLOCK_M).to(tl.int64)
    in_rows = rows < limit
    q_at = q_ptr + b.to(tl.int64) * q_batch + head_of.to(tl.int64) * q_head + first * q_row
    q = tl.load(
        q_at + rows[:, None] * q_step + dims[None, :],
        mask=in_rows[:, None] & (dims[None, :] < D), other=0.0,
    )  # fmt: skip

    # Keys that some row of the tile sees, in steps of EDGE; those that all rows see, of BLOCK_N.
    offset = tile * BLOCK_M + seqlen_k - seqlen_q
    lo = b * 0
    hi = seqlen_k
    whole_hi = seqlen_k
    whole_lo = b * 0
    if RIGHT:
        hi = tl.minimum(hi, offset + BLOCK_M + right)
        whole_hi = tl.minimum(whole_hi, offset + right + 1)
    if LEFT:
        lo = tl.maximum(lo, offset - left) // EDGE * EDGE
        whole_lo = tl.maximum(whole_lo, offset + BLOCK_M - 1 - left)
        whole_lo = (whole_lo + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    if limit <= 0:
        hi = lo
    whole_lo = tl.minimum(whole_lo, tl.maximum(hi, lo))
    whole_hi = tl.maximum(whole_hi, whole_lo)
    whole_hi = whole_lo + (whole_hi - whole_lo) // BLOCK_N * BLOCK_N
    if limit <= 0:
        whole_hi = whole_lo

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        if PACKED:
            m = tl.load(sinks_ptr + head_of + rows, mask=in_rows, other=0.0).to(tl.float32)
        else:
            m = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks_ptr + h).to(tl.float32)
        l = tl.where(m == float("-inf"), 0.0, 1.0)
    acc = tl.zeros([BLOCK_M, WIDTH_V], tl.float32)

    k_at = k_ptr + h_kv.to(tl.int64) * k_head
    v_at = v_ptr + h_kv.to(tl.int64) * v_head
    table_at = table
    if PAGE > 0:
        table_at += b * table_batch
    else:
        k_at += row_k.to(tl.int64) * k_batch + skip.to(tl.int64) * k_row
        v_at += row_k.to(tl.int64) * v_batch + skip.to(tl.int64) * v_row
    if LEFT:
        acc, l, m = attend(
            acc, l, m, q, k_at, v_at, mask_ptr, table_at, k_batch, k_row, v_batch, v_row,
            lo, whole_lo, seqlen_k, offset, left, right, scale, softcap,
            D, WIDTH, DV, WIDTH_V, BLOCK_M, EDGE, SIDE, PAGE, SOFTCAP, LEFT, RIGHT, True,
        )  # fmt: skip
    acc, l, m = attend(
        acc, l, m, q, k_at, v_at, mask_ptr, table_at, k_batch, k_row, v_batch, v_row,
        whole_lo, whole_hi, seqlen_k, offset, left, right, scale, softcap,
        D, WIDTH, DV, WIDTH_V, BLOCK_M, BLOCK_N, SIDE, PAGE, SOFTCAP, LEFT, RIGHT, False,
    )  # fmt: skip
    acc, l, m = attend(
        acc, l, m, q, k_at, v_at, mask_ptr, table_at, k_batch, k_row, v_batch, v_row,
        whole_hi, hi, seqlen_k, offset, left, right, scale, softcap,
        D, WIDTH, DV, WIDTH_V, BLOCK_M, EDGE, SIDE, PAGE, SOFTCAP, LEFT, RIGHT, True,
    )  # fmt: skip

    weight = 1.0 / tl.where(l == 0.0, 1.0, l)
    out_at = out_ptr + b.to(tl.int64) * out_batch + head_of.to(tl.int64) * out_head
    out_at += first * out_row
    tl.store(
        out_at + rows[:, None] * out_step + dims_v[None, :],
        (acc * weight[:, None]).to(out_ptr.dtype.element_ty),
        mask=in_rows[:, None] & (dims_v[None, :] < DV),
    )
    # NaN is stored as it is; only a sum of exactly 0 means that nothing was seen.
    value = tl.where(l == 0.0, float("-inf"), m + tl.log(tl.where(l == 0.0, 1.0, l)))
    tl.store(lse_at + rows * lse_step, value, mask=in_rows)
