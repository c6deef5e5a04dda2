"""Libraries that a backend wraps: whether they can be used, and if not, why."""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata
from types import ModuleType

from portattn.errors import BackendUnavailableError


@cache
def missing(package: str, oldest: tuple[int, ...] = ()) -> str | None:
    """Why an installed package can't be used, None when nothing is known against it.

    `oldest` is the first version that has the calls the backend makes. Nothing is imported: that
    takes seconds for some, and a backend that is only considered shouldn't cost them.
    """
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"{package} is not installed: pip install {package}"
    if oldest and _numbers(version) < oldest:
        needed = ".".join(str(number) for number in oldest)
        return f"{package} {needed} or newer is needed, {version} is installed"
    return None


def load(backend: str, module: str, package: str, oldest: tuple[int, ...] = ()) -> ModuleType:
    """A module of a package. Raises BackendUnavailableError with the reason why it can't be."""
    cause = missing(package, oldest)
    if cause is not None:
        raise BackendUnavailableError(backend, cause)
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, AttributeError) as error:  # as built for another torch or CUDA
        cause = f"{package} can't be imported: {type(error).__name__}: {error}"
        raise BackendUnavailableError(backend, cause) from error


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.8.3.post1 as (2, 8, 3)."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
