"""`portattn info`: the devices here, the backends and why one can't be used, the profiles."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from portattn.cli.environment import versions
from portattn.cli.output import JsonFlag, print_json, print_table
from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.dispatch import registry, select
from portattn.dispatch.device import Device
from portattn.errors import BackendUnavailableError


@dataclass(frozen=True)
class BackendState:
    """A backend on one device; `reason` says why it can't be used there, None when it can."""

    backend: str
    device: str
    reason: str | None
    summary: str


def info(json: JsonFlag = False) -> None:
    """Show devices, backends (or why not), profiles and versions."""
    found = devices.available()
    states = [state(name, device) for device in found for name in registry.names()]
    if json:
        print_json(
            {
                "devices": [
                    {**asdict(device), "profile": profiles.for_device(device).name}
                    for device in found
                ],
                "backends": [asdict(item) for item in states],
                "versions": versions(),
            }
        )
        return
    print_table("devices", ("device", "memory", "cores", "profile"), map(_device_row, found))
    print_table("backends", ("backend", "device", "state", "what it is"), map(_row, states))
    print_table("versions", ("library", "version"), list(versions().items()))


def state(name: str, device: Device) -> BackendState:
    """Whether a backend can be used on a device: imported, meant for it, and its probe passed."""
    entry = next(entry for entry in registry.ENTRIES if entry.name == name)
    return BackendState(name, str(device), _reason(name, device), entry.summary)


def _reason(name: str, device: Device) -> str | None:
    try:
        capability = registry.load(name).capability
    except BackendUnavailableError as error:
        return error.cause
    if device.type not in capability.devices:
        return f"runs on {', '.join(sorted(capability.devices))}"
    if capability.families is not None and device.family not in capability.families:
        return f"is written for {', '.join(sorted(capability.families))}"
    return select.probe_failure(name, device)


def _device_row(device: Device) -> tuple[str, ...]:
    memory = f"{device.memory_bytes / 2**30:.1f} GiB" if device.memory_bytes else "unknown"
    cores = str(device.cores) if device.cores else "unknown"
    return str(device), memory, cores, profiles.for_device(device).name


def _row(item: BackendState) -> tuple[str, ...]:
    return item.backend, item.device, item.reason or "available", item.summary
