"""Forward attention on Hopper (FlashAttention-3, arXiv 2407.08608): copies and products by
partitions of warps.

Over tiles of keys, with scores x in base 2, running maximum m, sum l and unnormalised output o:

    m' = max(m, max_j x_j)      p_j = 2^(x_j - m')      a = 2^(m - m')
    l  = a l + sum_j p_j        o = a o + sum_j p_j v_j

and at the end out = o / l, lse = ln 2 · m + ln l.

Who waits for whom. One producer warp copies, W warpgroups of 64 rows each compute, each warpgroup
in a partition of its own so that its barriers hold up no other. Tiles of keys go from the last to
the first. The softmax of tile i runs beside the product of tile i - 1:

    producer       Q  K0 V0 K1 V1 K2 ...            a stage is filled when all W have left it
    tensor cores   S0  | S1 O0 | S2 O1 | ...        S_i = Q K_i^T,  O_i: o += P_i V_i
    warpgroup      softmax S0 | softmax S1, then o *= a | ...

With TURNS the warpgroups hand a turn round: one issues S_i and O_(i-1), then the next one may, so
that one's softmax runs beside the others' products.

| barrier | arrives | waits | count |
| --- | --- | --- | --- |
| q_full[w] | copy of Q's rows w | warpgroup w | 1 + bytes |
| q_free[w] | warpgroup w, after its last S, or its output in Q's memory | producer | 1 |
| k_full[s], v_full[s] | copy into stage s | every warpgroup | 1 + bytes |
| k_free[s], v_free[s] | every warpgroup, after S or O of stage s | producer | W |
| turn[w] | warpgroup w - 1 (once at the start: w = 0) | warpgroup w | 1 |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from portattn.backends.common import launch
from portattn.backends.hopper import arguments, gluon_api, tiles
from portattn.backends.hopper.primitives import (
    LN2,
    Schedule,
    barriers,
    hide,
    key_span,
    query_span,
    scores,
    softmax_step,
    store_rows,
    tile_of,
    tiles_of_memory,
    visited,
)
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem

load = gluon_api.load
store = gluon_api.store
store_wait = gluon_api.store_wait


class Descriptors(NamedTuple):
    """TMA descriptors of each operand's two parts of the head dimension; None where a part is."""

    q0: Any
    q1: Any
    k0: Any
    k1: Any
    v0: Any
    v1: Any
    out0: Any
    out1: Any


class Buffers(NamedTuple):
    """Shared memory: q and out [W, 64, D], k and v [STAGES, BLOCK_N, D]."""

    q0: Any
    q1: Any
    k0: Any
    k1: Any
    v0: Any
    v1: Any
    out0: Any
    out1: Any


class Barriers(NamedTuple):
    """See the table above."""

    q_full: Any
    q_free: Any
    k_full: Any
    k_free: Any
    v_full: Any
    v_free: Any
    turn: Any


@dataclass(frozen=True)
class Sizes:
    """Constants of a tile and of its pipeline."""

    group: int  # query heads of a kv head
    d0: int
    d1: int
    dv0: int
    dv1: int
    dv: int
    warpgroups: int
    block_n: int
    stages: int
    turns: bool
    own_out: bool  # the output has memory of its own, so that the next Q may come early
    fused: bool


class Work(NamedTuple):
    """What every partition is given."""

    desc: Descriptors
    buf: Buffers
    bar: Barriers
    extents: Any
    terms: Any
    schedule: Any
    out: Any
    lse: Any
    total_q: int


@gluon.jit
def produce(work, size: gl.constexpr):
    """Copy Q, K and V of this program's tiles, each as soon as its memory is free."""
    desc, buf, bar, terms = work.desc, work.buf, work.bar, work.terms
    extents, schedule = work.extents, work.schedule
    W: gl.constexpr = size.warpgroups
    BLOCK_M: gl.constexpr = 64 * W
    BLOCK_N: gl.constexpr = size.block_n
    visits = 0
    tiles = 0
    count = schedule.batch * schedule.heads * schedule.row_tiles
    for index in range(gl.program_id(0), count, gl.num_programs(0)):
        b, h, tile = tile_of(schedule, index)
        q_batch, first_row, seqlen_q = query_span(extents, b)
        k_batch, first_key, seqlen_k = key_span(extents, b)
        row = tile * BLOCK_M
        if row < seqlen_q:
            span = visited(terms, seqlen_q, seqlen_k, row, BLOCK_M, BLOCK_N)
            h_kv = h // size.group
            for w in gl.static_range(W):
                mbarrier.wait(bar.q_free.index(w), (tiles & 1) ^ 1)
                mbarrier.expect(bar.q_full.index(w), 64 * (size.d0 + size.d1) * 2)
                at = first_row + row + w * 64
                load(desc.q0, [q_batch, h, at, 0], bar.q_full.index(w), buf.q0.index(w))
                if size.d1 > 0:
                    load(desc.q1, [q_batch, h, at, size.d0], bar.q_full.index(w), buf.q1.index(w))
            for i in range(span.hi - span.lo):
                s = visits % size.stages
                free = ((visits // size.stages) & 1) ^ 1
                key = first_key + (span.hi - 1 - i) * BLOCK_N
                mbarrier.wait(bar.k_free.index(s), free)
                mbarrier.expect(bar.k_full.index(s), BLOCK_N * (size.d0 + size.d1) * 2)
                load(desc.k0, [k_batch, h_kv, key, 0], bar.k_full.index(s), buf.k0.index(s))
                if size.d1 > 0:
                    at = size.d0
                    load(desc.k1, [k_batch, h_kv, key, at], bar.k_full.index(s), buf.k1.index(s))
                mbarrier.wait(bar.v_free.index(s), free)
                mbarrier.expect(bar.v_full.index(s), BLOCK_N * (size.dv0 + size.dv1) * 2)
                load(desc.v0, [k_batch, h_kv, key, 0], bar.v_full.index(s), buf.v0.index(s))
                if size.dv1 > 0:
                    at = size.dv0
                    load(desc.v1, [k_batch, h_kv, key, at], bar.v_full.index(s), buf.v1.index(s))
                visits += 1
            tiles += 1


@gluon.jit
def issue_scores(buf, s, zero, size: gl.constexpr, MINE: gl.constexpr):
    """S = Q K^T of stage s, not waited for."""
    product = warpgroup_mma(
        buf.q0.index(MINE), buf.k0.index(s).permute((1, 0)), zero, use_acc=False, is_async=True
    )
    if size.d1 > 0:
        product = warpgroup_mma(
            buf.q1.index(MINE), buf.k1.index(s).permute((1, 0)), product, is_async=True
        )
    return product


@gluon.jit
def issue_output(buf, s, p, o0, o1, size: gl.constexpr):
    """o += P V of stage s, not waited for."""
    o0 = warpgroup_mma(p, buf.v0.index(s), o0, is_async=True)
    if size.dv1 > 0:
        O1: gl.constexpr = gl.NVMMADistributedLayout(
            version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, size.dv1, 16]
        )
        P1: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O1, k_width=2)
        o1 = warpgroup_mma(gl.convert_layout(p, P1), buf.v1.index(s), o1, is_async=True)
    return o0, o1


@gluon.jit
def wait_output(o0, o1, size: gl.constexpr):
    if size.dv1 > 0:
        o0, o1 = warpgroup_mma_wait(0, deps=(o0, o1))
    else:
        o0 = warpgroup_mma_wait(0, deps=(o0,))
    return o0, o1


@gluon.jit
def rescaled(o, factor):
    layout: gl.constexpr = gl.SliceLayout(1, o.type.layout)
    return o * gl.convert_layout(factor, layout)[:, None]


@gluon.jit
def attend(
    o0, o1, l, m, p, turns, buf, bar, terms, rows, seqlen_q, seqlen_k, hi, visits, start, stop,
    zero, size: gl.constexpr, MASKED: gl.constexpr, MINE: gl.constexpr,
):  # fmt: skip
    """Tiles of keys start .. stop, counted from the last one: S of each, O of the one before."""
    S: gl.constexpr = zero.type.layout
    KEYS: gl.constexpr = gl.SliceLayout(0, S)
    P: gl.constexpr = p.type.layout
    OUTSTANDING: gl.constexpr = 1 if size.dv1 == 0 else 2
    NEXT: gl.constexpr = (MINE + 1) % size.warpgroups
    for i in range(start, stop):
        now = visits + i
        s = now % size.stages
        before = (now - 1) % size.stages
        mbarrier.wait(bar.k_full.index(s), (now // size.stages) & 1)
        if size.turns:
            mbarrier.wait(bar.turn.index(MINE), turns & 1)
        product = issue_scores(buf, s, zero, size, MINE)
        mbarrier.wait(bar.v_full.index(before), ((now - 1) // size.stages) & 1)
        o0_next, o1_next = issue_output(buf, before, p, o0, o1, size)
        if size.turns:
            mbarrier.arrive(bar.turn.index(NEXT), count=1)
        turns += 1
        product = warpgroup_mma_wait(OUTSTANDING, deps=(product,))
        mbarrier.arrive(bar.k_free.index(s), count=1)
        x, factor = scores(product, terms, size.fused)
        if MASKED:
            key = (hi - 1 - i) * size.block_n
            x = hide(x, terms, rows, key, seqlen_q, seqlen_k, KEYS)
        weights, alpha, l, m = softmax_step(x, factor, l, m)
        o0, o1 = wait_output(o0_next, o1_next, size)
        mbarrier.arrive(bar.v_free.index(before), count=1)
        o0 = rescaled(o0, alpha)
        if size.dv1 > 0:
            o1 = rescaled(o1, alpha)
        p = gl.convert_layout(weights.to(p.dtype), P)
    return o0, o1, l, m, p, turns


@gluon.jit
def copy_out(desc, buf, b, h, row, o0, o1, size: gl.constexpr, MINE: gl.constexpr):
    """Start the copy of 64 rows of the output; those beyond the tensor are left out."""
    DTYPE: gl.constexpr = buf.q0.dtype
    store_wait(0)
    buf.out0.index(MINE).store(o0.to(DTYPE))
    if size.dv1 > 0:
        buf.out1.index(MINE).store(o1.to(DTYPE))
    fence_async_shared()
    store(desc.out0, [b, h, row, 0], buf.out0.index(MINE))
    if size.dv1 > 0:
        store(desc.out1, [b, h, row, size.dv0], buf.out1.index(MINE))


@gluon.jit
def clear_rows(out, lse, first_row, total_q, heads, size: gl.constexpr):
    """Rows of a packed tensor that belong to no sequence: out 0, lse -inf."""
    DV0: gl.constexpr = size.dv0
    O0: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, size.dv0, 16]
    )
    ROWS: gl.constexpr = gl.SliceLayout(1, O0)
    none = gl.full([64], -float("inf"), gl.float32, layout=ROWS)
    for start in range(first_row + gl.program_id(0) * 64, total_q, gl.num_programs(0) * 64):
        rows = start + gl.arange(0, 64, layout=ROWS)
        for h in range(heads):
            zero = gl.zeros([64, DV0], gl.float32, layout=O0)
            store_rows(out, h * 0, h, 0, rows, total_q, zero, 0, size.dv)
            if size.dv1 > 0:
                store_rows(out, h * 0, h, 0, rows, total_q, zero, size.dv0, size.dv)
            at = (rows * 0 + h).to(gl.int64) * lse.head + rows.to(gl.int64) * lse.row
            gl.store(lse.ptr + at, none, mask=rows < total_q)


@gluon.jit
def consume(work, size: gl.constexpr, MINE: gl.constexpr):
    """Attention of 64 rows of each of this program's tiles."""
    desc, buf, bar, terms = work.desc, work.buf, work.bar, work.terms
    extents, schedule = work.extents, work.schedule
    out, lse = work.out, work.lse
    W: gl.constexpr = size.warpgroups
    BLOCK_M: gl.constexpr = 64 * W
    BLOCK_N: gl.constexpr = size.block_n
    DTYPE: gl.constexpr = buf.q0.dtype
    NEXT: gl.constexpr = (MINE + 1) % W
    S: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    DV0: gl.constexpr = size.dv0
    DV1: gl.constexpr = size.dv1
    O0: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, size.dv0, 16]
    )
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O0, k_width=2)
    ROWS: gl.constexpr = gl.SliceLayout(1, S)
    KEYS: gl.constexpr = gl.SliceLayout(0, S)
    zero = gl.zeros([64, BLOCK_N], gl.float32, layout=S)
    visits = 0
    tiles = 0
    turns = 0
    count = schedule.batch * schedule.heads * schedule.row_tiles
    for index in range(gl.program_id(0), count, gl.num_programs(0)):
        b, h, tile = tile_of(schedule, index)
        q_batch, first_row, seqlen_q = query_span(extents, b)
        _k_batch, _first_key, seqlen_k = key_span(extents, b)
        row = tile * BLOCK_M
        if row < seqlen_q:
            span = visited(terms, seqlen_q, seqlen_k, row, BLOCK_M, BLOCK_N)
            steps = span.hi - span.lo
            rows = row + MINE * 64 + gl.arange(0, 64, layout=ROWS)
            m = gl.full([64], -float("inf"), gl.float32, layout=ROWS)
            l = gl.full([64], 0.0, gl.float32, layout=ROWS)
            o0 = gl.zeros([64, DV0], gl.float32, layout=O0)
            o1 = 0  # stands for the second part where there is none
            if size.dv1 > 0:
                O1: gl.constexpr = gl.NVMMADistributedLayout(
                    version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, size.dv1, 16]
                )
                o1 = gl.zeros([64, DV1], gl.float32, layout=O1)
            mbarrier.wait(bar.q_full.index(MINE), tiles & 1)
            if steps > 0:
                s = visits % size.stages
                mbarrier.wait(bar.k_full.index(s), (visits // size.stages) & 1)
                if size.turns:
                    mbarrier.wait(bar.turn.index(MINE), turns & 1)
                product = issue_scores(buf, s, zero, size, MINE)
                if size.turns:
                    mbarrier.arrive(bar.turn.index(NEXT), count=1)
                turns += 1
                product = warpgroup_mma_wait(0, deps=(product,))
                mbarrier.arrive(bar.k_free.index(s), count=1)
                x, factor = scores(product, terms, size.fused)
                if (span.whole_hi < span.hi) | (span.whole_lo == span.hi):
                    key = (span.hi - 1) * BLOCK_N
                    x = hide(x, terms, rows, key, seqlen_q, seqlen_k, KEYS)
                weights, _alpha, l, m = softmax_step(x, factor, l, m)
                p = gl.convert_layout(weights.to(DTYPE), P)

                last = 1
                if terms.right is not None:
                    edge = gl.maximum(span.hi - span.whole_hi, 1)
                    o0, o1, l, m, p, turns = attend(
                        o0, o1, l, m, p, turns, buf, bar, terms, rows, seqlen_q, seqlen_k,
                        span.hi, visits, 1, edge, zero, size, True, MINE,
                    )  # fmt: skip
                    last = edge
                whole = gl.maximum(span.hi - span.whole_lo, last)
                o0, o1, l, m, p, turns = attend(
                    o0, o1, l, m, p, turns, buf, bar, terms, rows, seqlen_q, seqlen_k,
                    span.hi, visits, last, whole, zero, size, False, MINE,
                )  # fmt: skip
                if terms.left is not None:
                    o0, o1, l, m, p, turns = attend(
                        o0, o1, l, m, p, turns, buf, bar, terms, rows, seqlen_q, seqlen_k,
                        span.hi, visits, whole, steps, zero, size, True, MINE,
                    )  # fmt: skip
                if size.own_out:
                    mbarrier.arrive(bar.q_free.index(MINE), count=1)
                visits += steps
                s = (visits - 1) % size.stages
                mbarrier.wait(bar.v_full.index(s), ((visits - 1) // size.stages) & 1)
                o0, o1 = issue_output(buf, s, p, o0, o1, size)
                o0, o1 = wait_output(o0, o1, size)
                mbarrier.arrive(bar.v_free.index(s), count=1)
            else:
                if size.own_out:
                    mbarrier.arrive(bar.q_free.index(MINE), count=1)

            weight = gl.where(l == 0.0, 0.0, 1.0 / l)
            o0 = rescaled(o0, weight)
            if size.dv1 > 0:
                o1 = rescaled(o1, weight)
            if extents.cu_seqlens_q is not None:
                # A whole tile's copy would go on into the next sequence.
                if row + MINE * 64 + 64 <= seqlen_q:
                    copy_out(desc, buf, q_batch, h, first_row + row + MINE * 64, o0, o1, size, MINE)
                else:
                    store_rows(out, q_batch, h, first_row, rows, seqlen_q, o0, 0, size.dv)
                    if size.dv1 > 0:
                        store_rows(
                            out, q_batch, h, first_row, rows, seqlen_q, o1, size.dv0, size.dv
                        )
            else:
                copy_out(desc, buf, q_batch, h, first_row + row + MINE * 64, o0, o1, size, MINE)
            if not size.own_out:
                store_wait(0)
                mbarrier.arrive(bar.q_free.index(MINE), count=1)
            lse_at = q_batch.to(gl.int64) * lse.batch + h.to(gl.int64) * lse.head
            lse_at = lse_at + (first_row + rows).to(gl.int64) * lse.row
            value = gl.where(l == 0.0, -float("inf"), m * LN2 + gl.log(l))
            gl.store(lse.ptr + lse_at, value, mask=rows < seqlen_q)
            tiles += 1
    store_wait(0)
    if MINE == 0:
        if extents.cu_seqlens_q is not None:
            past = gl.load(extents.cu_seqlens_q + schedule.batch)
            clear_rows(out, lse, past, work.total_q, schedule.heads, size)


@gluon.jit(do_not_specialize=("out", "lse", "extents", "terms", "schedule", "total_q"))
def forward_kernel(
    q0, q1, k0, k1, v0, v1, out0, out1, out, lse, extents, terms, schedule, total_q,
    SIZE: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """The tiles program_id(0), program_id(0) + num_programs(0), ... of the schedule."""
    DTYPE: gl.constexpr = q0.dtype
    WARPGROUPS: gl.constexpr = SIZE.warpgroups
    STAGES: gl.constexpr = SIZE.stages
    BLOCK_N: gl.constexpr = SIZE.block_n
    desc = Descriptors(q0, q1, k0, k1, v0, v1, out0, out1)
    q_tiles = tiles_of_memory(DTYPE, WARPGROUPS, 64, SIZE.d0)
    q_more = tiles_of_memory(DTYPE, WARPGROUPS, 64, SIZE.d1) if SIZE.d1 > 0 else None
    out_tiles = tiles_of_memory(DTYPE, WARPGROUPS, 64, SIZE.dv0) if SIZE.own_out else q_tiles
    out_more = None
    if SIZE.dv1 > 0:
        out_more = tiles_of_memory(DTYPE, WARPGROUPS, 64, SIZE.dv1) if SIZE.own_out else q_more
    buf = Buffers(
        q_tiles,
        q_more,
        tiles_of_memory(DTYPE, STAGES, BLOCK_N, SIZE.d0),
        tiles_of_memory(DTYPE, STAGES, BLOCK_N, SIZE.d1) if SIZE.d1 > 0 else None,
        tiles_of_memory(DTYPE, STAGES, BLOCK_N, SIZE.dv0),
        tiles_of_memory(DTYPE, STAGES, BLOCK_N, SIZE.dv1) if SIZE.dv1 > 0 else None,
        out_tiles,
        out_more,
    )
    bar = Barriers(
        barriers(WARPGROUPS, 1),
        barriers(WARPGROUPS, 1),
        barriers(STAGES, 1),
        barriers(STAGES, WARPGROUPS),
        barriers(STAGES, 1),
        barriers(STAGES, WARPGROUPS),
        barriers(WARPGROUPS, 1),
    )
    fence_async_shared()
    if SIZE.turns:
        mbarrier.arrive(bar.turn.index(0), count=1)
    work = Work(desc, buf, bar, extents, terms, schedule, out, lse, total_q)
    if WARPGROUPS == 1:
        gl.warp_specialize([(consume, (work, SIZE, 0)), (produce, (work, SIZE))], [1], [24])
    elif WARPGROUPS == 2:
        gl.warp_specialize(
            [(consume, (work, SIZE, 0)), (consume, (work, SIZE, 1)), (produce, (work, SIZE))],
            [4, 1],
            [CONSUMER_REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (work, SIZE, 0)),
                (consume, (work, SIZE, 1)),
                (consume, (work, SIZE, 2)),
                (produce, (work, SIZE)),
            ],
            [4, 4, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, 32],
        )


def forward(
    tensors: AttentionTensors, problem: AttentionProblem, config: Config
) -> tuple[Tensor, Tensor]:
    """out and lse of dense or varlen layouts; see AttentionTensors for shapes."""
    q = tensors.q
    out = q.new_empty((*q.shape[:-1], problem.head_dim_v))
    lse = launch.new_lse(q)
    if not lse.numel():
        return out, lse
    if not tensors.k.numel() or not problem.seqlen_q:
        # No descriptor can describe no keys, and no program runs where no sequence has a row.
        return out.zero_(), lse.fill_(-math.inf)

    def plan() -> launch.Plan:
        tile = tiles.forward(problem, config)
        parts, parts_v = tiles.halves(problem.head_dim), tiles.halves(problem.head_dim_v)
        row_tiles = tiles.cdiv(problem.seqlen_q, 64 * tile.warpgroups)
        count = row_tiles * problem.heads * problem.batch
        args = (
            *arguments.descriptors(launch.operand("q"), "q", q, 64, parts),
            *arguments.descriptors(launch.operand("k"), "k", tensors.k, tile.block_n, parts),
            *arguments.descriptors(launch.operand("v"), "v", tensors.v, tile.block_n, parts_v),
            *arguments.descriptors(launch.further(0), "out", out, 64, parts_v),
            arguments.rows(launch.further(0), out),
            arguments.vector(launch.further(1), lse),
            arguments.extents(tensors, problem),
            arguments.terms(problem),
            Schedule(problem.batch, problem.heads, row_tiles, tile.section or None),
            q.shape[0] if q.dim() == 3 else 0,
        )
        size = Sizes(
            problem.heads // problem.kv_heads,
            *parts,
            *parts_v,
            problem.head_dim_v,
            tile.warpgroups,
            tile.block_n,
            tile.stages,
            bool(tile.turns),
            bool(tile.own_out),
            arguments.fused(problem),
        )
        registers = tiles.REGISTERS[tile.warpgroups]
        programs = min(count, launch.device(q).cores) if tile.persistent else count
        constants = {"SIZE": size, "CONSUMER_REGISTERS": registers.consumer}
        options = {"num_warps": 4, "maxnreg": registers.launch}
        return launch.Plan(programs, args, constants, options)

    launch.run(forward_kernel, launch.Call(tensors, problem, config), (out, lse), plan)
    return out, lse
