"""Attention of a few new queries over a KV cache, spread evenly over the device.

LeanAttention (arXiv 2405.10480): the tiles of keys of all sequences and kv heads form one list,

    sequence 0, head 0: tiles 0 .. T0-1 | sequence 0, head 1: ... | sequence 1, head 0: ... | ...

and each of P programs takes a contiguous share of it, wherever that begins and ends; shares differ
by one tile at most. Where equal runs that each lie in one head take hardly longer, those are taken.
The lengths are read on the device, so a captured graph replays with lengths that have grown. The
query heads of a kv head are packed as rows of one tile: row r is query r // group of head
r % group.

A program that holds an output's whole list writes it. Otherwise it leaves (acc, l, m) in a slot of
the workspace, and a second kernel merges them in the order of the programs. A program has two
slots, for an output that began before its share and for one that goes on after it. Where the
device can, that kernel is launched while this one runs, and waits on the device for its end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

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

# Sequences whose lengths are looked at together.
_SEQUENCES_AT_ONCE = 1024
# Registers of a multiprocessor, and those that a block of merge_kernel may take of them.
_REGISTERS, _MERGING = 65536, 128 * 80
# Fewer tiles than this aren't worth a part of their own.
SHORTEST = tl.constexpr(4)


@triton.jit
def tile_counts(extents, terms, b, valid, seqlen_q, BLOCK_N: tl.constexpr):
    """Tiles of keys of sequences b (a scalar or vector): at least one, 0 where invalid."""
    seqlen_k = tl.load(extents.seqused_k + b, mask=valid, other=0)
    if extents.leftpad_k is not None:
        seqlen_k -= tl.load(extents.leftpad_k + b, mask=valid, other=0)
    lo, hi = visible_keys(terms, seqlen_q, tl.maximum(seqlen_k, 0), 0, seqlen_q - 1)
    count = tl.maximum(tl.cdiv(hi, BLOCK_N) - lo // BLOCK_N, 1)
    return tl.where(valid, count, 0)


@triton.jit
def in_runs(count, run):
    """Tiles in whole runs of `run`, or as many as there are where run is 0."""
    return tl.where(run > 0, tl.cdiv(count, tl.maximum(run, 1)) * run, count)


@triton.jit
def survey(extents, terms, batch, seqlen_q, BLOCK_N: tl.constexpr, AT_ONCE: tl.constexpr):
    """(sum, maximum) of all sequences' tiles."""
    total = batch * 0
    longest = batch * 0
    for start in tl.range(0, batch, AT_ONCE):
        b = start + tl.arange(0, AT_ONCE)
        counts = tile_counts(extents, terms, b, b < batch, seqlen_q, BLOCK_N)
        total += tl.sum(counts)
        longest = tl.maximum(longest, tl.max(counts))
    return total, longest


@triton.jit
def choose_run(total, longest, units, slots, splits, waves, run):
    """Tiles of a run within one output, 0 for even shares of the whole list.

    total, longest: of the sequences' tiles; units: outputs of one sequence; slots: programs that
    run at a time; splits: runs for each output, which take so many waves of programs; run: the
    tiles to take where that isn't 0.
    """
    share = tl.maximum(tl.cdiv(total * units, slots), SHORTEST)
    equal = tl.maximum(tl.cdiv(longest, splits), SHORTEST)
    # Programs that end early leave the memory to the others.
    return tl.where((run == 0) & (equal * waves <= share + share // 4), equal, run)


@triton.jit
def find(extents, terms, batch, units, place, seqlen_q, run, BLOCK_N: tl.constexpr,
         AT_ONCE: tl.constexpr):  # fmt: skip
    """(sequence that holds a place in the list, tiles per unit before it)."""
    found = batch * 0
    before = batch * 0
    past = batch * 0
    for start in tl.range(0, batch, AT_ONCE):
        b = start + tl.arange(0, AT_ONCE)
        count = in_runs(tile_counts(extents, terms, b, b < batch, seqlen_q, BLOCK_N), run)
        earlier, ends = ends_before(count, b < batch, past, units, place)
        found += tl.sum(earlier.to(tl.int32))
        before = tl.maximum(before, tl.max(tl.where(earlier, ends, 0)))
        past += tl.sum(count)
    return found, before


@triton.jit
def ends_before(count, valid, past, units, place):
    """Which sequences end before a place in the list, and where each ends, in tiles per unit."""
    ends = past + tl.cumsum(count, 0)
    return valid & (ends * units <= place), ends


@triton.jit
def tiles_before(extents, terms, sequence, seqlen_q, run, BLOCK_N: tl.constexpr,
                 AT_ONCE: tl.constexpr):  # fmt: skip
    """Tiles per unit in the list before a sequence, and in all of them."""
    before = sequence * 0
    for start in tl.range(0, sequence, AT_ONCE):
        b = start + tl.arange(0, AT_ONCE)
        counts = tile_counts(extents, terms, b, b < sequence, seqlen_q, BLOCK_N)
        before += tl.sum(in_runs(counts, run))
    return before


@triton.jit
def run_start(program, length, slots, run):
    """Where a program's part of the list begins: a run or a share, the first of them longer."""
    share = length // slots
    start = program * share + tl.minimum(program, length - share * slots)
    return tl.where(run > 0, program * run, tl.minimum(start, length))


@triton.jit
def owner(place, length, slots):
    """The program whose share holds a place."""
    share = length // slots
    longer = length - share * slots
    after = longer + (place - longer * (share + 1)) // tl.maximum(share, 1)
    return tl.where(place < longer * (share + 1), place // (share + 1), after)


@triton.jit
def parts_of(before, unit, units, count, length, slots, run):
    """(first program with a part of an output, how many have one, their distance, first's slot)."""
    if run > 0:
        first = before * units // run + unit
        parts = count // run
        step = units
        slot = 2 * first
    else:
        origin = before * units + unit * count
        first = owner(origin, length, slots)
        parts = owner(origin + count - 1, length, slots) - first + 1
        step = parts * 0 + 1
        slot = 2 * first + (origin != run_start(first, length, slots, run)).to(tl.int32)
    return first, parts, step, slot


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
def decode_kernel(
    q, k, v, out, lse, work, extents, terms, batch, kv_heads, row_tiles, run, splits, waves, slots,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr, ONCE: tl.constexpr, OVERLAP: tl.constexpr, HIDDEN: tl.constexpr,
    FUSED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program's run of the list: `run` tiles, or what choose_run says where that is 0."""
    pid = tl.program_id(0)
    if OVERLAP:
        # The kernel that merges may be set up.
        tl.extra.cuda.gdc_launch_dependents()
    seqlen_q = extents.seqlen_q
    units = kv_heads * row_tiles
    batch = batch + pid * 0
    run = run + pid * 0
    splits = splits + pid * 0
    slots = slots + pid * 0
    waves = waves + pid * 0
    if ONCE:
        # One load of the lengths answers everything.
        every = tl.arange(0, AT_ONCE)
        counts = tile_counts(extents, terms, every, every < batch, seqlen_q, BLOCK_N)
        total = tl.sum(counts)
        longest = tl.max(counts)
        run = choose_run(total, longest, units, slots, splits, waves, run)
        counts = in_runs(counts, run)
        length = tl.sum(counts) * units
    else:
        total, longest = survey(extents, terms, batch, seqlen_q, BLOCK_N, AT_ONCE)
        run = choose_run(total, longest, units, slots, splits, waves, run)
        length = units * tiles_before(extents, terms, batch, seqlen_q, run, BLOCK_N, AT_ONCE)
    place = run_start(pid, length, slots, run)
    end = tl.minimum(run_start(pid + 1, length, slots, run), length)
    if place >= end:
        return
    if ONCE:
        earlier, ends = ends_before(counts, every < batch, batch * 0, units, place)
        b = tl.sum(earlier.to(tl.int32))
        before = tl.max(tl.where(earlier, ends, 0))
        count = tl.sum(tl.where(every == b, counts, 0))
    else:
        b, before = find(extents, terms, batch, units, place, seqlen_q, run, BLOCK_N, AT_ONCE)
        count = in_runs(tile_counts(extents, terms, b, b < batch, seqlen_q, BLOCK_N), run)
    # Runs of one head follow each other by the number of heads; shares follow each other.
    if run > 0:
        index = pid - before * units // run
        unit = index % units
        tile = index // units * run
    else:
        unit = (place - before * units) // count
        tile = place - before * units - unit * count
    # Two slots of each program for acc, and after them for m and l.
    sums = work + (2 * tl.num_programs(0)).to(tl.int64) * (ROWS * (DV0 + DV1))
    slot = 2 * pid
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
        if HIDDEN:
            broken = tl.max((acc0 != acc0).to(tl.int32))
            if DV1 > 0:
                broken = tl.maximum(broken, tl.max((acc1 != acc1).to(tl.int32)))
            if broken > 0:
                acc0, acc1, l, m = attend_one_by_one(
                    tl.zeros_like(acc0), tl.zeros_like(acc1), l_start, m_start, q0, q1, k, v,
                    extents, terms, 0, b, heads[:, None], h_kv, queries, seqlen_q, seqlen_k, row,
                    first, key_lo, key_hi, D, D0, D1, DV, DV0, DV1, FUSED, WIDE,
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
            keep(work, sums, slot, acc0, acc1, l, m, row_ids, valid, ROWS, DV0, DV1)

        place += stop - tile
        slot = 2 * pid + 1
        tile = tile * 0
        unit += 1
        if unit == units:
            unit = unit * 0
            b += 1
            count = in_runs(tile_counts(extents, terms, b, b < batch, seqlen_q, BLOCK_N), run)


@triton.jit
def merge_kernel(
    out, lse, work, extents, terms, batch, kv_heads, row_tiles, run, splits, waves, slots, grid,
    GROUP: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr, ONCE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """COLUMNS of one row of out, from the parts of it that programs left."""
    pid = tl.program_id(0)
    seqlen_q = extents.seqlen_q
    units = kv_heads * row_tiles
    batch = batch + pid * 0
    run = run + pid * 0
    splits = splits + pid * 0
    slots = slots + pid * 0
    waves = waves + pid * 0
    chunks: tl.constexpr = (DV + COLUMNS - 1) // COLUMNS
    columns = pid % chunks * COLUMNS + tl.arange(0, COLUMNS)
    packed = pid // chunks % (seqlen_q * GROUP)
    head = pid // chunks // (seqlen_q * GROUP)
    h_kv = head % kv_heads
    b = head // kv_heads
    # The division of the list once more; the lengths are older than either kernel.
    if ONCE:
        every = tl.arange(0, AT_ONCE)
        counts = tile_counts(extents, terms, every, every < batch, seqlen_q, BLOCK_N)
        total = tl.sum(counts)
        run = choose_run(total, tl.max(counts), units, slots, splits, waves, run)
        counts = in_runs(counts, run)
        length = tl.sum(counts) * units
        before = tl.sum(tl.where(every < b, counts, 0))
        count = tl.sum(tl.where(every == b, counts, 0))
    else:
        total, longest = survey(extents, terms, batch, seqlen_q, BLOCK_N, AT_ONCE)
        run = choose_run(total, longest, units, slots, splits, waves, run)
        length = units * tiles_before(extents, terms, batch, seqlen_q, run, BLOCK_N, AT_ONCE)
        before = tiles_before(extents, terms, b, seqlen_q, run, BLOCK_N, AT_ONCE)
        count = in_runs(tile_counts(extents, terms, b, b < batch, seqlen_q, BLOCK_N), run)
    unit = packed // BLOCK_M * kv_heads + h_kv
    first, parts, step, first_slot = parts_of(before, unit, units, count, length, slots, run)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    if parts == 1:
        return

    sums = work + (2 * grid).to(tl.int64) * (ROWS * (DV0 + DV1))
    row = packed % BLOCK_M
    acc = tl.zeros([COLUMNS], tl.float32)
    l = tl.sum(acc)
    m = l - float("inf")
    for start in tl.range(0, parts, PARTS):
        part_ids = start + tl.arange(0, PARTS)
        slot = tl.where(part_ids == 0, first_slot, 2 * (first + part_ids * step))
        inside = part_ids < parts
        sums_at = sums + slot * (2 * ROWS) + row
        m_part = tl.load(sums_at, mask=inside, other=float("-inf"))
        l_part = tl.load(sums_at + ROWS, mask=inside, other=0.0)
        at = (slot.to(tl.int64) * ROWS + row) * (DV0 + DV1)
        here = inside[:, None] & (columns < DV)[None, :]
        part = tl.load(work + at[:, None] + columns[None, :], mask=here, other=0.0)
        m_new = tl.maximum(m, tl.max(m_part))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        old = tl.exp2(m - base)
        weight = tl.exp2(m_part - base)
        l = l * old + tl.sum(l_part * weight)
        acc = acc * old + tl.sum(part * weight[:, None], 0)
        m = m_new
    weight = tl.where(l == 0.0, 0.0, 1.0 / l)
    query = packed // GROUP
    h = h_kv * GROUP + packed % GROUP
    at = b.to(tl.int64) * out.batch + query.to(tl.int64) * out.row + h.to(tl.int64) * out.head
    result = (acc * weight).to(out.ptr.dtype.element_ty)
    tl.store(out.ptr + at + columns * out.dim, result, mask=columns < DV)
    value = tl.where(l == 0.0, float("-inf"), m * LN2 + tl.log(l))
    at = b.to(tl.int64) * lse.batch + h.to(tl.int64) * lse.head + query * lse.row
    tl.store(lse.ptr + at, value, mask=pid % chunks == 0)


class Division(NamedTuple):
    """How the host has the list divided, and what merges its parts.

    run: tiles of a run, 0 where the device chooses between `splits` equal runs for each output, in
    so many `waves`, and a share for each of `slots` programs. parts: those of an output that are
    merged at a time, 0 where there are none to merge.
    """

    programs: int
    run: int
    splits: int
    waves: int
    slots: int
    parts: int
    columns: int
    warps: int


def division(problem: AttentionProblem, size: tiles.DecodeTile, cores: int) -> Division:
    """Programs for tiles of one size; a deterministic one depends on each sequence alone."""
    units = tiles.decode_outputs(problem, size.block_m)
    longest = max(1, tiles.cdiv(problem.seqlen_k, size.block_n))
    if problem.deterministic or longest <= SHORTEST.value:
        run = tiles.RUN_ALONE if problem.deterministic else longest
        splits = tiles.cdiv(longest, run)
        programs = units * splits
        return Division(programs, run, 1, 1, programs, *((64, 32, 4) if splits > 1 else (0, 0, 0)))
    slots = min(size.programs * cores, units * tiles.cdiv(longest, SHORTEST.value))
    splits, waves = max(1, slots // units), tiles.cdiv(units, slots)
    parts = min(256, max(8, triton.next_power_of_2(splits)))
    few_rows = problem.batch * problem.heads * problem.seqlen_q < 2 * cores
    columns = min(4096 // parts, 32 if few_rows else 128)
    columns = max(16, min(columns, arguments.halves(problem.head_dim_v)[0]))
    warps = min(4, max(1, parts * columns // 1024))
    return Division(max(slots, units), 0, splits, waves, slots, parts, columns, warps)


def registers(size: tiles.DecodeTile) -> int:
    """Of a thread, so that a block of the merging kernel finds room beside decode_kernel's."""
    threads = 32 * size.warps * size.programs
    return min(255, (_REGISTERS - _MERGING) // threads // 8 * 8)


def hides_keys(problem: AttentionProblem) -> bool:
    """Whether a tile may hold keys of the sequence that a row doesn't see.

    Their values could be NaN; what lies beyond a sequence is never loaded.
    """
    left, right = problem.window
    every = problem.seqlen_q == 1 and left < 0 and right >= -1
    return not every or problem.mask or problem.bias


def decode(
    tensors: AttentionTensors, problem: AttentionProblem, config: Config
) -> tuple[Tensor, Tensor]:
    """out and lse of queries at the end of cached sequences; see AttentionTensors for shapes.

    problem.deterministic: each sequence is split by its own length alone, so that its bits don't
    depend on the rest of the batch.
    """
    tensors = arguments.packed(tensors)
    q = tensors.q
    device = launch.device(q)
    if problem.kv_dtype == torch.float8_e4m3fn and not tiles.has_float8(device.family):
        k, v = (x.view(torch.uint8) for x in (tensors.k, tensors.v))
        tensors = replace(tensors, k=k, v=v)
    out = q.new_empty((*q.shape[:-1], problem.head_dim_v))
    lse = launch.new_lse(q)
    if not lse.numel():
        return out, lse
    size = tiles.decode(problem, device, config)
    split = division(problem, size, tiles.multiprocessors(device))
    words = workspace(problem, size) * split.programs if split.parts else 1
    work = q.new_empty(words, dtype=torch.float32)
    call = launch.Call(tensors, problem, config)
    written = out, lse, work
    overlap = tiles.overlaps(device.family)

    def shared() -> _Shared:
        return _shared(tensors, problem, size, split, (out, lse), overlap)

    def plan() -> launch.Plan:
        args, constants = shared()
        operands = (("q", q), ("k", tensors.k), ("v", tensors.v))
        given = (arguments.rows(launch.operand(name), tensor) for name, tensor in operands)
        constants |= {
            **arguments.switches(tensors, problem),
            **{name: dim for name, dim in arguments.dims(problem).items() if name[:2] != "DV"},
            "HIDDEN": hides_keys(problem),
        }
        options = {**size.options, "maxnreg": registers(size)} if overlap else size.options
        return launch.Plan(split.programs, (*given, *args), constants, options)

    def plan_merge() -> launch.Plan:
        args, constants = shared()
        rows = problem.batch * problem.heads * problem.seqlen_q
        programs = rows * tiles.cdiv(problem.head_dim_v, split.columns)
        constants |= {"PARTS": split.parts, "COLUMNS": split.columns}
        options: dict[str, Any] = {"num_warps": split.warps, "num_stages": 1}
        if overlap:
            options["launch_pdl"] = True
        return launch.Plan(programs, (*args, split.programs), constants, options)

    launch.run(decode_kernel, call, written, plan)
    if split.parts:
        launch.run(merge_kernel, call, written, plan_merge)
    return out, lse


def _packed_rows(problem: AttentionProblem, size: tiles.DecodeTile) -> int:
    """Rows of a tile that a part has."""
    rows = problem.seqlen_q * (problem.heads // problem.kv_heads)
    return min(size.block_m, int(triton.next_power_of_2(rows)))


def workspace(problem: AttentionProblem, size: tiles.DecodeTile) -> int:
    """float32 words of a program's two slots."""
    dims = arguments.dims(problem)
    return 2 * _packed_rows(problem, size) * (dims["DV0"] + dims["DV1"] + 2)


_Shared = tuple[tuple[Any, ...], dict[str, Any]]


def _shared(
    tensors: AttentionTensors,
    problem: AttentionProblem,
    size: tiles.DecodeTile,
    split: Division,
    results: tuple[Tensor, Tensor],
    overlap: bool,
) -> _Shared:
    """The arguments and constants that both kernels have."""
    out, lse = results
    group = problem.heads // problem.kv_heads
    args = (
        arguments.rows(launch.further(0), out),
        arguments.vector(launch.further(1), lse),
        launch.further(2),
        arguments.extents(tensors, problem, size.block_n),
        arguments.terms(tensors, problem),
        problem.batch,
        problem.kv_heads,
        tiles.cdiv(problem.seqlen_q * group, size.block_m),
        split.run,
        split.splits,
        split.waves,
        split.slots,
    )
    dims = arguments.dims(problem)
    constants = {
        "GROUP": group,
        **{name: dims[name] for name in ("DV", "DV0", "DV1")},
        "BLOCK_M": size.block_m,
        "BLOCK_N": size.block_n,
        "ROWS": _packed_rows(problem, size),
        "AT_ONCE": min(_SEQUENCES_AT_ONCE, triton.next_power_of_2(problem.batch)),
        "ONCE": problem.batch <= _SEQUENCES_AT_ONCE,
        "OVERLAP": overlap,
    }
    return args, constants
