"""Processes of a distributed run: started here or by torchrun, joined, and ended together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler

from portattn.errors import ArgumentError, ParallelError, PortattnError
from portattn.parallel.watch import Watch, progress

BACKENDS = {"cuda": "nccl", "npu": "hccl", "cpu": "gloo"}


@dataclass(frozen=True)
class Place:
    """This process among those that torchrun started: on this host, and in all."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int


def here() -> Place | None:
    """What torchrun's environment says; None for a process that it didn't start."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in names):
        return None
    return Place(*(int(os.environ[name]) for name in names))


def start(ranks: int, command: Sequence[str]) -> int:
    """Run a command, as torchrun takes one, on `ranks` processes of this host; the exit code.

    torchrun's agent runs in this process: one rank's failure, an interrupt or a signal ends all.
    Its options for several hosts are taken from the environment, as PET_NNODES, PET_NODE_RANK and
    PET_RDZV_ENDPOINT; without them, everything is on this host. The cores are shared out, unless
    OMP_NUM_THREADS says otherwise.
    """
    from torch.distributed import run

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // ranks)))
    several = "PET_NNODES" in os.environ or "PET_RDZV_ENDPOINT" in os.environ
    options = [f"--nproc-per-node={ranks}", *([] if several else ["--standalone"])]
    try:
        run.run(run.parse_args([*options, *command]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"Error: rank {rank}: {_message(failure.message)}", file=sys.stderr)
        return failure.exitcode if 0 < failure.exitcode < 128 else 1
    except (KeyboardInterrupt, SignalException):
        return 130
    return 0


def _message(told: object) -> str:
    return str(told["message"] if isinstance(told, dict) and "message" in told else told)


@contextmanager
def joined(
    place: Place, device: torch.device, *, backend: str | None = None, seconds: float = 300.0
) -> Iterator[ProcessGroup]:
    """The group of all ranks, while inside; only rank 0 writes to stdout.

    A collective that waits longer than `seconds` fails. Whatever fails inside is told to the agent
    that started this process, with the rank that explains it where one does, and ends all ranks.

    Raises ArgumentError for a backend that doesn't fit the device, ParallelError for a rank that
    failed, stalled or left.
    """
    wanted = backend or BACKENDS.get(device.type, "gloo")
    if wanted not in BACKENDS.values() or (device.type == "cpu") != (wanted == "gloo"):
        fits = BACKENDS.get(device.type, "gloo")
        raise ArgumentError("backend", f"must be {fits} for {device.type}", wanted)
    watch = Watch(place.rank, place.ranks)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere if place.rank else sys.stdout),
        ):
            dist.init_process_group(
                wanted,
                timeout=timedelta(seconds=seconds),
                device_id=device if device.type == "cuda" else None,
            )
            watch.start()
            group = dist.group.WORLD
            assert group is not None
            yield group
            dist.barrier()
    except RuntimeError as error:
        told = _explained(error, watch)
        get_error_handler().record_exception(told)
        raise told from error
    except BaseException as error:
        get_error_handler().record_exception(error)
        raise
    finally:
        watch.stop()
        if dist.is_initialized():
            dist.destroy_process_group()


def same_on_all(group: ProcessGroup, **facts: object) -> None:
    """Raise ArgumentError, on every rank, for the first argument that ranks don't agree on."""
    told: list[dict[str, object]] = [{}] * group.size()
    dist.all_gather_object(told, facts, group=group)
    for name in facts:
        values = [fact.get(name) for fact in told]
        if len(set(map(repr, values))) > 1:
            shown = ", ".join(f"{value!r} on rank {rank}" for rank, value in enumerate(values))
            raise ArgumentError(name, f"must be the same on all ranks: {shown}")


def _explained(error: Exception, watch: Watch) -> Exception:
    """The error with what the other ranks' heartbeats say of it."""
    if isinstance(error, PortattnError) or not _of_collective(error):
        return error
    absent = watch.absent()
    about = "; ".join(absent) or "every other rank answers and has come as far"
    return ParallelError(f"rank {watch.rank} failed at {progress}: {about}", str(error))


def _of_collective(error: Exception) -> bool:
    words = ("timed out", "timeout", "connection", "gloo", "nccl", "hccl", "socket", "recv", "peer")
    return any(word in str(error).lower() for word in words)
