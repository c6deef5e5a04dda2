"""Seeded faults: one operation of a correct program removed or changed, which a run must notice.

Each fault is a mistake that a compiler's synchronisation or planning can make. A fault counts as
caught where the run reports a hazard, a deadlock, a flag left set or an access beyond a buffer, or
where the result leaves its error budget.
"""

from __future__ import annotations

import copy
import random
import re
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
    "arith.select": "double buffers swapped",
}
_LATE = {"hivm.hir.wait_flag": "wait too late", "hivm.hir.set_flag": "set too early"}


def faults(module: Module) -> list[Fault]:
    """Every fault that can be seeded, in program order."""
    found = []
    for kind in ("aic", "aiv"):
        body = module.core(kind).body
        roots = _roots(body)
        for op in _walk(body):
            last = op.name == "hivm.hir.pipe_barrier" and op.attrs["pipes"] == ["ALL"]
            names = [] if last else [_REMOVED.get(op.name)]
            if op.name != "arith.select" or "memref" in op.attrs["type"]:
                names.append(_CHANGED.get(op.name))
            if op.name == "call" and _ALIKE.fullmatch(op.attrs["callee"]):
                source, target = op.operands[0], _target(op)
                if roots.get(source, source) != roots.get(target, target):
                    names.append("operand swapped for the result")
            found += [Fault(name, kind, op.line) for name in names if name]
        found += [Fault(_LATE[op.name], kind, op.line) for op in _movable(body)]
    return found


def _target(op: Op) -> str:
    """The result of an operation of _ALIKE."""
    one = op.attrs["callee"].startswith(("vexp", "copy"))
    return str(op.operands[1 if one else 2])


_PIPES = {"nd2nz": "MTE2", "set_l1": "MTE2", "load": "MTE2", "store": "MTE3", "fixpipe": "FIX"}
# Operations on equal extents: any operand may stand in another's place.
_ALIKE = re.compile(r"(vadd|vsub|vmul|vmax|vexp|copy_ubuf_to_ubuf)_1d_float")


def _walk(body: list[Op]) -> Iterator[Op]:
    for op in body:
        yield op
        yield from _walk(op.body)


def _pipes(op: Op) -> tuple[str, ...]:
    callee = op.attrs["callee"]
    if callee.startswith("mma"):
        return ("MTE1", "M")
    return (next((p for name, p in _PIPES.items() if callee.startswith(name)), "V"),)


def _movable(body: list[Op]) -> Iterator[Op]:
    """Waits right before an operation of the pipe that waits, sets right after one that sets."""
    for i, op in enumerate(body):
        yield from _movable(op.body)
        if op.name not in _LATE:
            continue
        wait = op.name == "hivm.hir.wait_flag"
        near = body[i + 1 :] if wait else body[:i][::-1]
        beside = next((other for other in near if not other.name.startswith("memref.")), None)
        pipe = op.attrs["pipes"][1 if wait else 0]
        if beside and beside.name == "call" and pipe in _pipes(beside):
            yield op


def _roots(body: list[Op]) -> dict[str, tuple[str, ...]]:
    """The address that each view comes from, by the names of constants and subviews."""
    found: dict[str, tuple[str, ...]] = {}
    for op in _walk(body):
        if op.name == "hivm.hir.pointer_cast":
            found[op.results[0]] = (op.operands[0],)
        elif op.name in ("memref.cast", "memref.collapse_shape") and op.operands[0] in found:
            found[op.results[0]] = found[op.operands[0]]
        elif op.name == "memref.subview":
            found[op.results[0]] = (*found.get(op.operands[0], ()), op.operands[0])
    return found


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
    elif op.name == "call":
        op.operands = (_target(op), *op.operands[1:])
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
