"""The planner's Machine from profiles: this machine's, or those that ship."""

from __future__ import annotations

import logging

import torch

from portattn import tuning
from portattn.dispatch import cost
from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.dispatch.device import Device
from portattn.dispatch.profile import HardwareProfile
from portattn.errors import ArgumentError
from portattn.offload import memory
from portattn.offload.engine import Share
from portattn.offload.planner import KERNEL_OF_READ, Machine, balanced

log = logging.getLogger("portattn")

# What a planner's policy can say of host memory's part alone.
HOST_POLICIES = ("auto", "split", "three-way", "stream")


def here(device: torch.device, *, host_gbs: float | None = None) -> Machine:
    """This machine, its rates from the profiles of `device` and of the CPU.

    Where an accelerator's link or its host's memory was never measured, that is done now, in a
    second each, and kept in the user's overlays. Raises ArgumentError when a CPU alone has a
    profile without a rate: `portattn tune` measures it.
    """
    found = devices.of(device)
    if device.type != "cpu":
        _measure(found)
    room, _ = memory.available_bytes()
    held = room if device.type == "cpu" else found.memory_bytes
    return of_profile(
        profiles.for_device(found), host_gbs=host_gbs, device_bytes=held, host_bytes=room
    )


def _measure(device: Device) -> None:
    cpu = devices.of(torch.device("cpu"))
    link = cost.rates(profiles.for_device(device), cpu.cores).link_measured_on
    reads = cost.rates(profiles.for_device(cpu), cpu.cores).measured_on
    for one, known in ((device, link), (cpu, reads)):
        if known is None:
            log.info("measuring the rates of %s, once", one)
            try:
                tuning.calibrate(one).save()
            except OSError as error:  # what the profile says has to do
                log.warning("the rates of %s can't be kept: %s", one, error)


def shares_of_host(device: torch.device, policy: str) -> Share:
    """How the keys in host memory divide between the CPU and the link, by a planner's policy.

    Where the CPU is the device there is no link, and "auto" has the CPU attend to all.
    """
    if policy == "stream":
        return Share(0.0, 0.0, 1.0)
    if policy == "split" or (policy == "auto" and device.type == "cpu"):
        return Share(0.0, 1.0, 0.0)
    if policy not in HOST_POLICIES:
        raise ArgumentError("policy", f"must be one of {', '.join(HOST_POLICIES)}", repr(policy))
    return balanced(here(device), 0.0, streams=True)


def of_profile(
    profile: HardwareProfile,
    *,
    host_gbs: float | None = None,
    link_gbs: float | None = None,
    device_bytes: int | None = None,
    host_bytes: int | None = None,
) -> Machine:
    """A machine with the device of a profile; the host's rate and memory are this one's unless
    given."""
    cpu = devices.of(torch.device("cpu"))
    known, local = cost.rates(profile, cpu.cores), cost.rates(profiles.for_device(cpu), cpu.cores)
    reads = host_gbs or local.bandwidth_gbs
    link = link_gbs or known.host_gbs or (reads if profile.match.type == "cpu" else None)
    size = device_bytes or int((profile.device.memory_gib or 0) * 2**30)
    for name, value in (
        ("host_gbs", reads),
        ("link_gbs", link),
        ("device_gbs", known.bandwidth_gbs),
        ("device_bytes", size),
    ):
        if not value:
            raise ArgumentError(name, f"isn't in profile {profile.name!r}: give it, or run tune")
    assert reads and link and known.bandwidth_gbs
    given = "given" if host_gbs else local.measured_on or "data sheet"
    link_from = "given" if link_gbs else known.link_measured_on or "data sheet"
    return Machine(
        name=profile.name,
        device_gbs=known.bandwidth_gbs,
        compute_gbs=KERNEL_OF_READ * reads,
        link_gbs=link,
        host_gbs=reads,
        device_bytes=size,
        host_bytes=memory.available_bytes()[0] if host_bytes is None else host_bytes,
        alone=profile.match.type == "cpu",
        source=f"device: {known.measured_on or 'data sheet'}; link: {link_from}; host: {given}",
    )
