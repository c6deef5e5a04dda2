"""Order between accesses, by vector clocks: one component for each pipe of each core.

A pipe starts its operations in order but finishes them freely until a barrier or a flag says so:
an operation sees what its own pipe did before only after `pipe_barrier`, and what another pipe
did only through a flag, a semaphore or a chain of them. Two accesses to the same bytes, one of
them a write, that no chain orders are a hazard. An operation may overwrite what an earlier one of
its own pipe reads: operands are read in order. It may also take an earlier one's scratch as its
own: a routine that reads its scratch back has ordered those writes itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.hivm.library import Work
from tools.hivm.memory import GRANULE, Array, Buffer, View


@dataclass(frozen=True)
class Hazard:
    kind: str
    buffer: str
    address: int
    earlier: str
    later: str

    def __str__(self) -> str:
        where = f"byte {self.address} of {self.buffer}"
        return f"{self.kind} at {where}: {self.later} after {self.earlier}"


class Shadow:
    """Who wrote and read each granule of a buffer last."""

    def __init__(self, size: int, agents: int) -> None:
        count = -(-size // GRANULE)
        self.writer = np.full(count, -1, np.int16)
        self.wrote = np.zeros(count, np.int32)
        self.scratch = np.zeros(count, bool)
        self.read: dict[int, Array] = {}
        self.count = count


class Hazards:
    """Checks accesses as they happen, and keeps what it found, one a pair of operations."""

    def __init__(self, agents: list[str]) -> None:
        self.agents = agents
        self.shadows: dict[int, Shadow] = {}
        self.labels: dict[tuple[int, int], str] = {}
        self.found: dict[tuple[str, str, str, str], Hazard] = {}

    def check(self, work: Work, agent: int, epoch: int, clock: Array, label: str) -> None:
        """One operation with its clock: what has happened before it, by agent."""
        self.labels[agent, epoch] = label
        for view in work.reads:
            self._access(view, agent, epoch, clock, label, write=False)
        for view in work.writes:
            self._access(view, agent, epoch, clock, label, write=True)
        for view in work.scratch:
            self._access(view, agent, epoch, clock, label, write=True, scratch=True)

    def _shadow(self, buffer: Buffer) -> Shadow:
        if id(buffer) not in self.shadows:
            self.shadows[id(buffer)] = Shadow(buffer.data.size, len(self.agents))
        return self.shadows[id(buffer)]

    def _access(
        self,
        view: View,
        agent: int,
        epoch: int,
        clock: Array,
        label: str,
        *,
        write: bool,
        scratch: bool = False,
    ) -> None:
        shadow, at = self._shadow(view.buffer), view.granules()
        writer, wrote = shadow.writer[at], shadow.wrote[at]
        if not writer.size:
            return
        # An operation may write what it itself wrote or read: scratch, and results in place.
        unordered = (writer >= 0) & (wrote > clock[writer])
        mine = writer == agent
        unordered &= ~(mine & (wrote == epoch))
        if scratch:
            unordered &= ~(mine & shadow.scratch[at])
        if unordered.any():
            kind = "write after write" if write else "read after write"
            self._report(kind, view, at, unordered, writer, wrote, label)
        if not write:
            if agent not in shadow.read:
                shadow.read[agent] = np.zeros(shadow.count, np.int32)
            shadow.read[agent][at] = epoch
            return
        for reader, when in shadow.read.items():
            if reader == agent:
                continue
            unordered = when[at] > clock[reader]
            if unordered.any():
                who = np.full(unordered.shape, reader)
                self._report("write after read", view, at, unordered, who, when[at], label)
        shadow.writer[at] = agent
        shadow.wrote[at] = epoch
        shadow.scratch[at] = scratch

    def _report(
        self, kind: str, view: View, at: slice | Array, unordered: Array, who: Array,
        when: Array, label: str,
    ) -> None:  # fmt: skip
        first = int(np.argmax(unordered))
        granule = (at.start + first) if isinstance(at, slice) else int(at[first])
        earlier = self.labels.get((int(who[first]), int(when[first])), "?")
        key = (kind, view.buffer.name, earlier, label)
        self.found.setdefault(
            key, Hazard(kind, view.buffer.name, granule * GRANULE, earlier, label)
        )
