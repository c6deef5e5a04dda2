"""`--tp` and `--cp`: the command runs on several ranks, and only the first one speaks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import typer

from portattn.cli.options import torch_device
from portattn.errors import PortattnError
from portattn.parallel import launch


@contextmanager
def ranks(
    count: int, backend: str | None, patience: float, device: str | None, **asked: object
) -> Iterator[bool]:
    """Whether this process may speak, inside; outside of torchrun, `count` processes are started,
    and the command ends with theirs.

    Raises a usage error where count isn't torchrun's number of processes, or the device is named.
    """
    place = launch.here()
    if count == 1:
        if place is not None and place.ranks > 1:
            raise typer.BadParameter(
                f"torchrun started {place.ranks} ranks", param_hint="--tp, --cp"
            )
        yield True
        return
    if device is not None and torch.device(device) != torch_device(None):
        raise typer.BadParameter(
            "ranks take their own accelerators, or the CPU where there is none",
            param_hint="--device",
        )
    if place is None:
        raise typer.Exit(launch.start(count, ["-m", "portattn", *sys.argv[1:]]))
    if place.ranks != count:
        raise typer.BadParameter(f"torchrun started {place.ranks} ranks", param_hint="--tp, --cp")
    here = torch_device(None)
    if here.type != "cpu":
        here = torch.device(here.type, place.local_rank)
        getattr(torch, here.type).set_device(here)
    try:
        with launch.joined(place, here, backend=backend, seconds=patience) as group:
            launch.same_on_all(group, **asked)
            yield place.rank == 0
    except PortattnError as error:
        # Whoever started this process has it, and says it once for all ranks.
        raise typer.Exit(1) from error
