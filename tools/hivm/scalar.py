"""The scalar pipe: runs a unit's program and hands operations to the other pipes.

`run` is a generator of what the scalar pipe issues, in program order; addresses and trip counts
are evaluated on the way. Integers are Python's: HIVM's index arithmetic does not wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from tools.hivm.library import Work, works
from tools.hivm.memory import Buffer, View
from tools.hivm.parser import Function, MemType, Op, Unsupported


@dataclass
class Issue:
    """What reaches a pipe: "work", "set", "wait", "barrier", or between cores "send", "receive"."""

    kind: str
    pipe: str
    line: int
    work: Work | None = None
    # The other pipe of a flag and its number.
    other: str = ""
    flag: int = 0
    # Scalar operations since the last issue.
    scalars: int = 0


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b, "sgt": lambda a, b: a > b, "sge": lambda a, b: a >= b,
    "oeq": lambda a, b: a == b,
}  # fmt: skip


def _quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "addi": lambda a, b: a + b, "subi": lambda a, b: a - b, "muli": lambda a, b: a * b,
    "divsi": _quotient, "remsi": lambda a, b: a - b * _quotient(a, b),
    "maxsi": max, "minsi": min, "xori": lambda a, b: a ^ b, "andi": lambda a, b: a & b,
    "ori": lambda a, b: a | b,
}  # fmt: skip


class Scalar:
    """The program of one core, with its arguments, buffers and place in the grid."""

    def __init__(
        self, function: Function, arguments: list[Any], maps: dict[str, Any],
        buffers: dict[str, Buffer], block: int, half: int,
    ) -> None:  # fmt: skip
        self.function, self.maps, self.buffers = function, maps, buffers
        self.block, self.half = block, half
        self.values: dict[str, Any] = dict(
            zip((name for name, _ in function.arguments), arguments, strict=True)
        )
        self.scalars = 0

    def run(self) -> Iterator[Issue]:
        yield from self._block(self.function.body)

    def _block(self, body: list[Op]) -> Iterator[Issue]:
        for op in body:
            if op.name == "scf.for":
                yield from self._loop(op)
            elif op.name == "scf.if":
                if self.values[op.operands[0]]:
                    yield from self._block(op.body)
            elif op.name == "call":
                work = works(op.attrs["callee"], [self.values[name] for name in op.operands])
                yield self._issue("work", work.pipe, op, work=work)
            elif op.name.startswith("hivm.hir.") and op.name not in _VALUES:
                yield from self._hir(op)
            else:
                self.scalars += 1
                self._evaluate(op)

    def _issue(self, kind: str, pipe: str, op: Op, **facts: Any) -> Issue:
        count, self.scalars = self.scalars, 0
        return Issue(kind, pipe, op.line, scalars=count, **facts)

    def _loop(self, op: Op) -> Iterator[Issue]:
        low, high, step = (self.values[name] for name in op.operands)
        carried = [self.values[start] for _, start in op.attrs["carried"]]
        for index in range(low, high, step):
            self.values[op.attrs["index"]] = index
            for (name, _), value in zip(op.attrs["carried"], carried, strict=True):
                self.values[name] = value
            yield from self._block(op.body)
            if carried:
                carried = [self.values[name] for name in op.body[-1].operands]
        for name, value in zip(op.results, carried, strict=True):
            self.values[name] = value

    def _hir(self, op: Op) -> Iterator[Issue]:
        kind, pipes = op.name.removeprefix("hivm.hir."), op.attrs["pipes"]
        if kind in ("set_ffts_base_addr", "set_mask_norm"):
            return
        if kind == "pipe_barrier":
            yield self._issue("barrier", pipes[0], op)
        elif kind in ("set_flag", "wait_flag"):
            number = pipes[2]
            flag = self.values[number] if number.startswith("%") else int(number[8:])
            source, target = pipes[:2]
            if kind == "set_flag":
                yield self._issue("set", source, op, other=target, flag=flag)
            else:
                yield self._issue("wait", target, op, other=source, flag=flag)
        elif kind in ("sync_block_set", "sync_block_wait"):
            number = op.attrs["flag"]
            flag = self.values[number] if number.startswith("%") else int(number)
            if kind == "sync_block_set":
                yield self._issue("send", pipes[1], op, flag=flag)
            else:
                yield self._issue("receive", pipes[2], op, flag=flag)
        else:
            raise Unsupported(f"line {op.line}: {op.name}")

    def _evaluate(self, op: Op) -> None:
        if op.name == "scf.yield":
            return
        if op.name == "memref.extract_strided_metadata":
            view = self.values[op.operands[0]]
            self.values[op.results[0]] = View(view.buffer, view.base, 0, (), (), view.dtype)
            facts = [view.offset, *view.shape, *view.strides]
            for name, value in zip(op.results[1:], facts, strict=True):
                self.values[name] = value
            return
        self.values[op.results[0]] = self._value(op)

    def _value(self, op: Op) -> Any:
        name, given = op.name, [self.values[x] for x in op.operands]
        if name == "arith.constant":
            return op.attrs["value"]
        if name in ("affine.apply", "affine.min", "affine.max"):
            found = self.maps[op.attrs["map"]](*given)
            return (
                found[0] if name == "affine.apply" else (min if name[7:] == "min" else max)(found)
            )
        if name in ("arith.cmpi", "arith.cmpf"):
            return int(_COMPARE[op.attrs["predicate"]](*given))
        if name == "arith.select":
            return given[1] if given[0] else given[2]
        if name in ("arith.index_cast", "arith.trunci", "arith.extsi", "arith.extui"):
            return given[0] & 1 if op.attrs["type"] == "i1" else given[0]
        if name.startswith("arith.") and name[6:] in _BINARY:
            return _BINARY[name[6:]](*given)
        if name.startswith("memref."):
            return self._memref(op, given)
        if name == "hivm.hir.pointer_cast":
            kind: MemType = op.attrs["type"]
            return dense(self.buffers[kind.space], given[0], kind)
        if name == "hivm.hir.get_block_idx":
            return self.block
        if name == "hivm.hir.get_sub_block_idx":
            return self.half
        raise Unsupported(f"line {op.line}: {name}")

    def _known(self, parts: tuple[Any, ...]) -> tuple[int, ...]:
        return tuple(self.values[p] if isinstance(p, str) else p for p in parts)

    def _memref(self, op: Op, given: list[Any]) -> Any:
        view, name = given[0], op.name.removeprefix("memref.")
        if name == "cast":
            return view
        if name == "load":
            at = sum(i * s for i, s in zip(given[1:], view.strides, strict=True))
            one = View(view.buffer, view.base, view.offset + at, (1,), (1,), view.dtype)
            return one.get()[0].item()
        if name == "view":
            return dense(view.buffer, view.base + given[1], op.attrs["type"])
        if name == "reinterpret_cast":
            (offset,) = self._known((op.attrs["offset"],))
            sizes, strides = self._known(op.attrs["sizes"]), self._known(op.attrs["strides"])
            return View(view.buffer, view.base, offset, sizes, strides, view.dtype)
        if name == "subview":
            return self._subview(op, view)
        if name == "collapse_shape":
            return _collapse(view, op.attrs["groups"])
        if name == "expand_shape":
            return _expand(view, op.attrs["groups"], self._known(op.attrs["shape"]))
        raise Unsupported(f"line {op.line}: {op.name}")

    def _subview(self, op: Op, view: View) -> View:
        offsets, sizes = self._known(op.attrs["offsets"]), self._known(op.attrs["sizes"])
        steps = self._known(op.attrs["steps"])
        offset = view.offset + sum(o * s for o, s in zip(offsets, view.strides, strict=True))
        strides = [s * step for s, step in zip(view.strides, steps, strict=True)]
        kept = list(zip(op.attrs["sizes"], sizes, strides, strict=True))
        # A type of lower rank drops extents of 1.
        while len(kept) > len(op.attrs["type"].shape):
            kept.remove(next(axis for axis in kept if axis[0] == 1))
        return View(
            view.buffer, view.base, offset, tuple(n for _, n, _ in kept),
            tuple(s for _, _, s in kept), view.dtype,
        )  # fmt: skip


_VALUES = ("hivm.hir.pointer_cast", "hivm.hir.get_block_idx", "hivm.hir.get_sub_block_idx")


def dense(buffer: Buffer, base: int, kind: MemType) -> View:
    """A contiguous view at an address."""
    shape = tuple(n or 0 for n in kind.shape)
    strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    return View(buffer, base, 0, shape, strides, kind.dtype)


def _collapse(view: View, groups: list[tuple[int, ...]]) -> View:
    shape, strides = [], []
    for group in groups:
        wide = [i for i in group if view.shape[i] != 1]
        for i, j in pairwise(wide):
            if view.strides[i] != view.strides[j] * view.shape[j]:
                raise Unsupported(f"collapse of {view.shape} with strides {view.strides}")
        shape.append(prod(view.shape[i] for i in group))
        strides.append(view.strides[wide[-1] if wide else group[-1]])
    return View(view.buffer, view.base, view.offset, tuple(shape), tuple(strides), view.dtype)


def _expand(view: View, groups: list[tuple[int, ...]], shape: tuple[int, ...]) -> View:
    strides: dict[int, int] = {}
    for axis, group in enumerate(groups):
        step = view.strides[axis]
        for i in reversed(group):
            strides[i] = step
            step *= shape[i]
    found = tuple(strides[i] for i in range(len(shape)))
    return View(view.buffer, view.base, view.offset, shape, found, view.dtype)
