"""The kernels that can be tuned on a device, and the configurations that are worth a try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from portattn.dispatch import registry, select
from portattn.dispatch.backend import Backend, Config, HasTuningReasons, HasTuningSpace
from portattn.dispatch.device import Device
from portattn.dispatch.problem import OPERATIONS, AttentionProblem, Operation
from portattn.errors import ArgumentError, BackendUnavailableError


@dataclass(frozen=True)
class Kernel:
    """A kernel with its parameters' legal values; `name` is "backend.operation", as in profiles."""

    backend: str
    operation: Operation
    parameters: Mapping[str, tuple[int, ...]]
    runner: Backend = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """As profiles call it."""
        return f"{self.backend}.{self.operation}"


def kernels(device: Device, wanted: Sequence[str] = ()) -> tuple[Kernel, ...]:
    """The kernels that can be tuned on a device; of those, the wanted ones.

    Raises ArgumentError, with every reason, for a wanted kernel that isn't among them.
    """
    found: dict[str, Kernel] = {}
    reasons: dict[str, str] = {}
    for backend in registry.names():
        reason = _reason_against(backend, device)
        if reason is not None:
            reasons[backend] = reason
            continue
        runner = registry.load(backend)
        legal = runner.capability.kernels
        for operation in OPERATIONS:
            if operation in legal:
                kernel = Kernel(backend, operation, legal[operation], runner)
                found[kernel.name] = kernel
    for name in wanted:
        if name not in found:
            why = reasons.get(name.partition(".")[0])
            rule = f"must be one of {', '.join(found) or 'none'} on {device}"
            raise ArgumentError("kernel", rule, f"{name!r}" + (f" ({why})" if why else ""))
    return tuple(kernel for name, kernel in found.items() if not wanted or name in wanted)


def _reason_against(backend: str, device: Device) -> str | None:
    try:
        capability = registry.load(backend).capability
    except BackendUnavailableError as error:
        return error.cause
    if device.type not in capability.devices:
        return f"runs on {', '.join(sorted(capability.devices))}"
    if capability.families is not None and device.family not in capability.families:
        return f"is written for {', '.join(sorted(capability.families))}"
    return select.probe_failure(backend, device) if capability.kernels else None


def configurations(
    kernel: Kernel, problem: AttentionProblem, device: Device
) -> list[dict[str, int]]:
    """What the backend offers, else every combination of legal values."""
    if not isinstance(kernel.runner, HasTuningSpace):
        names, values = kernel.parameters.keys(), kernel.parameters.values()
        return [dict(zip(names, chosen, strict=True)) for chosen in product(*values)]
    offered = [dict(c) for c in kernel.runner.tuning_space(kernel.name, problem, device)]
    for config in offered:
        for name, value in config.items():
            if value not in kernel.parameters.get(name, ()):
                raise ValueError(f"{kernel.name} offers {name}={value}, which it doesn't declare")
    return offered


def reasons_against(
    kernel: Kernel, config: Config, problem: AttentionProblem, device: Device
) -> list[str]:
    """What the backend knows against a configuration before it is tried."""
    if not isinstance(kernel.runner, HasTuningReasons):
        return []
    return kernel.runner.tuning_reasons_against(kernel.name, config, problem, device)


def nearest(
    left: Sequence[dict[str, int]], centre: Config, parameters: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """The configuration fewest steps along the legal values away; a parameter that the centre
    doesn't name counts as in the middle."""

    places = {
        name: {value: index for index, value in enumerate(values)}
        for name, values in parameters.items()
    }
    middle = {name: len(values) // 2 for name, values in parameters.items()}

    def place(config: Config, name: str) -> int:
        return places[name].get(config.get(name, -1), middle[name])

    origin = {name: place(centre, name) for name in parameters}

    def steps(config: Config) -> int:
        return sum(abs(place(config, name) - origin[name]) for name in parameters)

    return min(left, key=steps)


def written(config: Config) -> str:
    """A configuration in a few words."""
    return ", ".join(f"{name}={value}" for name, value in config.items()) or "its own defaults"
