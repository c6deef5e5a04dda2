"""Backward attention on Hopper: one program per 128 keys, which it holds with their gradients.

With p_ij = 2^(x_ij - lse_i) from the forward's scores x and lse in base 2, delta_i = do_i · o_i
(less the gradient of lse_i), and t the softcap's tanh:

    dv_j = sum_i p_ij do_i            ds_ij = p_ij (do_i · v_j - delta_i) (1 - t_ij^2)
    dk_j = scale sum_i ds_ij q_i      dq_i = scale sum_j ds_ij k_j

Scores are computed transposed, so that P^T and dS^T are operands in registers of the products that
sum over rows. dQ, which sums over programs, is added up in float32 in global memory, in any order;
where the order must be fixed, dq.py computes it by itself and this kernel leaves it out.

Who waits for whom. One producer warp copies K and V once and then tiles of Q and dO; each of two
warpgroups owns 64 keys. dQ needs the dS of both: each computes its half, a tile late, so that
neither waits for the other, and the next S is under way before this tile's products have ended:

    tensor cores   dP_i |  dV_i  | dQ_(i-1)  dK_i  S_(i+1)
    warpgroup      P_i  | dS_i -> memory      | dQ_(i-1) to global memory

S = K Q^T, dP = V dO^T, dV += P dO, dK += dS Q (P and dS transposed as S is), dQ = dS^T K.

| barrier | arrives | waits | count |
| --- | --- | --- | --- |
| kv_full[0], kv_full[1] | copies of K, of V | both warpgroups | 1 + bytes |
| q_full[s], do_full[s] | copy into stage s, with lse or delta | both warpgroups | 1 + bytes |
| q_free[s], do_free[s] | both warpgroups, after dK or dV of stage s | producer | 2 |
| ds_full[n] | both warpgroups, dS written to n | both warpgroups | 2 |
| ds_free[n] | both warpgroups, dQ of n computed | both warpgroups | 2 |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from portattn.backends.hopper import gluon_api
from portattn.backends.hopper.primitives import (
    LOG2E,
    barriers,
    key_span,
    padded_tile,
    query_span,
    seen,
    store_rows,
    tanh,
    tiles_of_memory,
    visiting,
)

load = gluon_api.load
store = gluon_api.store
store_wait = gluon_api.store_wait
reduce_add = gluon_api.reduce_add

# Keys of a program: 64 of each of its two warpgroups.
BLOCK_N = gl.constexpr(128)
# How dQ is added up: not at all, by copies from shared memory, by instructions of each thread.
NOWHERE = gl.constexpr(0)
BY_COPIES = gl.constexpr(1)
BY_THREADS = gl.constexpr(2)


@dataclass(frozen=True)
class Sizes:
    """Constants of a program; head dimensions are padded to one power of two."""

    group: int  # query heads of a kv head
    d: int
    head_dim: int
    head_dim_v: int
    block_m: int
    stages: int
    fused: bool
    sums: int  # how dQ is added up

    @property
    def columns(self) -> int:
        """Of dQ that a warpgroup computes, of 64 rows: all of half the rows, or half of them."""
        return self.d if self.block_m == 128 else self.d // 2


class Descriptors(NamedTuple):
    """TMA descriptors of what is copied in, stored, and added up."""

    q: Any
    k: Any
    v: Any
    do: Any
    lse: Any
    delta: Any
    dq: Any
    dk: Any
    dv: Any


class Buffers(NamedTuple):
    """Shared memory: q, do [STAGES, M, D]; lse, delta [STAGES, 1, M]; k, v [2, 64, D];
    ds [2 · 2, 64, M]: of two tiles and both warpgroups; dq [2, M · D / 64, 32]."""

    q: Any
    k: Any
    v: Any
    do: Any
    lse: Any  # base 2; inf where a row sees nothing
    delta: Any
    ds: Any
    dq: Any


class Barriers(NamedTuple):
    """See the table above."""

    kv_full: Any
    q_full: Any
    q_free: Any
    do_full: Any
    do_free: Any
    ds_full: Any
    ds_free: Any


class Work(NamedTuple):
    """What every partition is given."""

    desc: Descriptors
    buf: Buffers
    bar: Barriers
    extents: Any
    terms: Any
    dq: Any  # [batch, head, tile of rows, M · D], as _put lays it out
    dk: Any
    dv: Any
    kv_heads: int
    key_tiles: int


class Place(NamedTuple):
    """This program's keys, and the rows that see some of them."""

    b: Any
    h_kv: Any
    q_batch: Any
    first_row: Any
    seqlen_q: Any
    k_batch: Any
    first_key: Any
    seqlen_k: Any
    key: Any
    span: Any
    padded: Any  # tile of lse, delta and dq where the sequence begins


@gluon.jit
def place_of(work, size: gl.constexpr):
    tile = gl.program_id(0) % work.key_tiles
    head = gl.program_id(0) // work.key_tiles
    b = head // work.kv_heads
    q_batch, first_row, seqlen_q = query_span(work.extents, b)
    k_batch, first_key, seqlen_k = key_span(work.extents, b)
    key = tile * BLOCK_N
    span = visiting(work.terms, seqlen_q, seqlen_k, key, BLOCK_N, size.block_m)
    padded = padded_tile(work.extents, b, first_row, size.block_m)
    return Place(
        b, head % work.kv_heads, q_batch, first_row, seqlen_q, k_batch, first_key, seqlen_k, key,
        span, padded,
    )  # fmt: skip


@gluon.jit
def produce(work, size: gl.constexpr):
    """Copy K and V, then every tile of rows that sees some of the keys, for each query head."""
    desc, buf, bar = work.desc, work.buf, work.bar
    BLOCK_M: gl.constexpr = size.block_m
    BYTES: gl.constexpr = size.block_m * (size.d * 2 + 4)
    at = place_of(work, size)
    if at.key < at.seqlen_k:
        mbarrier.expect(bar.kv_full.index(0), BLOCK_N * size.d * 2)
        mbarrier.expect(bar.kv_full.index(1), BLOCK_N * size.d * 2)
        for w in gl.static_range(2):
            key = at.first_key + at.key + w * 64
            load(desc.k, [at.k_batch, at.h_kv, key, 0], bar.kv_full.index(0), buf.k.index(w))
        for w in gl.static_range(2):
            key = at.first_key + at.key + w * 64
            load(desc.v, [at.k_batch, at.h_kv, key, 0], bar.kv_full.index(1), buf.v.index(w))
        visits = 0
        for g in range(size.group):
            h = at.h_kv * size.group + g
            for i in range(at.span.lo, at.span.hi):
                s = visits % size.stages
                free = ((visits // size.stages) & 1) ^ 1
                row = at.first_row + i * BLOCK_M
                terms = [at.q_batch, h, 0, (at.padded + i) * BLOCK_M]
                mbarrier.wait(bar.q_free.index(s), free)
                mbarrier.expect(bar.q_full.index(s), BYTES)
                load(desc.q, [at.q_batch, h, row, 0], bar.q_full.index(s), buf.q.index(s))
                load(desc.lse, terms, bar.q_full.index(s), buf.lse.index(s))
                mbarrier.wait(bar.do_free.index(s), free)
                mbarrier.expect(bar.do_full.index(s), BYTES)
                load(desc.do, [at.q_batch, h, row, 0], bar.do_full.index(s), buf.do.index(s))
                load(desc.delta, terms, bar.do_full.index(s), buf.delta.index(s))
                visits += 1


@gluon.jit
def row_vector(memory, s, zero, size: gl.constexpr):
    """A value of each row of stage s, [1, M] beside scores laid out as `zero`."""
    ROWS: gl.constexpr = gl.SliceLayout(0, zero.type.layout)
    return memory.index(s).reshape([size.block_m]).load(ROWS)[None, :]


@gluon.jit
def issue_scores(buf, bar, terms, visit, zero, size: gl.constexpr, MINE: gl.constexpr):
    """S = K Q^T of a visit once Q is there, not waited for."""
    s = visit % size.stages
    mbarrier.wait(bar.q_full.index(s), (visit // size.stages) & 1)
    if size.fused:
        # Where p = 2^(c k·q - lse), the sum begins with -lse / c.
        start = zero - row_vector(buf.lse, s, zero, size) * (1.0 / (terms.scale * LOG2E))
    else:
        start = zero
    return warpgroup_mma(buf.k.index(MINE), buf.q.index(s).permute((1, 0)), start, is_async=True)


@gluon.jit
def issue_dq(buf, bar, visit, size: gl.constexpr, MINE: gl.constexpr):
    """This warpgroup's half of dQ = dS K of a visit once dS is there, not waited for."""
    COLUMNS: gl.constexpr = size.columns
    HALF: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, size.columns, 16]
    )
    ROW: gl.constexpr = MINE * 64 if size.block_m == 128 else 0
    COLUMN: gl.constexpr = 0 if size.block_m == 128 else MINE * size.columns
    dq = gl.zeros([64, COLUMNS], gl.float32, layout=HALF)
    n = visit & 1
    mbarrier.wait(bar.ds_full.index(n), (visit >> 1) & 1)
    for w in gl.static_range(2):
        ds = buf.ds.index(n * 2 + w).slice(ROW, 64, dim=1).permute((1, 0))
        k = buf.k.index(w).slice(COLUMN, COLUMNS, dim=1)
        dq = warpgroup_mma(ds, k, dq, use_acc=w > 0, is_async=True)
    return dq


@gluon.jit
def add_dq(work, at, visit, g, i, dq, size: gl.constexpr, MINE: gl.constexpr):
    """Add half a tile of dQ, of the g-th head and the i-th tile of rows, in the threads' order.

    An accumulator's thread has columns 8j + 2c and the next of rows 16w + r and 16w + 8 + r; these
    four are laid side by side, so that threads write whole lines.
    """
    desc, buf, bar = work.desc, work.buf, work.bar
    COLUMNS: gl.constexpr = size.columns
    mbarrier.arrive(bar.ds_free.index(visit & 1), count=1)
    h = at.h_kv * size.group + g
    tile = at.padded + i
    dq = gl.reshape(dq, [4, 2, 8, COLUMNS // 8, 4, 2])
    dq = gl.permute(dq, [3, 0, 2, 4, 1, 5])
    if size.sums == BY_COPIES:
        store_wait(0)
        buf.dq.index(MINE).store(gl.reshape(dq, [2 * COLUMNS, 32]))
        fence_async_shared()
        row = (tile * 2 + MINE) * (2 * COLUMNS)
        reduce_add(desc.dq, [at.q_batch, h, row, 0], buf.dq.index(MINE))
    else:
        dq = gl.reshape(dq, [64 * COLUMNS])
        lanes = gl.arange(0, 64 * COLUMNS, layout=dq.type.layout)
        start = at.q_batch.to(gl.int64) * work.dq.batch + h.to(gl.int64) * work.dq.head
        start = start + (tile * 2 + MINE).to(gl.int64) * (64 * COLUMNS)
        gl.atomic_add(work.dq.ptr + start + lanes, dq, sem="relaxed")


@gluon.jit
def weights(x, lse, terms, size: gl.constexpr):
    """(p, p (1 - t^2)) of scores' products x and their rows' lse."""
    if size.fused:
        p = gl.exp2(x * (terms.scale * LOG2E) - lse)
        return p, p
    else:
        x = x * terms.scale
        if terms.softcap is not None:
            t = tanh(x / terms.softcap)
            p = gl.exp2(t * (terms.softcap * LOG2E) - lse)
            return p, p * (1.0 - t * t)
        else:
            p = gl.exp2(x * LOG2E - lse)
            return p, p


@gluon.jit
def step(
    x, dk, dv, visit, visits, g_before, i_before, i, work, at, keys, zero, size: gl.constexpr,
    FIRST: gl.constexpr, MINE: gl.constexpr,
):  # fmt: skip
    """One visit, of the i-th tile of rows, whose S is there: (the next one's S, dk, dv)."""
    buf, bar, terms = work.buf, work.bar, work.terms
    DTYPE: gl.constexpr = buf.q.dtype
    S: gl.constexpr = zero.type.layout
    A: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, size.d, 16]
    )
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=A, k_width=2)
    s = visit % size.stages
    BLOCK_M: gl.constexpr = size.block_m
    lanes = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, S))
    mbarrier.wait(bar.do_full.index(s), (visit // size.stages) & 1)
    # The sum begins with -delta.
    dp = zero - row_vector(buf.delta, s, zero, size)
    dp = warpgroup_mma(buf.v.index(MINE), buf.do.index(s).permute((1, 0)), dp, is_async=True)
    if size.fused:
        p = gl.exp2(x * (terms.scale * LOG2E))
        sloped = p
    else:
        p, sloped = weights(x, row_vector(buf.lse, s, zero, size), terms, size)
    if (i < at.span.whole_lo) | (i >= at.span.whole_hi):
        rows = (i * BLOCK_M + lanes)[None, :]
        visible = seen(terms, rows, keys[:, None], at.seqlen_q, at.seqlen_k)
        p = gl.where(visible, p, 0.0)
        if terms.softcap is not None:
            sloped = gl.where(visible, sloped, 0.0)
    if terms.softcap is None:
        sloped = p
    p_operand = gl.convert_layout(p.to(DTYPE), P)
    dp = warpgroup_mma_wait(0, deps=(dp,))
    dv = warpgroup_mma(p_operand, buf.do.index(s), dv, is_async=True)
    ds = (sloped * dp).to(DTYPE)
    ds_operand = gl.convert_layout(ds, P)
    if size.sums != NOWHERE:
        n = visit & 1
        mbarrier.wait(bar.ds_free.index(n), ((visit >> 1) & 1) ^ 1)
        buf.ds.index(n * 2 + MINE).store(ds)
        fence_async_shared()
        mbarrier.arrive(bar.ds_full.index(n), count=1)
    dv = warpgroup_mma_wait(0, deps=(dv,))
    mbarrier.arrive(bar.do_free.index(s), count=1)
    if size.sums != NOWHERE:
        if not FIRST:
            dq = issue_dq(buf, bar, visit - 1, size, MINE)
    dk = warpgroup_mma(ds_operand, buf.q.index(s), dk, is_async=True)
    # After the last visit this is its S once more, which nobody reads.
    x = issue_scores(buf, bar, terms, gl.minimum(visit + 1, visits - 1), zero, size, MINE)
    if size.sums != NOWHERE and not FIRST:
        dq = warpgroup_mma_wait(2, deps=(dq,))
        add_dq(work, at, visit - 1, g_before, i_before, dq, size, MINE)
    x, dk = warpgroup_mma_wait(0, deps=(x, dk))
    mbarrier.arrive(bar.q_free.index(s), count=1)
    return x, dk, dv


@gluon.jit
def consume(work, size: gl.constexpr, MINE: gl.constexpr):
    """Gradients of 64 keys and values, and this warpgroup's half of each tile of dq."""
    desc, buf, bar, terms = work.desc, work.buf, work.bar, work.terms
    D: gl.constexpr = size.d
    BLOCK_M: gl.constexpr = size.block_m
    S: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_M, 16]
    )
    A: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    at = place_of(work, size)
    if at.key < at.seqlen_k:
        keys = at.key + MINE * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, S))
        dk = gl.zeros([64, D], gl.float32, layout=A)
        dv = gl.zeros([64, D], gl.float32, layout=A)
        zero = gl.zeros([64, BLOCK_M], gl.float32, layout=S)
        visits = (at.span.hi - at.span.lo) * size.group
        mbarrier.wait(bar.kv_full.index(0), 0)
        mbarrier.wait(bar.kv_full.index(1), 0)
        if visits > 0:
            x = issue_scores(buf, bar, terms, 0, zero, size, MINE)
            x = warpgroup_mma_wait(0, deps=(x,))
            g = 0
            i = at.span.lo
            x, dk, dv = step(x, dk, dv, 0, visits, g, i, i, work, at, keys, zero, size, True, MINE)
            for visit in range(1, visits):
                i_before = i
                g_before = g
                around = i + 1 == at.span.hi
                i = gl.where(around, at.span.lo, i + 1)
                g = gl.where(around, g + 1, g)
                x, dk, dv = step(
                    x, dk, dv, visit, visits, g_before, i_before, i, work, at, keys, zero, size,
                    False, MINE,
                )  # fmt: skip
            if size.sums != NOWHERE:
                dq = issue_dq(buf, bar, visits - 1, size, MINE)
                dq = warpgroup_mma_wait(0, deps=(dq,))
                add_dq(work, at, visits - 1, g, i, dq, size, MINE)
        dk = dk * terms.scale
        key = at.first_key + at.key + MINE * 64
        memory = buf.v.index(MINE)
        if work.extents.cu_seqlens_k is not None:
            # A whole tile's copy would go on into the next sequence.
            if at.key + MINE * 64 + 64 <= at.seqlen_k:
                copy_out(desc.dv, memory, at.k_batch, at.h_kv, key, dv)
                copy_out(desc.dk, memory, at.k_batch, at.h_kv, key, dk)
            else:
                store_rows(
                    work.dv, at.k_batch, at.h_kv, at.first_key, keys, at.seqlen_k, dv, 0,
                    size.head_dim_v,
                )  # fmt: skip
                store_rows(
                    work.dk, at.k_batch, at.h_kv, at.first_key, keys, at.seqlen_k, dk, 0,
                    size.head_dim,
                )  # fmt: skip
        else:
            copy_out(desc.dv, memory, at.k_batch, at.h_kv, key, dv)
            copy_out(desc.dk, memory, at.k_batch, at.h_kv, key, dk)
    store_wait(0)


@gluon.jit
def copy_out(descriptor, memory, b, h, row, value):
    """Start the copy of 64 rows through memory that nothing reads any more.

    That is V's, of this warpgroup alone; K's may still be read for the other one's dQ.
    """
    store_wait(0)
    memory.store(value.to(memory.dtype))
    fence_async_shared()
    store(descriptor, [b, h, row, 0], memory)


@gluon.jit(do_not_specialize=("dq_rows", "dk_rows", "dv_rows", "extents", "terms"))
def backward_kernel(
    q, k, v, do, lse, delta, dq, dq_rows, dk, dv, dk_rows, dv_rows, extents, terms, kv_heads,
    key_tiles, SIZE: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Keys program_id(0) % key_tiles · 128 and on of kv head program_id(0) // key_tiles."""
    DTYPE: gl.constexpr = q.dtype
    D: gl.constexpr = SIZE.d
    BLOCK_M: gl.constexpr = SIZE.block_m
    STAGES: gl.constexpr = SIZE.stages
    PART: gl.constexpr = 2 * SIZE.columns
    desc = Descriptors(q, k, v, do, lse, delta, dq, dk, dv)
    buf = Buffers(
        tiles_of_memory(DTYPE, STAGES, BLOCK_M, D),
        tiles_of_memory(DTYPE, 2, 64, D),
        tiles_of_memory(DTYPE, 2, 64, D),
        tiles_of_memory(DTYPE, STAGES, BLOCK_M, D),
        tiles_of_memory(gl.float32, STAGES, 1, BLOCK_M),
        tiles_of_memory(gl.float32, STAGES, 1, BLOCK_M),
        tiles_of_memory(DTYPE, 4, 64, BLOCK_M) if SIZE.sums != NOWHERE else None,
        tiles_of_memory(gl.float32, 2, PART, 32) if SIZE.sums == BY_COPIES else None,
    )
    bar = Barriers(
        barriers(2, 1),
        barriers(STAGES, 1),
        barriers(STAGES, 2),
        barriers(STAGES, 1),
        barriers(STAGES, 2),
        barriers(2, 2),
        barriers(2, 2),
    )
    fence_async_shared()
    work = Work(desc, buf, bar, extents, terms, dq_rows, dk_rows, dv_rows, kv_heads, key_tiles)
    gl.warp_specialize(
        [(consume, (work, SIZE, 0)), (consume, (work, SIZE, 1)), (produce, (work, SIZE))],
        [4, 1],
        [CONSUMER_REGISTERS, 24],
    )
