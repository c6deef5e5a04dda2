"""Options that several commands share, and what they become."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import typer

from portattn.dispatch import device as devices
from portattn.dispatch import registry
from portattn.dispatch.device import Device

DtypeName = Literal["float16", "bfloat16", "float32", "float64"]


def check_backend(name: str | None) -> str | None:
    """A registered backend's name or None; a usage error otherwise."""
    if name is not None and name not in registry.names():
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(registry.names())}")
    return name


def check_device(name: str | None) -> str | None:
    """A device name that torch understands or None; a usage error otherwise."""
    if name is not None:
        try:
            torch.device(name)
        except RuntimeError as error:
            raise typer.BadParameter(f"{name!r} is not a device such as cpu or cuda:0") from error
    return name


BackendOption = Annotated[
    str | None,
    typer.Option(help="This backend or an error.", callback=check_backend),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...", callback=check_device)
]


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype of that name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def torch_device(name: str | None) -> torch.device:
    """The named device, or the first accelerator, or the CPU."""
    if name is not None:
        return torch.device(name)
    accelerators = [found for found in devices.available() if found.type != "cpu"]
    if accelerators:
        return torch.device(accelerators[0].type, accelerators[0].index)
    return torch.device("cpu")


def device_of(name: str | None) -> Device:
    """The Device behind an option's value."""
    return devices.of(torch_device(name))
