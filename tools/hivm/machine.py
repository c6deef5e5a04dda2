"""One Cube core and its two Vector cores: pipes, flags inside a core, semaphores between them.

Each core's scalar pipe issues in program order and goes on; a pipe takes what it was issued in
order, and stops at a flag that isn't set. The scalar pipe itself stops at a semaphore and at a
barrier of all pipes. When nothing can move and something is left, that is a deadlock.

A semaphore of the Cube reaches each Vector core; the Cube waits until both of them have sent one.
Both are counters; `PENDING` is as many as a counter holds.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.hivm.hazards import Hazard, Hazards
from tools.hivm.library import Work
from tools.hivm.memory import SIZES, Array, Buffer
from tools.hivm.parser import Module
from tools.hivm.scalar import Issue, Scalar
from tools.hivm.timing import Hardware

PIPES = ("S", "MTE1", "MTE2", "MTE3", "V", "M", "FIX")
PENDING = 15
CORES = ("AIC", "AIV0", "AIV1")


@dataclass
class Event:
    """When something became known: a vector clock and a time in cycles."""

    clock: Array
    time: float


@dataclass
class Span:
    """An operation on the timeline, in cycles."""

    core: str
    pipe: str
    name: str
    start: float
    end: float
    # Bytes of on-chip buffers: address space, first, one after the last, and whether written.
    touched: tuple[tuple[str, int, int, bool], ...] = ()


@dataclass
class Outcome:
    """What a run found. `problems` are violations of the protocol of flags and semaphores."""

    hazards: list[Hazard]
    deadlock: str
    problems: list[str]
    syncs: Counter[str]
    bytes: Counter[str]
    cycles: float
    busy: Counter[str]
    spans: list[Span]
    peaks: dict[str, int]

    @property
    def clean(self) -> bool:
        return not (self.hazards or self.deadlock or self.problems)


@dataclass
class Pipe:
    index: int
    clock: Array
    queue: deque[tuple[Issue, Event]] = field(default_factory=deque)
    epoch: int = 0
    time: float = 0.0


class Core:
    def __init__(self, name: str, number: int, scalar: Scalar, agents: int) -> None:
        self.name, self.number = name, number
        self.issues: Iterator[Issue] = scalar.run()
        self.pipes = {
            pipe: Pipe(number * len(PIPES) + i, np.zeros(agents, np.int64))
            for i, pipe in enumerate(PIPES)
        }
        self.flags: dict[tuple[str, str, int], deque[Event]] = defaultdict(deque)
        self.stopped: Issue | None = None
        self.done = False


class Machine:
    """Runs a module's block. With `check` off, nothing is computed: only times and counts.

    A `seed` lets pipes move in random order, as far as flags allow; 0 is a fixed order.
    """

    def __init__(
        self, module: Module, arguments: list[Any], workspace: Buffer, hardware: Hardware, *,
        block: int = 0, check: bool = True, seed: int = 0, trace: bool = False,
    ) -> None:  # fmt: skip
        agents = len(CORES) * len(PIPES)
        self.hardware, self.checking, self.trace = hardware, check, trace
        self.random = random.Random(seed) if seed else None
        self.cores = []
        for number, name in enumerate(CORES):
            buffers = {
                space: Buffer.filled(f"{name} {space}", space, size)
                for space, size in SIZES.items()
            }
            function = module.core("aic" if number == 0 else "aiv")
            half = max(0, number - 1)
            scalar = Scalar(function, arguments, module.maps, buffers, block, half)
            self.cores.append(Core(name, number, scalar, agents))
        self.semaphores: dict[tuple[int, int, int], deque[Event]] = defaultdict(deque)
        self.hazards = Hazards([f"{core} {pipe}" for core in CORES for pipe in PIPES])
        self.workspace = workspace
        self.problems: list[str] = []
        self.syncs: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self.spans: list[Span] = []
        self.peaks: dict[str, int] = {}

    def run(self) -> Outcome:
        moved = True
        while moved:
            moved = False
            for core in self._order(self.cores):
                moved |= self._issue(core)
                moved |= self._drain(core)
        deadlock = "; ".join(self._stuck())
        if not deadlock:
            self._left_over()
        end = max(pipe.time for core in self.cores for pipe in core.pipes.values())
        return Outcome(
            list(self.hazards.found.values()), deadlock, self.problems, self.syncs, self.bytes,
            end, self.busy, self.spans, self.peaks,
        )  # fmt: skip

    def _order(self, items: list[Any]) -> list[Any]:
        return self.random.sample(items, len(items)) if self.random else items

    def _issue(self, core: Core) -> bool:
        """Let the scalar pipe go on until it has to stop; whether it moved."""
        scalar, moved = core.pipes["S"], False
        while not core.done:
            if core.stopped:
                if not self._resume(core, core.stopped):
                    return moved
                core.stopped, moved = None, True
            issue = next(core.issues, None)
            moved = True
            if issue is None:
                core.done = True
                break
            scalar.time += self.hardware.scalar * (1 + issue.scalars)
            if issue.kind == "receive" or issue.pipe == "ALL":
                core.stopped = issue
            else:
                known = Event(scalar.clock, scalar.time)
                core.pipes[issue.pipe].queue.append((issue, known))
                if issue.work and issue.work.then:
                    second = issue.work.then
                    half = Issue("half", second.pipe, issue.line, work=second)
                    core.pipes[second.pipe].queue.append((half, known))
        return moved

    def _resume(self, core: Core, issue: Issue) -> bool:
        """Whether what the scalar pipe waits for has come, and then its effect."""
        scalar = core.pipes["S"]
        if issue.kind == "barrier":
            if any(pipe.queue for pipe in core.pipes.values()):
                return False
            events = [self._finished(pipe) for pipe in core.pipes.values()]
        else:
            senders = (1, 2) if core.number == 0 else (0,)
            waiting = [self.semaphores[issue.flag, sender, core.number] for sender in senders]
            if not all(waiting):
                return False
            events = [queue.popleft() for queue in waiting]
            self.syncs[f"{core.name} wait"] += 1
        for event in events:
            scalar.clock = np.maximum(scalar.clock, event.clock)
            late = self.hardware.semaphore if issue.kind == "receive" else 0
            scalar.time = max(scalar.time, event.time + late)
        if issue.kind == "barrier":
            for pipe in core.pipes.values():
                pipe.clock = np.maximum(pipe.clock, scalar.clock)
        return True

    def _drain(self, core: Core) -> bool:
        moved = any_moved = True
        any_moved = False
        while moved:
            moved = False
            for pipe in self._order(list(core.pipes)):
                while core.pipes[pipe].queue and self._step(core, pipe):
                    moved = any_moved = True
                    if self.random:
                        break
        return any_moved

    def _step(self, core: Core, name: str) -> bool:
        """Run the head of a pipe's queue; False where it has to wait."""
        pipe = core.pipes[name]
        issue, known = pipe.queue[0]
        if issue.kind == "wait" and not core.flags[issue.other, name, issue.flag]:
            return False
        work = issue.work
        if work and any(not core.flags["MTE2", "MTE1", flag] for flag in work.waits):
            return False
        if issue.kind == "half" and work and "begun" not in work.facts:
            return False
        pipe.queue.popleft()
        self._join(pipe, known)
        if issue.kind in ("work", "half") and work:
            self._work(core, name, issue, work)
        elif issue.kind == "wait":
            self._wait(core, pipe, (issue.other, name, issue.flag))
        elif issue.kind == "set":
            self._set(core, pipe, (name, issue.other, issue.flag))
        elif issue.kind == "barrier":
            pipe.clock = self._finished(pipe).clock
        else:
            self._send(core, pipe, issue)
        return True

    def _finished(self, pipe: Pipe) -> Event:
        clock = pipe.clock.copy()
        clock[pipe.index] = pipe.epoch
        return Event(clock, pipe.time)

    def _set(self, core: Core, pipe: Pipe, flag: tuple[str, str, int]) -> None:
        self.syncs["flags"] += 1
        pipe.time += self.hardware.flag
        core.flags[flag].append(self._finished(pipe))

    def _wait(self, core: Core, pipe: Pipe, flag: tuple[str, str, int]) -> None:
        self._join(pipe, core.flags[flag].popleft())

    def _join(self, pipe: Pipe, event: Event) -> None:
        pipe.clock = np.maximum(pipe.clock, event.clock)
        pipe.time = max(pipe.time, event.time)

    def _send(self, core: Core, pipe: Pipe, issue: Issue) -> None:
        self.syncs[f"{core.name} set"] += 1
        receivers = (1, 2) if core.number == 0 else (0,)
        for receiver in receivers:
            queue = self.semaphores[issue.flag, core.number, receiver]
            queue.append(self._finished(pipe))
            if len(queue) > PENDING:
                self._problem(f"{core.name}: more than {PENDING} pending on {issue.flag}")

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def _work(self, core: Core, name: str, issue: Issue, work: Work) -> None:
        pipe = core.pipes[name]
        if issue.kind == "half":
            self._join(pipe, work.facts["begun"])
        for flag in work.waits:
            self._wait(core, pipe, ("MTE2", "MTE1", flag))
        start = self._execute(core, name, issue, work)
        for flag in work.sets:
            self._set(core, pipe, ("MTE1", "MTE2", flag))
        if not work.then:
            return
        # The routine multiplies as its operands arrive, and ends after the last of them.
        first = min(pipe.time - start, self.hardware.cube_start * 2)
        last = pipe.time + first - self.hardware.cycles(work.then)
        work.then.facts["begun"] = Event(self._finished(pipe).clock, max(start + first, last))

    def _execute(self, core: Core, name: str, issue: Issue, work: Work) -> float:
        pipe = core.pipes[name]
        pipe.epoch += 1
        start, length = pipe.time, self.hardware.cycles(work)
        pipe.time += length
        self.busy[f"{core.name} {name}"] += round(length)
        if work.path:
            self.bytes[work.path] += work.bytes
        if self.trace:
            touched = tuple(
                (view.buffer.space, view.first_byte, view.end_byte, view in work.writes)
                for view in (*work.reads, *work.writes)
                if view.buffer.space != "gm" and view.elements
            )
            self.spans.append(Span(core.name, name, work.name, start, pipe.time, touched))
        if self.checking:
            label = f"{work.name} (line {issue.line})"
            self.hazards.check(work, pipe.index, pipe.epoch, pipe.clock, label)
            for view in (*work.reads, *work.writes, *work.scratch):
                if view.buffer.space != "gm" and view.elements:
                    space = view.buffer.space
                    self.peaks[space] = max(self.peaks.get(space, 0), view.end_byte)
            if work.action:
                work.action()
        return start

    def _stuck(self) -> list[str]:
        found = []
        for core in self.cores:
            if core.stopped:
                what = "a barrier" if core.stopped.kind == "barrier" else "semaphore"
                found.append(f"{core.name} at line {core.stopped.line}: {what} {core.stopped.flag}")
            for name, pipe in core.pipes.items():
                if pipe.queue:
                    head = pipe.queue[0][0]
                    found.append(f"{core.name} {name} at line {head.line}: {head.kind} {head.flag}")
        return found

    def _left_over(self) -> None:
        """Flags and semaphores that the next kernel would find set."""
        for core in self.cores:
            for flag, events in core.flags.items():
                if events:
                    self._problem(f"{core.name}: flag {flag} left set")
        for (flag, sender, receiver), queue in self.semaphores.items():
            if queue:
                self._problem(f"semaphore {flag} from {CORES[sender]} to {CORES[receiver]} left")
