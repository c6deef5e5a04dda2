"""Seeded faults: one operation of a correct program removed or changed, which a run must notice.

Each fault is a mistake that a compiler's synchronisation or planning can make. A fault counts as
caught where the run reports a hazard, a deadlock, a flag left set or an access beyond a buffer, or
where the result leaves its error budget.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tools.hivm.attention import Case, Launch, Tensors, errors
from tools.hivm.memory import SIZES, OutOfBounds
from tools.hivm.parser import Module, Op, Unsupported


@dataclass(frozen=True)
class Fault:
    kind: str
    function: str
    line: int

    def __str__(self) -> str:
        return f"{self.kind}, line {self.line} of {self.function}"


_REMOVED = {
    "hivm.hir.wait_flag": "wait removed",
    "hivm.hir.set_flag": "set removed",
    "hivm.hir.sync_block_wait": "semaphore wait removed",
    "hivm.hir.sync_block_set": "semaphore set removed",
    "hivm.hir.pipe_barrier": "barrier removed",
}
_CHANGED = {
    "hivm.hir.wait_flag": "wait for another flag",
    "hivm.hir.set_flag": "another flag set",
    "hivm.hir.sync_block_wait": "wait for another semaphore",
    "hivm.hir.sync_block_set": "another semaphore set",
    "hivm.hir.pointer_cast": "buffer at another's address",
    "arith.select": "double buffers swapped",
}
_LATE = {"hivm.hir.wait_flag": "wait too late", "hivm.hir.set_flag": "set too early"}


def faults(module: Module) -> list[Fault]:
    """Every fault that can be seeded, in program order."""
    found = []
    for kind in ("aic", "aiv"):
        function = module.core(kind)
        for op, following in _walk(function.body):
            last = op.name == "hivm.hir.pipe_barrier" and op.attrs["pipes"] == ["ALL"]
            names = [] if last else [_REMOVED.get(op.name)]
            if op.name != "arith.select" or "memref" in op.attrs["type"]:
                names.append(_CHANGED.get(op.name))
            if following == "call":
                names.append(_LATE.get(op.name))
            if op.name == "hivm.hir.pointer_cast" and 0 in op.attrs["type"].shape:
                names = []
            found += [Fault(name, kind, op.line) for name in names if name]
    return found


def _walk(body: list[Op]) -> Iterator[tuple[Op, str]]:
    for i, op in enumerate(body):
        near = -1 if op.name == "hivm.hir.set_flag" else 1
        beside = body[i + near].name if 0 <= i + near < len(body) else ""
        steps = i
        while beside in ("memref.cast", "memref.collapse_shape") and 0 <= steps + near < len(body):
            steps += near
            beside = body[steps].name
        yield op, beside
        yield from _walk(op.body)


def seeded(module: Module, fault: Fault) -> Module:
    """A copy of the module with the fault."""
    changed = copy.deepcopy(module)
    body, index = _find(changed.core(fault.function).body, fault.line)
    op = body[index]
    if fault.kind.endswith("removed"):
        del body[index]
    elif fault.kind in ("wait too late", "set too early"):
        _move(body, index, 1 if fault.kind == "wait too late" else -1)
    elif op.name == "arith.select":
        op.operands = (op.operands[0], op.operands[2], op.operands[2])
    elif op.name == "hivm.hir.pointer_cast":
        _misplace(changed, fault.function, op)
    elif "sync_block" in op.name:
        flag = op.attrs["flag"]
        op.attrs["flag"] = str(int(flag) + 1) if flag.isdigit() else "0"
    else:
        flag = op.attrs["pipes"][2]
        number = int(flag[8:]) + 1 if flag.startswith("EVENT") else 7
        op.attrs["pipes"][2] = f"EVENT_ID{number}"
    return changed


def _find(body: list[Op], line: int) -> tuple[list[Op], int]:
    for i, op in enumerate(body):
        if op.line == line:
            return body, i
        if op.body and op.line < line and line <= _last(op):
            return _find(op.body, line)
    raise ValueError(f"no operation at line {line}")


def _last(op: Op) -> int:
    return max([op.line, *(_last(inner) for inner in op.body)])


def _move(body: list[Op], index: int, way: int) -> None:
    """Move an operation to the other side of the next call."""
    op = body.pop(index)
    at = index if way > 0 else index - 1
    while body[at].name != "call":
        at += way
    body.insert(at + 1 if way > 0 else at, op)


def _misplace(module: Module, function: str, op: Op) -> None:
    """Give a buffer the address of the largest other one of its space that it fits beside."""
    space = op.attrs["type"].space
    others = [
        other.operands[0]
        for other, _ in _walk(module.core(function).body)
        if other.name == "hivm.hir.pointer_cast" and other.attrs["type"].space == space
        and other.operands != op.operands and 0 not in other.attrs["type"].shape
    ]  # fmt: skip
    if others:
        op.operands = (max(sorted(set(others)), key=others.count),)


def caught(module: Module, fault: Fault, case: Case, tensors: Tensors) -> str:
    """What a run of the faulty program reports; "" where it notices nothing."""
    launch = Launch(seeded(module, fault), case, tensors)
    try:
        found = launch.run()
    except (OutOfBounds, Unsupported, IndexError, ValueError) as error:
        return f"refused: {error}"
    if found.deadlock:
        return f"deadlock: {found.deadlock[:80]}"
    if found.hazards:
        return f"hazard: {found.hazards[0]}"
    if found.problems:
        return found.problems[0]
    if any(size > SIZES[space] for space, size in found.peaks.items()):
        return "beyond a buffer"
    return "" if errors(launch).within else "wrong result"


def sample(found: list[Fault], count: int, seed: int) -> list[Fault]:
    """As many of each kind as of any other, as far as there are."""
    picker = random.Random(seed)
    kinds: dict[str, list[Fault]] = {}
    for fault in found:
        kinds.setdefault(fault.kind, []).append(fault)
    for of_kind in kinds.values():
        picker.shuffle(of_kind)
    chosen: list[Fault] = []
    while len(chosen) < count and any(kinds.values()):
        for of_kind in kinds.values():
            if of_kind and len(chosen) < count:
                chosen.append(of_kind.pop())
    return chosen
