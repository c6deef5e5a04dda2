"""The checks of `portattn doctor`: each looks at one thing and says what to do about it."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from portattn.cli import older_gpus
from portattn.cli.info import state
from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.dispatch import registry
from portattn.dispatch.backend import HasLibrary, HasSoftware
from portattn.errors import BackendUnavailableError, ProfileError
from portattn.integrations.models import cache_dir

State = Literal["ok", "warn", "fail"]

# Import name, what it is for, how to get it.
OPTIONAL = (
    ("typer", "the command line", "portattn[cli]"),
    ("transformers", "models of transformers", "portattn[transformers]"),
    ("accelerate", "loading models", "portattn[transformers]"),
    ("gguf", "model files in GGUF", "portattn[transformers]"),
    ("diffusers", "models of diffusers", "portattn[diffusers]"),
    ("matplotlib", "pictures of benchmarks", "portattn[bench]"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: State
    subject: str
    found: str
    advice: str = ""


def torch_and_devices() -> Iterator[Finding]:
    """A torch build serves the architectures it was compiled for, and no others."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("ok", "torch", f"{torch.__version__}, Python {python}")
    built_for = torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        if built_for:
            yield Finding(
                "warn",
                "GPU",
                f"torch is built for CUDA or ROCm {built_for}, but sees no GPU",
                "check the driver; on a machine without a GPU a CPU build of torch is smaller",
            )
        else:
            yield Finding("ok", "GPU", "torch is a CPU build")
        return
    for index in range(torch.cuda.device_count()):
        yield _architecture(index)


def _architecture(index: int) -> Finding:
    major, minor = torch.cuda.get_device_capability(index)
    name = torch.cuda.get_device_name(index)
    architectures = torch.cuda.get_arch_list()
    wanted = f"sm_{major}{minor}"
    # Binaries run on later minor versions of the same major architecture.
    served = any(
        built.startswith("gfx") or (built[3:-1] == str(major) and int(built[-1]) <= minor)
        for built in architectures
        if built.startswith("gfx") or built[3:].isdigit()
    )
    if served:
        return Finding("ok", f"GPU {index}", f"{name}, {wanted}")
    advice = "install a torch build that lists this architecture"
    if major == 7 and minor == 0:
        advice = "Volta is in torch 2.10 for CUDA 12.8, and in builds for CUDA 12.6 up to 2.14"
    return Finding(
        "fail", f"GPU {index}", f"{name} is {wanted}; torch has {', '.join(architectures)}", advice
    )


def volta_and_turing() -> Iterator[Finding]:
    """The last CUDA for Volta isn't the newest: torch, CuPy and NVRTC must agree on an old one."""
    for device in devices.available():
        if device.family in older_gpus.WORKING:
            state, found, advice = older_gpus.judge(
                device.family,
                torch.version.cuda,
                torch.cuda.get_arch_list(),
                older_gpus.installed_cupy(),
            )
            yield Finding(state, f"CUDA for {device.family}", found, advice)


def backends() -> Iterator[Finding]:
    """Every device needs a backend; one that can't be used says why."""
    for device in devices.available():
        states = [state(name, device) for name in registry.names()]
        usable = [item.backend for item in states if item.reason is None]
        yield Finding(
            "ok" if usable else "fail",
            f"backends on {device.type}:{device.index}",
            ", ".join(usable) or "; ".join(f"{item.backend}: {item.reason}" for item in states),
            "" if usable else "the reasons name what is missing",
        )


def compiled_libraries() -> Iterator[Finding]:
    """Without its compiled library a backend computes by something slower."""
    for name in registry.names():
        try:
            backend = registry.load(name)
        except BackendUnavailableError:
            continue  # `backends` reports it
        if isinstance(backend, HasLibrary):
            found, advice = backend.library_state()
            yield Finding("warn" if advice else "ok", f"library of {name}", found, advice)


def software() -> Iterator[Finding]:
    """Drivers and packages that a backend's devices need; without such a device, no fault."""
    for name in registry.names():
        try:
            backend = registry.load(name)
        except BackendUnavailableError:
            continue  # `backends` reports it
        if isinstance(backend, HasSoftware):
            found, advice = backend.software()
            yield Finding("warn" if advice else "ok", f"software for {name}", found, advice)


def optional_libraries() -> Iterator[Finding]:
    """What isn't installed is no fault, but the features it brings are missing."""
    for module, purpose, extra in OPTIONAL:
        if importlib.util.find_spec(module) is None:
            yield Finding("warn", module, f"not installed: no {purpose}", f"pip install '{extra}'")
        else:
            yield Finding("ok", module, purpose)


def shipped_profiles() -> Iterator[Finding]:
    """The profiles that ship, and with them that the package's data is there."""
    try:
        names = profiles.names()
        for name in names:
            profiles.resolve(name)
    except ProfileError as error:
        yield Finding("fail", "profiles", str(error), "reinstall portattn")
    else:
        yield Finding("ok", "profiles", f"{len(names)} ship, all valid")


def own_profiles() -> Iterator[Finding]:
    """PORTATTN_PROFILE and the overlays in the user's configuration folder."""
    chosen = os.environ.get("PORTATTN_PROFILE")
    folder = profiles.overlay_path("any").parent
    # A tuner that is at work, or was killed at it, leaves a file with a leading dot.
    files = folder.iterdir() if folder.is_dir() else ()
    overlays = sorted(file for file in files if not file.name.startswith("."))
    if not chosen and not overlays:
        yield Finding("ok", "profiles of your own", "none")
    if chosen:
        yield _profile_finding(chosen, partial(profiles.resolve, chosen))
    for file in overlays:
        yield _profile_finding(str(file), partial(_overlaid, file))


def _overlaid(file: Path) -> object:
    return profiles.overlay(profiles.resolve(file.stem), file)


def _profile_finding(name: str, load: Callable[[], object]) -> Finding:
    try:
        load()
    except ProfileError as error:
        return Finding("fail", "profile of your own", str(error), "correct or remove it")
    return Finding("ok", "profile of your own", name)


def cache_folder() -> Iterator[Finding]:
    """What the cache folder holds is loaded, so nobody else may write there."""
    folder = cache_dir()
    if not folder.exists() and not folder.is_symlink():
        yield Finding("ok", "cache folder", f"{folder}, not made yet")
        return
    status = folder.lstat()
    fault = None
    if not stat.S_ISDIR(status.st_mode):
        fault = "is not a folder (links aren't followed)"
    elif hasattr(os, "getuid") and status.st_uid != os.getuid():
        fault = "belongs to another user"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        fault = "can be written by others"
    if fault is None:
        yield Finding("ok", "cache folder", str(folder))
    else:
        advice = f"chmod 700 {folder}, or set PORTATTN_CACHE_DIR to a folder of your own"
        yield Finding("fail", "cache folder", f"{folder} {fault}", advice)


def threads() -> Iterator[Finding]:
    """OpenMP threads spin at barriers: one that shares its core makes every operator wait."""
    count = torch.get_num_threads()
    cores = _usable_cores()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    found = f"{count} threads on {cores} usable cores, load {busy:.1f}"
    if count > cores:
        yield Finding("warn", "threads", found, f"set OMP_NUM_THREADS={cores}")
    elif count > 1 and busy + count > cores + 1:
        yield Finding(
            "warn",
            "threads",
            found,
            "other work shares these cores: set OMP_WAIT_POLICY=passive or OMP_NUM_THREADS=1",
        )
    else:
        yield Finding("ok", "threads", found)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    torch_and_devices,
    volta_and_turing,
    backends,
    compiled_libraries,
    software,
    optional_libraries,
    shipped_profiles,
    own_profiles,
    cache_folder,
    threads,
)
