"""A link whose copies happen later, as to a device: what doesn't wait for them reads old bytes."""

from __future__ import annotations

import queue
import threading
import time

import torch
from torch import Tensor

from portattn.offload.link import Event, HostLink


class Happened:
    def __init__(self) -> None:
        self.event = threading.Event()

    def done(self, timeout: float) -> bool:
        return self.event.wait(None if timeout == float("inf") else timeout)


class DelayedLink(HostLink):
    """Each direction copies on a thread, in order, `seconds` after it was asked."""

    def __init__(self, seconds: float, gbs: float | None = None) -> None:
        super().__init__(torch.device("cpu"))
        self.seconds, self.gbs = seconds, gbs
        self.waits = True  # False seeds the defect of a missing wait
        self._queues = [queue.SimpleQueue[object]() for _ in range(2)]
        for waiting in self._queues:
            threading.Thread(target=self._serve, args=(waiting,), daemon=True).start()

    def _serve(self, waiting: queue.SimpleQueue[object]) -> None:
        while True:
            target, source, after, event = waiting.get()  # type: ignore[misc]
            if after is not None:
                after.done(60)
            time.sleep(self.seconds if self.gbs is None else source.nbytes / self.gbs / 1e9)
            target.copy_(source)
            event.event.set()

    def _later(self, direction: int, target: Tensor, source: Tensor, after: Event | None) -> Event:
        event = Happened()
        self._queues[direction].put((target, source, after, event))
        return event

    def upload(
        self, target: Tensor, source: Tensor, after: Event | None = None, *, urgent: bool = False
    ) -> Event:
        return self._later(0, target, source, after)

    def download(self, target: Tensor, source: Tensor, *, urgent: bool = False) -> Event:
        return self._later(1, target, source, None)

    def before_computation(self, event: Event) -> None:
        if self.waits:
            event.done(60)
