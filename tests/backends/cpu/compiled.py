"""The compiled library with each instruction set that this machine runs."""

from __future__ import annotations

import ctypes
import platform

from portattn.backends.cpu import library as libraries


def variants() -> list[str]:
    """The instruction sets of this machine; none where the library isn't built."""
    found = libraries.state().library
    return [] if found is None else libraries.usable_variants(found)


def library(variant: str) -> ctypes.CDLL:
    """The library, from now on with this instruction set."""
    found = libraries.state().library
    assert found is not None
    assert found.pa_use(variant.encode()) == 0
    libraries._variant = variant
    return found


LINUX = platform.system() == "Linux"
