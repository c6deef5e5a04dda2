"""Libraries that a backend wraps: whether they can be used, and if not, why."""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata
from types import ModuleType

from portattn.errors import BackendUnavailableError


@cache
def missing(module: str, package: str, oldest: tuple[int, ...] = ()) -> str | None:
    """Why a module of a package can't be used, None when it can; imported once per process.

    `oldest` is the first version that has the calls the backend makes.
    """
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"{package} is not installed: pip install {package}"
    if oldest and _numbers(version) < oldest:
        needed = ".".join(str(number) for number in oldest)
        return f"{package} {needed} or newer is needed, {version} is installed"
    try:
        importlib.import_module(module)
    except (ImportError, OSError, AttributeError) as error:  # as built for another torch or CUDA
        return f"{package} {version} can't be imported: {type(error).__name__}: {error}"
    return None


def load(backend: str, module: str, package: str, oldest: tuple[int, ...] = ()) -> ModuleType:
    """The module. Raises BackendUnavailableError with the reason when it can't be used."""
    cause = missing(module, package, oldest)
    if cause is not None:
        raise BackendUnavailableError(backend, cause)
    return importlib.import_module(module)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.8.3.post1 as (2, 8, 3)."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
