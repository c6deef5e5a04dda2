"""Finds, checks and loads the compiled library, and says why it doesn't run where it doesn't."""

from __future__ import annotations

import ctypes
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from portattn.backends.cpu import build
from portattn.dispatch import device as devices
from portattn.dispatch.environment import reader
from portattn.errors import ArgumentError

HOW_TO_BUILD = "`portattn doctor --build` builds it"
# Grows together with PA_INTERFACE of csrc/library.h.
_INTERFACE = 2


@dataclass(frozen=True)
class State:
    """The loaded library, or the reason why there is none."""

    library: ctypes.CDLL | None
    path: Path | None
    reason: str


def cache_folder() -> Path:
    """Where `portattn doctor --build` puts the library: in PORTATTN_CACHE_DIR, else the user's."""
    folder = os.environ.get("PORTATTN_CACHE_DIR") or platformdirs.user_cache_dir("portattn")
    return Path(folder) / "cpu"


def state() -> State:
    """The library, or why there is none; looked for once, until `forget`."""
    global _state
    if _state is None:
        _state = _find()
    return _state


_state: State | None = None


def forget() -> None:
    """Look for the library anew at the next call, as after building it."""
    global _state, _variant
    _state = _variant = None


def _find() -> State:
    reasons = []
    # The package's own folder may be a group's; what lies in the cache is one user's.
    for folder, writers in (
        (_package_folder(), stat.S_IWOTH),
        (cache_folder(), stat.S_IWOTH | stat.S_IWGRP),
    ):
        if not os.path.lexists(folder / build.LIBRARY):
            continue
        fault = _fault(folder, writers)
        if fault is None:
            return _load(folder / build.LIBRARY)
        reasons.append(f"{folder / build.LIBRARY} {fault}")
    return State(None, None, "; ".join(reasons) or "it isn't built")


def _package_folder() -> Path:
    return Path(build.__file__).resolve().parent


def _fault(folder: Path, writers: int) -> str | None:
    """Why the library in a folder must not be loaded, None when it may."""
    library, record = folder / build.LIBRARY, folder / build.RECORD
    for file in (folder, library, record):
        try:
            status = file.lstat()
        except OSError:
            return "has no record of its digest"
        if stat.S_ISLNK(status.st_mode):
            return "is a link"
        if status.st_uid not in (0, os.getuid()):
            return "belongs to another user"
        if status.st_mode & writers:
            return "can be written by others"
    try:
        digests = json.loads(record.read_text(encoding="utf-8"))
        recorded, sources = digests["library"], digests["sources"]
    except (OSError, ValueError, KeyError, TypeError):
        return "has no readable record of its digest"
    if sources != build.source_digest():
        return "was built from other sources"
    if recorded != build.file_digest(library):
        return "isn't the file that was built"
    return None


def _load(path: Path) -> State:
    try:
        library = ctypes.CDLL(str(path))
        if library.pa_interface() != _INTERFACE:
            return State(None, None, f"{path} has another interface")
    except (OSError, AttributeError) as error:
        return State(None, None, f"{path}: {error}")
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.pa_use.argtypes = [ctypes.c_char_p]
    library.pa_variant.restype = ctypes.c_char_p
    library.pa_variant_name.argtypes = [integer]
    library.pa_variant_name.restype = ctypes.c_char_p
    library.pa_variant_usable.argtypes = [integer]
    library.pa_decode.argtypes = [ctypes.c_char_p, integer]
    library.pa_prefill_forward.argtypes = [pointer, integer, integer]
    library.pa_prefill_backward.argtypes = [pointer, integer, integer]
    library.pa_read.argtypes = [pointer, integer, integer]
    library.pa_read.restype = ctypes.c_float
    library.pa_pool_size.restype = integer
    library.pa_decode_args_bytes.restype = integer
    return State(library, path, "")


def load() -> ctypes.CDLL | None:
    """The library with the instruction set that PORTATTN_CPU_ISA names, the widest without it.

    None when there is no library. Raises ArgumentError for an instruction set that isn't here.
    """
    global _variant, _seen
    library = state().library
    if library is None:
        return None
    if _variant is not None and (_variant, _wanted()) == _seen:
        return library
    wanted = os.environ.get("PORTATTN_CPU_ISA", "")
    if wanted != _variant:
        if library.pa_use(wanted.encode()):
            has = ", ".join(usable_variants(library))
            raise ArgumentError("PORTATTN_CPU_ISA", f"must be one of {has}", repr(wanted))
        _variant = wanted
    _seen = wanted, _wanted()
    return library


_variant: str | None = None
_wanted = reader("PORTATTN_CPU_ISA")
_seen: tuple[str, Any] | None = None


def in_use() -> tuple[State | None, str | None]:
    """The library and the wish for an instruction set that `load` saw last."""
    return _state, _variant


def variant(library: ctypes.CDLL) -> str:
    """The instruction set in use."""
    name: bytes = library.pa_variant()
    return name.decode()


def usable_variants(library: ctypes.CDLL) -> list[str]:
    """The instruction sets that are compiled in and that the processor has, narrowest first."""
    found, index = [], 0
    while (name := library.pa_variant_name(index)) is not None:
        if library.pa_variant_usable(index):
            found.append(name.decode())
        index += 1
    return found


def threads() -> int:
    """torch's number of threads, cut by the cgroup's quota; the library cuts it by affinity."""
    return min(torch.get_num_threads(), cores())


def cores() -> int:
    """Cores that the process was found to have; at least 1."""
    return max(1, devices.of(_CPU).cores)


_CPU = torch.device("cpu")
