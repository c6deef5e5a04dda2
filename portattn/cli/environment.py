"""What a result depends on: the machine, its driver and the versions of the libraries."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

import portattn
from portattn.dispatch import device as devices

LIBRARIES = (
    "torch",
    "transformers",
    "diffusers",
    "triton",
    "flash-attn",
    "flash-attn-4",
    "flashinfer-python",
    "nvidia-cutlass-dsl",
    "xformers",
    "numpy",
)


def versions() -> dict[str, str]:
    """Version of portattn, Python, CUDA, and each library of interest that is installed."""
    found = {"portattn": portattn.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        version = _version(name)
        if version is not None:
            found[name] = version
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
        cudnn = torch.backends.cudnn.version()
        if cudnn is not None:
            found["cudnn"] = str(cudnn)
    return found


def machine(device: torch.device) -> dict[str, object]:
    """The device a measurement ran on, and the processor beside it."""
    return {
        "device": str(devices.of(device)),
        "processor": str(devices.of(torch.device("cpu"))),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "driver": _nvidia_driver() if device.type == "cuda" else None,
        "system": platform.platform(),
    }


def record(device: torch.device, command: Sequence[str] | None = None) -> dict[str, object]:
    """What stands beside every recorded result: date, command, machine, versions."""
    arguments = sys.argv if command is None else command
    program = [Path(arguments[0]).name, *arguments[1:]]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(program),
        "machine": machine(device),
        "versions": versions(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_driver() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    return file.read_text(encoding="utf-8").splitlines()[0] if file.exists() else None
