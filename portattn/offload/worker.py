"""The thread that has the CPU attend to host memory while the device is at work."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch

from portattn.errors import OffloadTimeoutError

Result = TypeVar("Result")
_Job = tuple[Callable[[], object], "Future[object]"]


class Worker(Generic[Result]):
    """Runs one job after another on a thread of its own, which starts with the first.

    The thread doesn't keep a process alive: one that hangs in a driver call must not. A job's
    exception, KeyboardInterrupt included, is raised where its result is asked for.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.idle_seconds = 0.0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stuck: str | None = None

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Queue a job. Raises OffloadTimeoutError when an earlier one never came back."""
        if self._stuck is not None:
            raise OffloadTimeoutError(f"{self._stuck}; close this engine and make another")
        if self._thread is None:
            self._thread = threading.Thread(
                target=_serve, args=(self._jobs, weakref.ref(self)), daemon=True, name="portattn"
            )
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None)
        future: Future[Result] = Future()
        self._jobs.put((job, future))  # type: ignore[arg-type]
        return future

    def result(self, future: Future[Result], waiting_for: Callable[[], str]) -> Result:
        """A job's result, or its exception; OffloadTimeoutError, with words, after `timeout` s."""
        try:
            return future.result(self.timeout)
        except TimeoutError as error:
            if future.done():  # the job's own
                raise
            self._stuck = f"no answer in {self.timeout:g} s: {waiting_for()}"
            raise OffloadTimeoutError(self._stuck) from error

    def close(self) -> None:
        """Let the thread end after what is queued."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(self.timeout if self._stuck is None else 0.0)
            self._thread = None


def _serve(jobs: queue.SimpleQueue[_Job | None], owner: weakref.ref[Worker[object]]) -> None:
    # Modes of torch belong to a thread.
    torch.set_grad_enabled(False)
    while True:
        start = time.perf_counter()
        item = jobs.get()
        worker = owner()
        if worker is not None:
            worker.idle_seconds += time.perf_counter() - start
        if item is None:
            return
        del worker
        job, future = item
        try:
            future.set_result(job())
        except BaseException as error:  # every kind belongs to the one who waits
            future.set_exception(error)
        del item, job, future
