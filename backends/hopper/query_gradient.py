"""dQ on its own, summed in a fixed order: one program per 128 rows, which it holds with their sums.

    p_ij = 2^(x_ij - lse_i)      ds_ij = p_ij (do_i · v_j - delta_i) (1 - t_ij^2)
    dq_i = scale sum_j ds_ij k_j

See backward.py for the terms. S and dP are computed a second time here, 7 products for its 5, which
is what the order costs: no program waits for another.

Who waits for whom. One producer warp copies Q and dO once and then tiles of K and V; each of two
warpgroups owns 64 rows. The next S is under way before this tile's product has ended:

    tensor cores   dP_j |        | dQ_j  S_(j+1)           S = Q K^T, dP = dO V^T, dQ += dS K
    warpgroup      P_j  | dS_j

| barrier | arrives | waits | count |
| --- | --- | --- | --- |
| q_full[w] | copies of Q's and dO's rows w | warpgroup w | 1 + bytes |
| k_full[s], v_full[s] | copy into stage s | both warpgroups | 1 + bytes |
| k_free[s], v_free[s] | both warpgroups, after dQ or dP of stage s | producer | 2 |
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
from portattn.backends.hopper.backward import weights
from portattn.backends.hopper.primitives import (
    barriers,
    key_span,
    padded_tile,
    query_span,
    seen,
    store_rows,
    tile_of,
    tiles_of_memory,
    visited,
)

load = gluon_api.load

# Rows of a program: 64 of each of its two warpgroups.
BLOCK_M = gl.constexpr(128)


@dataclass(frozen=True)
class Sizes:
    """Constants of a program; head dimensions are padded to one power of two."""

    group: int  # query heads of a kv head
    d: int
    head_dim: int
    block_n: int
    stages: int
    padding: int  # rows of a tile of lse and delta
    fused: bool


class Descriptors(NamedTuple):
    """TMA descriptors of what is copied in."""

    q: Any
    k: Any
    v: Any
    do: Any


class Buffers(NamedTuple):
    """Shared memory: q, do [2, 64, D]; k, v [STAGES, N, D]."""

    q: Any
    k: Any
    v: Any
    do: Any


class Barriers(NamedTuple):
    """See the table above."""

    q_full: Any
    k_full: Any
    k_free: Any
    v_full: Any
    v_free: Any


class Work(NamedTuple):
    """What every partition is given."""

    desc: Descriptors
    buf: Buffers
    bar: Barriers
    extents: Any
    terms: Any
    schedule: Any
    lse: Any  # base 2; inf where a row sees nothing
    delta: Any  # laid out as lse
    dq: Any


@gluon.jit
def produce(work, size: gl.constexpr):
    """Copy Q and dO, then every tile of keys that some of the rows see."""
    desc, buf, bar = work.desc, work.buf, work.bar
    BLOCK_N: gl.constexpr = size.block_n
    b, h, tile = tile_of(work.schedule, gl.program_id(0))
    q_batch, first_row, seqlen_q = query_span(work.extents, b)
    k_batch, first_key, seqlen_k = key_span(work.extents, b)
    row = tile * BLOCK_M
    if row < seqlen_q:
        span = visited(work.terms, seqlen_q, seqlen_k, row, BLOCK_M, BLOCK_N)
        for w in gl.static_range(2):
            mbarrier.expect(bar.q_full.index(w), 2 * 64 * size.d * 2)
            at = first_row + row + w * 64
            load(desc.q, [q_batch, h, at, 0], bar.q_full.index(w), buf.q.index(w))
            load(desc.do, [q_batch, h, at, 0], bar.q_full.index(w), buf.do.index(w))
        for i in range(span.hi - span.lo):
            s = i % size.stages
            free = ((i // size.stages) & 1) ^ 1
            key = first_key + (span.lo + i) * BLOCK_N
            h_kv = h // size.group
            mbarrier.wait(bar.k_free.index(s), free)
            mbarrier.expect(bar.k_full.index(s), BLOCK_N * size.d * 2)
            load(desc.k, [k_batch, h_kv, key, 0], bar.k_full.index(s), buf.k.index(s))
            mbarrier.wait(bar.v_free.index(s), free)
            mbarrier.expect(bar.v_full.index(s), BLOCK_N * size.d * 2)
            load(desc.v, [k_batch, h_kv, key, 0], bar.v_full.index(s), buf.v.index(s))


@gluon.jit
def issue_scores(buf, bar, i, zero, size: gl.constexpr, MINE: gl.constexpr):
    """S = Q K^T of the i-th tile once K is there, not waited for."""
    s = i % size.stages
    mbarrier.wait(bar.k_full.index(s), (i // size.stages) & 1)
    return warpgroup_mma(
        buf.q.index(MINE), buf.k.index(s).permute((1, 0)), zero, use_acc=False, is_async=True
    )


@gluon.jit
def step(
    x, dq, i, span, work, rows, lse, delta, seqlen_q, seqlen_k, zero, size: gl.constexpr,
    MINE: gl.constexpr,
):  # fmt: skip
    """The i-th tile of keys, whose S is there: (the next one's S, dq)."""
    buf, bar, terms = work.buf, work.bar, work.terms
    DTYPE: gl.constexpr = buf.q.dtype
    BLOCK_N: gl.constexpr = size.block_n
    S: gl.constexpr = zero.type.layout
    A: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, size.d, 16]
    )
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=A, k_width=2)
    s = i % size.stages
    mbarrier.wait(bar.v_full.index(s), (i // size.stages) & 1)
    dp = warpgroup_mma(
        buf.do.index(MINE), buf.v.index(s).permute((1, 0)), zero, use_acc=False, is_async=True
    )
    _p, sloped = weights(x, lse[:, None], terms, size)
    tile = span.lo + i
    if (tile < span.whole_lo) | (tile >= span.whole_hi):
        keys = tile * BLOCK_N + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, S))
        visible = seen(terms, rows[:, None], keys[None, :], seqlen_q, seqlen_k)
        sloped = gl.where(visible, sloped, 0.0)
    dp = warpgroup_mma_wait(0, deps=(dp,))
    mbarrier.arrive(bar.v_free.index(s), count=1)
    ds = gl.convert_layout((sloped * (dp - delta[:, None])).to(DTYPE), P)
    dq = warpgroup_mma(ds, buf.k.index(s), dq, is_async=True)
    # After the last tile this is its S once more, which nobody reads.
    x = issue_scores(buf, bar, gl.minimum(i + 1, span.hi - span.lo - 1), zero, size, MINE)
    x, dq = warpgroup_mma_wait(0, deps=(x, dq))
    mbarrier.arrive(bar.k_free.index(s), count=1)
    return x, dq


@gluon.jit
def consume(work, size: gl.constexpr, MINE: gl.constexpr):
    """dq of 64 rows."""
    buf, bar = work.buf, work.bar
    D: gl.constexpr = size.d
    BLOCK_N: gl.constexpr = size.block_n
    S: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    A: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    b, h, tile = tile_of(work.schedule, gl.program_id(0))
    q_batch, first_row, seqlen_q = query_span(work.extents, b)
    _k_batch, _first_key, seqlen_k = key_span(work.extents, b)
    row = tile * BLOCK_M
    if row < seqlen_q:
        span = visited(work.terms, seqlen_q, seqlen_k, row, BLOCK_M, BLOCK_N)
        rows = row + MINE * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, S))
        inside = rows < seqlen_q
        at = q_batch.to(gl.int64) * work.lse.batch + h.to(gl.int64) * work.lse.head
        at += padded_tile(work.extents, b, first_row, size.padding) * size.padding
        lse = gl.load(work.lse.ptr + at + rows, mask=inside, other=float("inf"))
        delta = gl.load(work.delta + at + rows, mask=inside, other=0.0)
        zero = gl.zeros([64, BLOCK_N], gl.float32, layout=S)
        dq = gl.zeros([64, D], gl.float32, layout=A)
        mbarrier.wait(bar.q_full.index(MINE), 0)
        steps = span.hi - span.lo
        if steps > 0:
            x = issue_scores(buf, bar, 0, zero, size, MINE)
            x = warpgroup_mma_wait(0, deps=(x,))
            for i in range(steps):
                x, dq = step(
                    x, dq, i, span, work, rows, lse, delta, seqlen_q, seqlen_k, zero, size, MINE
                )
        dq = dq * work.terms.scale
        store_rows(work.dq, q_batch, h, first_row, rows, seqlen_q, dq, 0, size.head_dim)


@gluon.jit(do_not_specialize=("lse", "dq", "extents", "terms", "schedule"))
def query_gradient_kernel(
    q, k, v, do, lse, delta, dq, extents, terms, schedule, SIZE: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """The program_id(0)-th tile of the schedule."""
    DTYPE: gl.constexpr = q.dtype
    D: gl.constexpr = SIZE.d
    STAGES: gl.constexpr = SIZE.stages
    buf = Buffers(
        tiles_of_memory(DTYPE, 2, 64, D),
        tiles_of_memory(DTYPE, STAGES, SIZE.block_n, D),
        tiles_of_memory(DTYPE, STAGES, SIZE.block_n, D),
        tiles_of_memory(DTYPE, 2, 64, D),
    )
    bar = Barriers(
        barriers(2, 1),
        barriers(STAGES, 1),
        barriers(STAGES, 2),
        barriers(STAGES, 1),
        barriers(STAGES, 2),
    )
    fence_async_shared()
    desc = Descriptors(q, k, v, do)
    work = Work(desc, buf, bar, extents, terms, schedule, lse, delta, dq)
    gl.warp_specialize(
        [(consume, (work, SIZE, 0)), (consume, (work, SIZE, 1)), (produce, (work, SIZE))],
        [4, 1],
        [CONSUMER_REGISTERS, 24],
    )
