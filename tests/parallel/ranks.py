"""Functions run on several ranks of gloo, each a process of its own, within a time limit."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120.0


@dataclass
class RanksFailedError(Exception):
    """What each rank that failed said, by rank."""

    errors: dict[int, str]

    def __str__(self) -> str:
        return "\n".join(f"rank {rank}: {error}" for rank, error in sorted(self.errors.items()))


def run(
    function: Callable[..., Any], ranks: int, *args: object, seconds: float = SECONDS
) -> list[Any]:
    """What function(*args) returns on each of `ranks` ranks, whose default group is gloo's.

    The function is imported by name in each process, so it stands at the top of a module. If a
    rank fails, or the time is up, all are killed: RanksFailedError.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(ranks):
            mine, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(
                target=_rank, args=(theirs, rank, ranks, folder, seconds, function, args)
            )
            process.start()
            theirs.close()
            started.append((process, mine))
        try:
            return _results([pipe for _, pipe in started], seconds)
        finally:
            for process, _ in started:
                process.kill()
                process.join()


def _rank(
    pipe: Connection,
    rank: int,
    ranks: int,
    folder: str,
    seconds: float,
    function: Callable[..., Any],
    args: tuple[object, ...],
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(os.path.join(folder, "store"), ranks),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=seconds),
        )
        pipe.send((True, function(*args)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def _results(pipes: list[Connection], seconds: float) -> list[Any]:
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    limit = time.monotonic() + seconds
    left = dict(enumerate(pipes))
    while left and not errors:
        ready = wait(list(left.values()), timeout=limit - time.monotonic())
        if not ready:
            raise RanksFailedError(dict.fromkeys(left, f"no answer within {seconds:g} s"))
        for rank, pipe in list(left.items()):
            if pipe in ready:
                del left[rank]
                try:
                    good, value = pipe.recv()
                except EOFError:
                    good, value = False, "ended without a word"
                (results if good else errors)[rank] = value
    if errors:
        raise RanksFailedError(errors)
    return [results[rank] for rank in range(len(pipes))]
