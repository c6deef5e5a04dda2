"""Which versions of a library an integration is written for."""

from __future__ import annotations

import re
from importlib import metadata

from portattn.errors import IntegrationError


def require(library: str, at_least: tuple[int, ...], below: tuple[int, ...]) -> None:
    """Raise IntegrationError unless a supported version of the library is installed."""
    supported = f">={_dotted(at_least)},<{_dotted(below)}"
    command = f"pip install '{library}{supported}'"
    try:
        installed = metadata.version(library)
    except metadata.PackageNotFoundError:
        raise IntegrationError(f"{library} is not installed: {command}") from None
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:3])
    if not at_least <= numbers < below:
        raise IntegrationError(
            f"{library} {installed} is installed, portattn supports {supported}: {command}"
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
