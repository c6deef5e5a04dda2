"""Attention cases for the compiled kernel: its arguments, one block after another, and the result.

The arguments are those that backends/ascend/launch_tiled.py passes; the definition is evaluated in
float64 on the same rounded inputs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.hivm.machine import Machine, Outcome
from tools.hivm.memory import Array, Buffer, View, to_bfloat16
from tools.hivm.parser import Module
from tools.hivm.timing import ASCEND_910B2, Hardware

_DTYPES = {"fp16": "f16", "bf16": "bf16", "fp32": "f32"}
MASK_SIDE = 512


@dataclass(frozen=True)
class Case:
    """Sizes and features; `chosen` are the kernel's constants, as compile_tiled.py lists them."""

    chosen: dict[str, Any]
    seqlen_q: int
    seqlen_k: int
    heads: int = 1
    batch: int = 1
    softcap: float = 0.0
    window: tuple[int, int] = (-1, -1)
    seed: int = 0

    @property
    def group(self) -> int:
        return int(self.chosen.get("GROUP", 1))

    @property
    def packed(self) -> bool:
        return bool(self.chosen.get("PACKED"))


@dataclass
class Tensors:
    """Inputs as float32 of values that the dtype holds, [B, S, H, D], and what indexes them."""

    q: Array
    k: Array
    v: Array
    sinks: Array
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    table: Array | None = None
    rows: Array | None = None


def rounded(values: Array, dtype: str) -> Array:
    if dtype == "bf16":
        return (to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float16 if dtype == "f16" else np.float32).astype(np.float32)


def inputs(case: Case) -> Tensors:
    """Random tensors; the lengths of each sequence are (queries, first key, keys)."""
    random = np.random.default_rng(case.seed)
    chosen, dtype = case.chosen, _DTYPES[case.chosen["dtype"]]
    dim, kv_heads = chosen["dim"], case.heads // case.group

    def normal(*shape: int) -> Array:
        return rounded(random.standard_normal(shape).astype(np.float32), dtype)

    b, sq, sk = case.batch, case.seqlen_q, case.seqlen_k
    found = Tensors(
        normal(b, sq, case.heads, dim), normal(b, sk, kv_heads, dim), normal(b, sk, kv_heads, dim),
        random.standard_normal(case.heads).astype(np.float32),
    )  # fmt: skip
    for i in range(b):
        used = sk - 7 * i if chosen.get("CACHE") else sk
        first = 5 + i if chosen.get("LEFTPAD") else 0
        found.lengths.append((sq, first, used - first))
    if chosen.get("INDEXED"):
        found.rows = random.permutation(b).astype(np.int32)
    if chosen.get("PAGE"):
        pages = -(-sk // chosen["PAGE"])
        found.table = random.permutation(b * pages).reshape(b, pages).astype(np.int32)
    return found


def definition(case: Case, t: Tensors) -> tuple[Array, Array]:
    """out [B, Sq, H, D] and lse [B, H, Sq] in float64."""
    b, sq, heads, dim = t.q.shape
    out, lse = np.zeros((b, sq, heads, dim)), np.full((b, heads, sq), -np.inf)
    left, right = case.window
    if case.chosen.get("RIGHT") and right < 0:
        right = 0
    for i, (_, first, keys) in enumerate(t.lengths):
        row = i if t.rows is None else int(t.rows[i])
        for h in range(heads):
            k = t.k[row, first : first + keys, h // case.group].astype(np.float64)
            v = t.v[row, first : first + keys, h // case.group].astype(np.float64)
            s = t.q[i, :, h].astype(np.float64) @ k.T * dim**-0.5
            if case.chosen.get("SOFTCAP"):
                s = case.softcap * np.tanh(s / case.softcap)
            at = np.arange(keys)[None, :] - (np.arange(sq)[:, None] + keys - sq)
            if case.chosen.get("RIGHT"):
                s = np.where(at <= right, s, -np.inf)
            if case.chosen.get("LEFT"):
                s = np.where(at >= -left, s, -np.inf)
            if case.chosen.get("SINKS"):
                s = np.concatenate([s, np.full((sq, 1), float(t.sinks[h]))], 1)
            top = s.max(1, keepdims=True)
            top = np.where(np.isfinite(top), top, 0.0)
            p = np.exp(s - top)
            total = p.sum(1, keepdims=True)
            out[i, :, h] = p[:, :keys] / np.where(total > 0, total, 1.0) @ v
            with np.errstate(divide="ignore"):
                lse[i, h] = (top + np.log(total))[:, 0]
    return out, lse


def _stored(name: str, values: Array, dtype: str) -> Buffer:
    kept = to_bfloat16(values) if dtype == "bf16" else values.astype(
        {"f16": np.float16, "f32": np.float32, "i8": np.int8, "i32": np.int32}[dtype]
    )  # fmt: skip
    return Buffer(name, "gm", np.ascontiguousarray(kept).reshape(-1).view(np.uint8).copy())


def _pointer(buffer: Buffer, dtype: str) -> View:
    return View(buffer, 0, 0, (0,), (1,), dtype)


class Launch:
    """A case bound to a compiled module: `block(i)` runs the i-th program of the grid."""

    def __init__(self, module: Module, case: Case, tensors: Tensors | None = None) -> None:
        self.module, self.case = module, case
        self.tensors = tensors or inputs(case)
        chosen, t = case.chosen, self.tensors
        self.dtype = _DTYPES[chosen["dtype"]]
        self.out_dtype = _DTYPES[chosen.get("out", chosen["dtype"])]
        page = chosen.get("PAGE", 0)
        k, v = (self._paged(x) for x in (t.k, t.v)) if page else (t.k, t.v)
        b, sq, heads, dim = t.q.shape
        varlen = bool(chosen.get("VARLEN"))
        self.out = _stored("out", np.full(t.q.shape, np.nan, np.float32), self.out_dtype)
        self.lse = _stored("lse", np.full((b, heads, sq), np.nan, np.float32), "f32")
        starts = [np.arange(b + 1) * n for n in (sq, t.k.shape[1])]
        used = [first + keys for _, first, keys in t.lengths]
        firsts = [first for _, first, _ in t.lengths]
        triangle = np.triu(np.ones((MASK_SIDE, MASK_SIDE), np.int8), 1)
        tensors_ = [
            (t.q, self.dtype), (k, self.dtype), (v, self.dtype), None, None, (triangle, "i8"),
            (t.sinks, "f32"), (starts[0], "i32"), (starts[1], "i32"), (np.array(used), "i32"),
            (np.array(firsts), "i32"), (t.rows if t.rows is not None else np.zeros(b), "i32"),
            (t.table if t.table is not None else np.zeros((b, 1)), "i32"),
        ]  # fmt: skip
        pointers: list[View] = []
        for name, given in zip(_POINTERS, tensors_, strict=True):
            if given is None:
                buffer, kind = (self.out, self.out_dtype) if name == "out" else (self.lse, "f32")
            else:
                buffer, kind = _stored(name, *given), given[1]
            pointers.append(_pointer(buffer, kind))
        rows = case.group if case.packed else sq
        self.tiles = -(-rows // chosen["block_m"])
        count = heads // case.group if case.packed else heads
        self.blocks = self.tiles * count * b
        step = [0 if varlen else sq * heads * dim, heads * dim, dim]
        per_kv = [0 if varlen else k.shape[1] * k.shape[2] * dim, k.shape[2] * dim, dim]
        lse = [0 if varlen else heads * sq, b * sq if varlen else sq]
        if varlen and b > 1:
            raise ValueError("lse of packed sequences is [H, T]: give one sequence")
        table = 1 if t.table is None else t.table.shape[1]
        left, right = case.window
        if chosen.get("RIGHT") and right < 0:
            right = 0
        self.scalars = [
            *step, *per_kv, *per_kv, *step, *lse, table, dim**-0.5, case.softcap, left, right,
            count, self.tiles, sq, t.k.shape[1], self.blocks, 1, 1,
        ]  # fmt: skip
        self.pointers = pointers

    def _paged(self, values: Array) -> Array:
        """[B, S, H, D] as pages [P, page, H, D] in the table's order."""
        table, page = self.tensors.table, self.case.chosen["PAGE"]
        assert table is not None
        b, s, h, d = values.shape
        full = np.zeros((b, table.shape[1] * page, h, d), values.dtype)
        full[:, :s] = values
        pages = np.zeros((table.size, page, h, d), values.dtype)
        pages[table.reshape(-1)] = full.reshape(table.size, page, h, d)
        return pages

    def block(self, index: int, hardware: Hardware = ASCEND_910B2, **options: Any) -> Outcome:
        """One program on one core; see machine.Machine for the options."""
        # The workspace is indexed by the program: only its own part is touched.
        size = self.module.workspace
        workspace = Buffer.filled("workspace", "gm", size * (index + 1))
        lock = Buffer.filled("lock", "gm", 64)
        arguments = [
            0,
            _pointer(lock, "i8"),
            _pointer(workspace, "i8"),
            *self.pointers,
            *self.scalars,
        ]
        machine = Machine(self.module, arguments, workspace, hardware, block=index, **options)
        return machine.run()

    def run(self, **options: Any) -> Outcome:
        """Every program of the grid; counts are summed, `cycles` are of the longest."""
        total: Outcome | None = None
        for index in range(self.blocks):
            one = self.block(index, **options)
            if total is None:
                total = one
                continue
            total.hazards += one.hazards
            total.problems += one.problems
            total.deadlock = total.deadlock or one.deadlock
            for counter, more in (
                (total.syncs, one.syncs),
                (total.bytes, one.bytes),
                (total.busy, one.busy),
            ):
                counter.update(more)
            total.cycles = max(total.cycles, one.cycles)
        assert total
        return total

    def results(self) -> tuple[Array, Array]:
        """out [B, Sq, H, D] and lse [B, H, Sq], as stored."""
        shape = self.tensors.q.shape
        out = (
            View(self.out, 0, 0, (int(np.prod(shape)),), (1,), self.out_dtype).get().reshape(shape)
        )
        b, sq, heads, _ = shape
        return out, self.lse.data.view(np.float32).reshape(b, heads, sq)


_POINTERS = ("q", "k", "v", "out", "lse", "mask", "sinks", "starts_q", "starts_k", "used_k",
             "first_k", "rows_k", "table")  # fmt: skip


def plain(case: Case, t: Tensors) -> Array:
    """The formula with every intermediate in the inputs' dtype: the measure of the budget."""
    dtype = _DTYPES[case.chosen["dtype"]]
    import torch

    kind = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    exact, _ = definition(case, t)
    out = np.zeros(exact.shape)
    left, right = case.window
    if case.chosen.get("RIGHT") and right < 0:
        right = 0
    for i, (sq, first, keys) in enumerate(t.lengths):
        row = i if t.rows is None else int(t.rows[i])
        for h in range(t.q.shape[2]):
            k, v = (
                torch.from_numpy(x[row, first : first + keys, h // case.group].copy()).to(kind)
                for x in (t.k, t.v)
            )
            s = torch.from_numpy(t.q[i, :, h].copy()).to(kind) @ k.T * t.q.shape[3] ** -0.5
            if case.chosen.get("SOFTCAP"):
                s = case.softcap * torch.tanh(s / case.softcap)
            at = torch.arange(keys)[None, :] - (torch.arange(sq)[:, None] + keys - sq)
            if case.chosen.get("RIGHT"):
                s = s.masked_fill(at > right, float("-inf"))
            if case.chosen.get("LEFT"):
                s = s.masked_fill(at < -left, float("-inf"))
            if case.chosen.get("SINKS"):
                sink = torch.full((sq, 1), float(t.sinks[h]), dtype=kind)
                s = torch.cat([s, sink], 1)
            p = torch.softmax(s, -1)[:, :keys].nan_to_num(0.0)
            out[i, :, h] = (p @ v).double().numpy()
    return out


@dataclass(frozen=True)
class Errors:
    """Largest and root mean square errors of out against the budget, and of lse."""

    out: float
    out_budget: float
    rms: float
    rms_budget: float
    lse: float

    @property
    def within(self) -> bool:
        return self.out <= self.out_budget and self.rms <= self.rms_budget and self.lse <= 1e-3


def errors(launch: Launch) -> Errors:
    """Twice the plain formula's error and a rounding of the dtype at the result's magnitude."""
    exact, exact_lse = definition(launch.case, launch.tensors)
    out, lse = launch.results()
    unit = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}[launch.dtype]
    rounding = unit * np.abs(exact)
    base = np.abs(plain(launch.case, launch.tensors) - exact)
    error = np.where(np.isnan(out), np.inf, np.abs(out - exact))
    same = lse == exact_lse
    with np.errstate(invalid="ignore"):
        lse_error = np.where(same, 0.0, np.abs(lse - exact_lse))
    lse_error = np.where(np.isnan(lse_error), np.inf, lse_error)
    return Errors(
        float(error.max()), float(2 * base.max() + rounding.max()),
        float(np.sqrt((error**2).mean())),
        float(2 * np.sqrt((base**2).mean()) + np.sqrt((rounding**2).mean())),
        float(lse_error.max()),
    )  # fmt: skip


def totals(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))
