"""Attention of a few new queries over a KV cache, spread evenly over the device.

LeanAttention (arXiv 2405.10480): the tiles of keys of all sequences and kv heads form one list,

    sequence 0, head 0: tiles 0 .. T0-1 | sequence 0, head 1: ... | sequence 1, head 0: ... | ...

and each of P programs takes a contiguous run of it, wherever that begins and ends; runs differ by
one tile at most. The lengths are read on the device, so a captured graph replays with lengths that
have grown. The query heads of a kv head are packed as rows of one tile: row r is query r // group
of head r % group.

A run that holds an output's whole list writes it. Otherwise it leaves (acc, l, m) in its slot of
the workspace, and whoever comes last merges them in the order of the programs, where they are many
first among neighbours, then across: the result doesn't depend on who that was. A program has two
slots, for an output that began before its run and for one that goes on after it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from portattn.backends.common import launch
from portattn.backends.triton import arguments, tiles
from portattn.backends.triton.forward import attend, attend_one_by_one
from portattn.backends.triton.primitives import (
    LN2,
    LOG2E,
    key_span,
    load_rows,
    scale_of,
    store_rows,
    visible_keys,
)
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem

# Parts that one program merges; an output of more is merged by this many neighbours first.
PARTS = tl.constexpr(64)
NEIGHBOURS = tl.constexpr(16)
_SEQUENCES_AT_ONCE = 1024
# Elements of the parts that a thread merges at a time: all its loads are under way together.
_MERGED_AT_ONCE = 64


@triton.jit
def tile_count(extents, terms, b, valid, seqlen_q, run, BLOCK_N: tl.constexpr, ALONE: tl.constexpr):
    """Tiles of keys of sequences b (a scalar or vector): at least one; whole runs if ALONE."""
    seqlen_k = tl.load(extents.seqused_k + b, mask=valid, other=0)
    if extents.leftpad_k is not None:
        seqlen_k -= tl.load(extents.leftpad_k + b, mask=valid, other=0)
    lo, hi = visible_keys(terms, seqlen_q, tl.maximum(seqlen_k, 0), 0, seqlen_q - 1)
    count = tl.maximum(tl.cdiv(hi, BLOCK_N) - lo // BLOCK_N, 1)
    if ALONE:
        count = tl.cdiv(count, run) * run
    return tl.where(valid, count, 0)


@triton.jit
def list_length(extents, terms, batch, seqlen_q, run, BLOCK_N: tl.constexpr, ALONE: tl.constexpr,
                AT_ONCE: tl.constexpr):  # fmt: skip
    """Tiles of all sequences, for one kv head and row tile."""
    total = batch * 0
    for start in tl.range(0, batch, AT_ONCE):
        b = start + tl.arange(0, AT_ONCE)
        total += tl.sum(tile_count(extents, terms, b, b < batch, seqlen_q, run, BLOCK_N, ALONE))
    return total


@triton.jit
def find(extents, terms, batch, units, place, seqlen_q, run, BLOCK_N: tl.constexpr,
         ALONE: tl.constexpr, AT_ONCE: tl.constexpr):  # fmt: skip
    """(sequence that holds a place in the list, tiles per unit before it, and in it)."""
    found = batch * 0
    before = batch * 0
    past = batch * 0
    for start in tl.range(0, batch, AT_ONCE):
        b = start + tl.arange(0, AT_ONCE)
        count = tile_count(extents, terms, b, b < batch, seqlen_q, run, BLOCK_N, ALONE)
        earlier, ends = ends_before(count, b < batch, past, units, place)
        found += tl.sum(earlier.to(tl.int32))
        before = tl.maximum(before, tl.max(tl.where(earlier, ends, 0)))
        past += tl.sum(count)
    count = tile_count(extents, terms, found, found < batch, seqlen_q, run, BLOCK_N, ALONE)
    return found, before, count


@triton.jit
def ends_before(count, valid, past, units, place):
    """Which sequences end before a place in the list, and where each ends, in tiles per unit."""
    ends = past + tl.cumsum(count, 0)
    return valid & (ends * units <= place), ends


@triton.jit
def run_start(program, length, programs, run, ALONE: tl.constexpr):
    """Where a program's run begins: runs of `run` tiles if ALONE, else even shares."""
    if ALONE:
        return program * run
    else:
        return (program.to(tl.int64) * length // programs).to(tl.int32)


@triton.jit
def owner(place, length, programs, run, ALONE: tl.constexpr):
    """The program whose run holds a place: the last that begins at or before it."""
    if ALONE:
        return place // run
    else:
        return (((place + 1).to(tl.int64) * programs - 1) // length).to(tl.int32)


@triton.jit
def slot_of(program, first, first_slot):
    """Where a program left its part of an output that began in program `first`."""
    return 2 * program + tl.where(program == first, first_slot, 0)


@triton.jit
def merge(work, sums, start, stop, step, first, first_slot, valid, ROWS: tl.constexpr,
          MERGED: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr):  # fmt: skip
    """Merge the parts of programs start, start + step, ... below stop, MERGED of them at a time."""
    rows = tl.arange(0, ROWS)
    acc0 = tl.zeros([MERGED, ROWS, DV0], tl.float32)
    acc1 = tl.zeros([MERGED, ROWS, DV1 if DV1 > 0 else 1], tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    for group in tl.range(start, stop, step * PARTS):
        program = group + tl.arange(0, PARTS) * step
        at = sums + slot_of(program, first, first_slot)[:, None] * (2 * ROWS) + rows[None, :]
        inside = (program < stop)[:, None] & valid[None, :]
        m_part = tl.load(at, mask=inside, other=float("-inf"), cache_modifier=".cg")
        l_part = tl.load(at + ROWS, mask=inside, other=0.0, cache_modifier=".cg")
        m_new = tl.maximum(m, tl.max(m_part, 0))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        old = tl.exp2(m - base)
        l = l * old + tl.sum(l_part * tl.exp2(m_part - base[None, :]), 0)
        acc0 *= old[None, :, None]
        if DV1 > 0:
            acc1 *= old[None, :, None]
        m = m_new
        for some in tl.range(group, tl.minimum(stop, group + step * PARTS), step * MERGED):
            member = some + tl.arange(0, MERGED) * step
            slot = slot_of(member, first, first_slot)
            here = (member < stop)[:, None] & valid[None, :]
            work_at = slot.to(tl.int64)[:, None] * ROWS + rows[None, :]
            work_at = work_at * (DV0 + DV1)
            pointers = work + work_at[:, :, None] + tl.arange(0, DV0)[None, None, :]
            part = tl.load(pointers, mask=here[:, :, None], other=0.0, cache_modifier=".cg")
            # After the part: its load and this one's don't wait for each other.
            sums_at = sums + slot[:, None] * (2 * ROWS) + rows[None, :]
            m_here = tl.load(sums_at, mask=here, other=float("-inf"), cache_modifier=".cg")
            weight = tl.exp2(m_here - base[None, :])[:, :, None]
            acc0 += part * weight
            if DV1 > 0:
                pointers = work + work_at[:, :, None] + DV0 + tl.arange(0, DV1)[None, None, :]
                part = tl.load(pointers, mask=here[:, :, None], other=0.0, cache_modifier=".cg")
                acc1 += part * weight
    return tl.sum(acc0, 0), tl.sum(acc1, 0), l, m


@triton.jit
def keep(work, sums, slot, acc0, acc1, l, m, rows, valid,
         ROWS: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr):  # fmt: skip
    """Leave a partial result, of its ROWS first rows, in a slot of the workspace."""
    tl.store(sums + slot * (2 * ROWS) + rows, m, mask=valid)
    tl.store(sums + slot * (2 * ROWS) + ROWS + rows, l, mask=valid)
    at = slot.to(tl.int64) * (ROWS * (DV0 + DV1)) + rows[:, None] * (DV0 + DV1)
    tl.store(work + at + tl.arange(0, DV0)[None, :], acc0, mask=valid[:, None])
    if DV1 > 0:
        tl.store(work + at + DV0 + tl.arange(0, DV1)[None, :], acc1, mask=valid[:, None])
    # Every thread's stores come before this program's arrival at the counter.
    tl.debug_barrier()


@triton.jit
def write(out, lse, acc0, acc1, l, m, b, h_kv, packed, valid, GROUP: tl.constexpr,
          DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr):  # fmt: skip
    """out = acc / l and lse of packed rows of one kv head."""
    queries = packed // GROUP
    heads = h_kv * GROUP + packed % GROUP
    weight = tl.where(l == 0.0, 0.0, 1.0 / l)
    at = b.to(tl.int64) * out.batch + queries.to(tl.int64) * out.row
    at += heads.to(tl.int64) * out.head
    store_rows(out.ptr, at, valid, out.dim, acc0 * weight[:, None], 0, DV0, DV)
    if DV1 > 0:
        store_rows(out.ptr, at, valid, out.dim, acc1 * weight[:, None], DV0, DV1, DV)
    value = tl.where(l == 0.0, float("-inf"), m * LN2 + tl.log(l))
    at = b.to(tl.int64) * lse.batch + heads.to(tl.int64) * lse.head + queries * lse.row
    tl.store(lse.ptr + at, value, mask=valid)


@triton.jit
def leave_part(
    out, lse, work, sums, counters, acc0, acc1, l, m, rows, valid, b, h_kv, first_row, seqlen_q,
    origin, count, length, programs, run, GROUP: tl.constexpr, ROWS: tl.constexpr,
    MERGED: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    ALONE: tl.constexpr,
):  # fmt: skip
    """Keep this program's part of an output; merge and write it if all others have arrived.

    The output's tiles are origin .. origin + count of the list.
    """
    first_program = owner(origin, length, programs, run, ALONE)
    last_program = owner(origin + count - 1, length, programs, run, ALONE)
    first_place = run_start(first_program, length, programs, run, ALONE)
    first_slot = (origin != first_place).to(tl.int32)
    pid = tl.program_id(0)
    slot = slot_of(pid, first_program, first_slot)
    keep(work, sums, slot, acc0, acc1, l, m, rows, valid, ROWS, DV0, DV1)
    # Groups count from the output's first program: they depend on its own length alone.
    many = last_program - first_program >= PARTS
    neighbours = tl.where(many, NEIGHBOURS, PARTS)
    group_first = pid - (pid - first_program) % neighbours
    group_last = tl.minimum(group_first + neighbours - 1, last_program)
    group_slot = slot_of(group_first, first_program, first_slot)
    # A group's counter is that of its result's slot, the output's that of its first one.
    arrived = tl.atomic_add(counters + group_slot, 1, sem="acq_rel")
    if arrived == group_last - group_first:
        tl.store(counters + group_slot, 0)
        kept_ids = tl.arange(0, ROWS)
        kept = first_row + kept_ids
        there = kept // GROUP < seqlen_q
        sum0, sum1, l_all, m_all = merge(
            work, sums, group_first, group_last + 1, 1, first_program, first_slot, there,
            ROWS, MERGED, DV0, DV1,
        )  # fmt: skip
        if not many:
            write(
                out, lse, sum0, sum1, l_all, m_all, b, h_kv, kept, there,
                GROUP, DV, DV0, DV1,
            )  # fmt: skip
        else:
            tl.debug_barrier()
            keep(
                work, sums, group_slot, sum0, sum1, l_all, m_all, kept_ids, there,
                ROWS, DV0, DV1,
            )  # fmt: skip
            last_counter = counters + 2 * tl.num_programs(0) + first_program
            arrived = tl.atomic_add(last_counter, 1, sem="acq_rel")
            if arrived == (last_program - first_program) // NEIGHBOURS:
                tl.store(last_counter, 0)
                sum0, sum1, l_all, m_all = merge(
                    work, sums, first_program, last_program + 1, NEIGHBOURS,
                    first_program, first_slot, there, ROWS, MERGED, DV0, DV1,
                )  # fmt: skip
                write(
                    out, lse, sum0, sum1, l_all, m_all, b, h_kv, kept, there,
                    GROUP, DV, DV0, DV1,
                )  # fmt: skip


@triton.jit
def decode_kernel(
    q, k, v, out, lse, work, counters, extents, terms, batch, kv_heads, row_tiles, run,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, MERGED: tl.constexpr,
    ALONE: tl.constexpr, AT_ONCE: tl.constexpr, ONCE: tl.constexpr,
    FUSED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program's run of the list; `run` tiles if ALONE, otherwise an equal share."""
    pid = tl.program_id(0)
    # Two slots of each program for acc, and after them for m and l.
    sums = work + (2 * tl.num_programs(0)).to(tl.int64) * (ROWS * (DV0 + DV1))
    seqlen_q = extents.seqlen_q
    units = kv_heads * row_tiles
    batch = batch + pid * 0
    if ONCE:
        # One load of the lengths answers everything.
        every = tl.arange(0, AT_ONCE)
        counts = tile_count(
            extents, terms, every, every < batch, seqlen_q, run, BLOCK_N, ALONE
        )  # fmt: skip
        length = tl.sum(counts) * units
    else:
        length = units * list_length(
            extents, terms, batch, seqlen_q, run, BLOCK_N, ALONE, AT_ONCE
        )  # fmt: skip
    programs = tl.num_programs(0)
    if not ALONE:
        programs = tl.minimum(programs, length)
    place = run_start(pid, length, programs, run, ALONE)
    end = tl.minimum(run_start(pid + 1, length, programs, run, ALONE), length)
    if place >= end:
        return
    if ONCE:
        earlier, ends = ends_before(counts, every < batch, batch * 0, units, place)
        b = tl.sum(earlier.to(tl.int32))
        before = tl.max(tl.where(earlier, ends, 0))
        count = tl.sum(tl.where(every == b, counts, 0))
    else:
        b, before, count = find(
            extents, terms, batch, units, place, seqlen_q, run, BLOCK_N, ALONE, AT_ONCE
        )  # fmt: skip
    unit = (place - before * units) // count
    tile = (place - before * units) % count
    row_ids = tl.arange(0, BLOCK_M)

    while place < end:
        h_kv = unit % kv_heads
        packed = unit // kv_heads * BLOCK_M + row_ids
        queries = packed // GROUP
        heads = h_kv * GROUP + packed % GROUP
        valid = queries < seqlen_q
        row, first, seqlen_k = key_span(extents, b)
        lo, hi = visible_keys(terms, seqlen_q, tl.maximum(seqlen_k, 0), 0, seqlen_q - 1)
        stop = tl.minimum(count, tile + end - place)
        key_lo = (lo // BLOCK_N + tile) * BLOCK_N
        key_hi = tl.minimum((lo // BLOCK_N + stop) * BLOCK_N, hi)

        q_at = b.to(tl.int64) * q.batch + queries.to(tl.int64) * q.row
        q_at += heads.to(tl.int64) * q.head
        q0 = load_rows(q.ptr, q_at, valid, q.dim, 0, D0, D, True)
        q1 = q0
        if D1 > 0:
            q1 = load_rows(q.ptr, q_at, valid, q.dim, D0, D1, D, True)
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)
        if terms.sinks is not None:
            sink = tl.load(terms.sinks + heads).to(tl.float32) * LOG2E
            sink = tl.where(tile == 0, sink, float("-inf"))
            m = tl.maximum(m, sink)
            l = tl.where(sink == float("-inf"), 0.0, 1.0)
        l_start, m_start = l, m
        acc0 = tl.zeros([BLOCK_M, DV0], tl.float32)
        acc1 = tl.zeros([BLOCK_M, DV1 if DV1 > 0 else 1], tl.float32)
        acc0, acc1, l, m = attend(
            acc0, acc1, l, m, q0, q1, k, v, extents, terms, 0, b, heads[:, None], h_kv, queries,
            seqlen_q, seqlen_k, row, first, key_lo, key_hi,
            D, D0, D1, DV, DV0, DV1, BLOCK_N, True, FUSED, WIDE, PRECISION,
        )  # fmt: skip
        broken = tl.max((acc0 != acc0).to(tl.int32))
        if DV1 > 0:
            broken = tl.maximum(broken, tl.max((acc1 != acc1).to(tl.int32)))
        if broken > 0:
            acc0, acc1, l, m = attend_one_by_one(
                tl.zeros_like(acc0), tl.zeros_like(acc1), l_start, m_start, q0, q1, k, v, extents,
                terms, 0, b, heads[:, None], h_kv, queries, seqlen_q, seqlen_k, row, first,
                key_lo, key_hi, D, D0, D1, DV, DV0, DV1, FUSED, WIDE,
            )  # fmt: skip

        if extents.v_scale is not None:
            v_scale = scale_of(extents, extents.v_scale, b, h_kv)
            acc0 = acc0 * v_scale
            acc1 = acc1 * v_scale

        if (tile == 0) & (stop == count):
            write(
                out, lse, acc0, acc1, l, m, b, h_kv, packed, valid, GROUP, DV, DV0, DV1
            )  # fmt: skip
        else:
            leave_part(
                out, lse, work, sums, counters, acc0, acc1, l, m, row_ids, valid, b, h_kv,
                unit // kv_heads * BLOCK_M, seqlen_q, place - tile, count, length,
                programs, run, GROUP, ROWS, MERGED, DV, DV0, DV1, ALONE,
            )  # fmt: skip

        place += stop - tile
        tile = tile * 0
        unit += 1
        if unit == units:
            unit = unit * 0
            b += 1
            count = tile_count(extents, terms, b, b < batch, seqlen_q, run, BLOCK_N, ALONE)


def decode(
    tensors: AttentionTensors, problem: AttentionProblem, config: Config
) -> tuple[Tensor, Tensor]:
    """out and lse of queries at the end of cached sequences; see AttentionTensors for shapes.

    problem.deterministic: each sequence is split by its own length alone, so that its bits don't
    depend on the rest of the batch.
    """
    tensors = arguments.packed(tensors)
    q = tensors.q
    if problem.kv_dtype == torch.float8_e4m3fn and not tiles.has_float8(launch.family(q)):
        k, v = (x.view(torch.uint8) for x in (tensors.k, tensors.v))
        tensors = replace(tensors, k=k, v=v)
    out = q.new_empty((*q.shape[:-1], problem.head_dim_v))
    lse = launch.new_lse(q)
    if not lse.numel():
        return out, lse

    def plan() -> launch.Plan:
        device = launch.device(q)
        size = tiles.decode(problem, device, config)
        group = problem.heads // problem.kv_heads
        row_tiles = tiles.cdiv(problem.seqlen_q * group, size.block_m)
        units = problem.batch * problem.kv_heads * row_tiles
        longest = max(1, tiles.cdiv(problem.seqlen_k, size.block_n))
        if problem.deterministic:
            run = tiles.RUN_ALONE
            programs = units * tiles.cdiv(longest, run)
        else:
            run = 0
            programs = min(size.programs * tiles.multiprocessors(device), units * longest)
        dims = arguments.dims(problem)
        rows = min(size.block_m, triton.next_power_of_2(problem.seqlen_q * group))
        widest = max(dims["DV0"], dims["DV1"])
        merged = size.warps * 32 * _MERGED_AT_ONCE // (rows * widest)
        args = (
            arguments.rows(launch.operand("q"), q),
            arguments.rows(launch.operand("k"), tensors.k),
            arguments.rows(launch.operand("v"), tensors.v),
            arguments.rows(launch.further(0), out),
            arguments.vector(launch.further(1), lse),
            launch.further(2),
            launch.further(3),
            arguments.extents(tensors, problem, size.block_n),
            arguments.terms(tensors, problem),
            problem.batch,
            problem.kv_heads,
            row_tiles,
            run,
        )
        constants = {
            "GROUP": group,
            **dims,
            "BLOCK_M": size.block_m,
            "BLOCK_N": size.block_n,
            "ROWS": rows,
            "MERGED": min(PARTS.value, max(1, merged)),
            "ALONE": problem.deterministic,
            "AT_ONCE": min(_SEQUENCES_AT_ONCE, triton.next_power_of_2(problem.batch)),
            "ONCE": problem.batch <= _SEQUENCES_AT_ONCE,
            **arguments.switches(tensors, problem),
        }
        scratch = 2 * programs * rows * (dims["DV0"] + dims["DV1"] + 2)
        return launch.Plan(programs, args, constants, size.options, scratch, 3 * programs)

    launch.run(decode_kernel, launch.Call(tensors, problem, config), (out, lse), plan)
    return out, lse
