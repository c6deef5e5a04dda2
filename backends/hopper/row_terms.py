"""Before and after the backward pass: what it needs of each row, and dq as it is returned.

    lse2_i = lse_i / ln 2 (inf where a row sees nothing)      delta_i = do_i · o_i - dlse_i

Both, and the sums of dq, lie in memory where every sequence begins with a tile of rows of its own;
a tile's rows past the end have an lse of inf and so no weight.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from portattn.backends.hopper.primitives import LOG2E, padded_tile, query_span, store_rows


@gluon.jit
def prepare_kernel(
    do, out, lse, grad_lse, lse2, delta, extents, heads, row_tiles, WIDTH: gl.constexpr,
    DIM: gl.constexpr, BLOCK_M: gl.constexpr,
):  # fmt: skip
    """lse2 and delta of BLOCK_M rows of one head."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    ROWS: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    tile = gl.program_id(0) % row_tiles
    head = gl.program_id(0) // row_tiles
    b = head // heads
    h = (head % heads).to(gl.int64)
    batch, first_row, seqlen_q = query_span(extents, b)
    if tile * BLOCK_M < seqlen_q:
        rows = tile * BLOCK_M + gl.arange(0, BLOCK_M, layout=ROWS)
        dims = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
        inside = rows < seqlen_q
        mask = inside[:, None] & (dims < DIM)[None, :]
        wide = (first_row + rows).to(gl.int64)
        wide_batch = batch.to(gl.int64)
        at = wide_batch * do.batch + h * do.head + wide * do.row
        x = gl.load(do.ptr + at[:, None] + dims[None, :], mask=mask, other=0.0)
        at = wide_batch * out.batch + h * out.head + wide * out.row
        y = gl.load(out.ptr + at[:, None] + dims[None, :], mask=mask, other=0.0)
        sums = gl.sum(x.to(gl.float32) * y.to(gl.float32), 1)
        at = wide_batch * lse.batch + h * lse.head + wide * lse.row
        value = gl.load(lse.ptr + at, mask=inside, other=-float("inf"))
        if grad_lse is not None:
            at = wide_batch * grad_lse.batch + h * grad_lse.head + wide * grad_lse.row
            sums = sums - gl.load(grad_lse.ptr + at, mask=inside, other=0.0)
        value = gl.where(value == -float("inf"), float("inf"), value * LOG2E)
        start = padded_tile(extents, b, first_row, BLOCK_M) * BLOCK_M
        at = wide_batch * lse2.batch + h * lse2.head + (start + rows)
        gl.store(lse2.ptr + at, value)
        gl.store(delta + at, sums)


@gluon.jit
def finish_kernel(
    sums, dq, extents, heads, row_tiles, scale, COLUMNS: gl.constexpr, DIM: gl.constexpr,
    BLOCK_M: gl.constexpr,
):  # fmt: skip
    """dq = scale · sums of half a tile of one head, from the order that threads add it up in."""
    COUNT: gl.constexpr = 64 * COLUMNS
    FLAT: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    LAYOUT: gl.constexpr = gl.BlockedLayout(
        [1, 8], [64 // COLUMNS * 4, COLUMNS // 8], [4, 1], [1, 0]
    )
    part = gl.program_id(0) % 2
    tile = gl.program_id(0) // 2 % row_tiles
    head = gl.program_id(0) // 2 // row_tiles
    b = head // heads
    h = head % heads
    batch, first_row, seqlen_q = query_span(extents, b)
    if tile * BLOCK_M < seqlen_q:
        start = padded_tile(extents, b, first_row, BLOCK_M) + tile
        at = batch.to(gl.int64) * sums.batch + h.to(gl.int64) * sums.head
        at = at + (start * 2 + part).to(gl.int64) * COUNT
        x = gl.load(sums.ptr + at + gl.arange(0, COUNT, layout=FLAT)) * scale
        x = gl.reshape(x, [COLUMNS // 8, 4, 8, 4, 2, 2])
        x = gl.reshape(gl.permute(x, [1, 4, 2, 0, 3, 5]), [64, COLUMNS])
        x = gl.convert_layout(x.to(dq.ptr.dtype.element_ty), LAYOUT)
        row = tile * BLOCK_M + (part * 64 if BLOCK_M == 128 else 0)
        rows = row + gl.arange(0, 64, layout=gl.SliceLayout(1, LAYOUT))
        column = 0 if BLOCK_M == 128 else part * COLUMNS
        store_rows(dq, batch, h, first_row, rows, seqlen_q, x, column, DIM)
