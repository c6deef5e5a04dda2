"""Which rank is where: heartbeats in the group's store, read when a collective fails.

A collective that times out says that someone didn't come, not who. Each rank counts the sums and
exchanges it begins; a thread writes the count into the store every second, over a connection of
its own. A rank whose collective fails reads the others' twice: who is behind, and whose heart has
stopped.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from torch._C._distributed_c10d import TCPStore

BEAT_SECONDS = 1.0


@dataclass
class Progress:
    """How many collectives this process has begun, and what the last one was."""

    count: int = 0
    last: tuple[Any, ...] = ("the start",)

    def begin(self, *what: Any) -> None:
        """A collective begins; `what` becomes words only if somebody asks."""
        self.count += 1
        self.last = what

    def __str__(self) -> str:
        return f"collective {self.count}, {' '.join(map(str, self.last))}"


progress = Progress()


@dataclass(frozen=True)
class Seen:
    """What a rank's heartbeat said."""

    beat: int
    count: int
    where: str


@dataclass
class Watch:
    """This rank's heartbeat; `absent` says what of the others explains that a collective failed."""

    rank: int
    ranks: int
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat; needs MASTER_ADDR and MASTER_PORT, as torchrun sets them."""
        self._thread = threading.Thread(target=self._beat, name="portattn-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it may still be writing."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * BEAT_SECONDS)

    def absent(self) -> list[str]:
        """In words, each rank that is behind this one or has stopped; empty if none is."""
        store = _store()
        first = self._read(store)
        time.sleep(2.5 * BEAT_SECONDS)
        second = self._read(store)
        found = []
        for rank, now in sorted(second.items()):
            if rank == self.rank:
                continue
            before = first.get(rank)
            if now is None:
                found.append(f"rank {rank} never began")
            elif before is not None and before.beat == now.beat:
                found.append(f"rank {rank} has stopped answering, last at {now.where}")
            elif now.count < progress.count:
                found.append(f"rank {rank} runs but got no further than {now.where}")
        return found

    def _beat(self) -> None:
        store, beat = _store(), 0
        while not self._stopped.wait(BEAT_SECONDS if beat else 0.0):
            beat += 1
            try:
                store.set(_key(self.rank), json.dumps([beat, progress.count, str(progress)]))
            except (RuntimeError, OSError):  # the store is gone, and the job with it
                return

    def _read(self, store: TCPStore) -> dict[int, Seen | None]:
        seen: dict[int, Seen | None] = {}
        for rank in range(self.ranks):
            key = _key(rank)
            seen[rank] = Seen(*json.loads(store.get(key))) if store.check([key]) else None
        return seen


def _key(rank: int) -> str:
    return f"portattn/heartbeat/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{rank}"


def _store() -> TCPStore:
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
