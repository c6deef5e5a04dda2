"""Which versions of a library an integration is written for."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from portattn.errors import IntegrationError


def require(library: str, at_least: tuple[int, ...], below: tuple[int, ...]) -> None:
    """Raise IntegrationError unless a supported version of the library is installed."""
    supported = f">={_dotted(at_least)},<{_dotted(below)}"
    command = f"pip install '{library}{supported}'"
    try:
        installed = version(library)
    except PackageNotFoundError:
        raise IntegrationError(f"{library} is not installed: {command}") from None
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:3])
    if not at_least <= numbers < below:
        raise IntegrationError(
            f"{library} {installed} is not supported, {library}{supported} is: {command}"
        )


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
