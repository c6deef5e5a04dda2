"""Every error type of portattn: each names what was given and what would work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class PortattnError(Exception):
    """Base of all errors raised by portattn."""


class ArgumentError(PortattnError, ValueError):
    """An argument of a public function can't be used.

    `argument` is its name, `given` what was passed, `expected` what would work.
    """

    def __init__(self, argument: str, expected: str, given: object = None) -> None:
        self.argument = argument
        self.expected = expected
        self.given = given
        shown = "" if given is None else f", got {given}"
        super().__init__(f"{argument}: {expected}{shown}")


class ShapeError(ArgumentError):
    """A tensor's shape or stride doesn't fit the others."""


class DtypeError(ArgumentError, TypeError):
    """A tensor's dtype isn't usable or differs from the others'."""


class DeviceError(ArgumentError):
    """A tensor is on another device than the others."""


class BackendUnavailableError(PortattnError, RuntimeError):
    """A backend can't be used in this process: missing library, device, or a failed probe."""

    def __init__(self, backend: str, cause: str) -> None:
        self.backend = backend
        self.cause = cause
        super().__init__(f"backend {backend!r} is not available: {cause}")


class NoBackendError(PortattnError, RuntimeError):
    """No backend can run the problem; `rejections` holds every candidate with its reasons."""

    def __init__(self, problem: object, device: object, rejections: Sequence[Any]) -> None:
        self.problem = problem
        self.device = device
        self.rejections = tuple(rejections)
        lines = [f"no backend can run {problem} on {device}:"]
        for rejection in self.rejections:
            lines.append(f"  {rejection.backend}:")
            lines.extend(f"    - {reason}" for reason in rejection.reasons)
        super().__init__("\n".join(lines))


class ProfileError(PortattnError, ValueError):
    """A hardware profile can't be used; names file, line, key, what was found, what is legal."""

    def __init__(
        self, file: str, problem: str, *, line: int | None = None, key: str | None = None
    ) -> None:
        self.file = file
        self.line = line
        self.key = key
        self.problem = problem
        place = file if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {problem}" if key is None else f"{place}: {key}: {problem}")


class TuningError(PortattnError, RuntimeError):
    """Tuning can't begin or go on: another tuner is at work, or the device stopped answering."""


class CacheFullError(PortattnError, RuntimeError):
    """A KV cache has no room for what should be appended; the cache is unchanged."""

    def __init__(self, needed: int, available: int, unit: str) -> None:
        self.needed = needed
        self.available = available
        super().__init__(f"KV cache is full: {needed} {unit} needed, {available} available")


class IntegrationError(PortattnError, RuntimeError):
    """Another library asks for something that portattn can't do through that interface."""


class LaunchError(PortattnError, RuntimeError):
    """The device's driver refused to launch a kernel; `status` and `name` are the driver's."""

    def __init__(self, kernel: str, status: int, name: str, description: str) -> None:
        self.kernel = kernel
        self.status = status
        self.name = name
        super().__init__(f"{kernel} was not launched: {name} ({status}), {description}")


class HostKVOutOfMemory(PortattnError, MemoryError):
    """Host memory can't hold more keys and values; the cache is as it was before the call.

    `needed` and `available` are bytes, `max_length` the tokens a sequence can have here at most.
    """

    def __init__(self, needed: int, available: int, max_length: int, limit: str) -> None:
        self.needed = needed
        self.available = available
        self.max_length = max_length
        super().__init__(
            f"host memory for keys and values: {needed / 2**30:.3g} GiB needed, "
            f"{available / 2**30:.3g} GiB available by {limit}; "
            f"a sequence can have {max_length} tokens here"
        )


class OffloadTimeoutError(PortattnError, TimeoutError):
    """A step of cooperative decoding hangs; the message says which engine is waited for."""


class InterruptedStepError(PortattnError, RuntimeError):
    """The layers of an offloaded cache hold different lengths: a step was cut short."""


class ParallelError(PortattnError, RuntimeError):
    """A collective failed: which rank explains it; `cause` is what the library said."""

    def __init__(self, message: str, cause: str) -> None:
        self.cause = cause
        super().__init__(f"{message} ({cause.splitlines()[0] if cause else 'no cause told'})")
