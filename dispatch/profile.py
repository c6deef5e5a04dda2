"""Hardware profiles: which one a device has, and what it says about a problem."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import platformdirs

from portattn.dispatch import profile_yaml
from portattn.dispatch.device import Device, isa_up_to
from portattn.dispatch.problem import AttentionProblem
from portattn.dispatch.profile_check import checked
from portattn.dispatch.profile_schema import DeviceFacts, HardwareProfile, Overlay
from portattn.errors import ProfileError

__all__ = [
    "HardwareProfile",
    "RuleMatch",
    "as_device",
    "by_name",
    "closest",
    "for_device",
    "forget",
    "load_file",
    "measured_us",
    "names",
    "overlay",
    "overlay_path",
    "path",
    "resolve",
    "rule",
]


@dataclass(frozen=True)
class RuleMatch:
    """The configuration of a kernel and where it comes from."""

    config: Mapping[str, int]
    source: str


@cache
def names() -> tuple[str, ...]:
    """Names of the shipped profiles."""
    files = resources.files("portattn.hwconfigs").iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


@cache
def by_name(name: str) -> HardwareProfile:
    """A shipped profile. Raises ProfileError for a name that isn't one."""
    if name not in names():
        raise ProfileError(repr(name), f"is not a shipped profile; there are {', '.join(names())}")
    file = f"{name}.yaml"
    raw = resources.files("portattn.hwconfigs").joinpath(file).read_bytes()
    return checked(profile_yaml.parse(raw, f"hwconfigs/{file}"), HardwareProfile)


def load_file(path: Path | str) -> HardwareProfile:
    """A whole profile from a file. Raises ProfileError with file, line, key and what is legal."""
    return checked(profile_yaml.read(Path(path)), HardwareProfile)


def resolve(name_or_path: str) -> HardwareProfile:
    """A shipped profile by name, or a file by a path that ends in .yaml."""
    if name_or_path.endswith((".yaml", ".yml")):
        return load_file(name_or_path)
    return by_name(name_or_path)


def path(name: str) -> Path:
    """Where a shipped profile's file is. Raises ProfileError for a name that isn't one."""
    by_name(name)
    return Path(str(resources.files("portattn.hwconfigs").joinpath(f"{name}.yaml")))


def overlay_path(name: str) -> Path:
    """Where a user's overlay of a profile is looked for."""
    return Path(platformdirs.user_config_dir("portattn")) / "profiles" / f"{name}.yaml"


def for_device(device: Device) -> HardwareProfile:
    """The profile that runs a device: PORTATTN_PROFILE, else the closest shipped one, overlaid."""
    return _for_device(device, os.environ.get("PORTATTN_PROFILE") or None)


@lru_cache(maxsize=64)
def _for_device(device: Device, chosen: str | None) -> HardwareProfile:
    profile = resolve(chosen) if chosen else closest(device)
    file = overlay_path(profile.name)
    return overlay(profile, file) if os.path.lexists(file) else profile


def forget() -> None:
    """Read the environment's profile and the user's overlays anew at the next call."""
    _for_device.cache_clear()


def closest(device: Device) -> HardwareProfile:
    """The shipped profile with the most conditions that the device meets.

    generic-accelerator, which has none, when no other fits. A device with another number of cores
    than the profile's is another product of its family: the rates are left out.
    """
    fitting = [(by_name(name).match.specificity(device), name) for name in names()]
    _, name = max((score, name) for score, name in fitting if score is not None)
    profile = by_name(name)
    facts = profile.device
    if facts.cores and device.cores and facts.cores != device.cores:
        same_family = DeviceFacts(shared_kib=facts.shared_kib)
        profile = profile.model_copy(update={"device": same_family})
    return profile


def overlay(profile: HardwareProfile, file: Path) -> HardwareProfile:
    """The profile with a user's changes: facts, links, preference, kernel rules, measurements.

    Raises ProfileError, with nothing applied, for a file that others can write or that asks for
    anything else.
    """
    document = profile_yaml.read(file, private=True)
    changes = checked(document, Overlay)
    if changes.name != profile.name:
        raise document.error(("name",), f"must be {profile.name}, found {changes.name}")
    merged: dict[str, Any] = {
        "preference": {**profile.preference, **changes.preference},
        "kernels": {**profile.kernels, **changes.kernels},
        "measured": changes.measured + profile.measured,
    }
    for part, old in (("device", profile.device), ("links", profile.links)):
        new = getattr(changes, part)
        if new is not None:
            merged[part] = old.model_copy(update=new.model_dump(exclude_unset=True))
    return profile.model_copy(update=merged)


def rule(profile: HardwareProfile, kernel: str, problem: AttentionProblem) -> RuleMatch:
    """The first rule of a kernel whose conditions the problem meets."""
    for number, candidate in enumerate(profile.kernels.get(kernel, ()), 1):
        if candidate.when is None or candidate.when.holds(problem):
            source = f"profile {profile.name}: {kernel} rule {number}"
            if candidate.basis is not None:
                source += f", {candidate.basis}"
            return RuleMatch(MappingProxyType(dict(candidate.use)), source)
    return RuleMatch(MappingProxyType({}), "the kernel's own defaults")


def measured_us(profile: HardwareProfile, backend: str, problem: AttentionProblem) -> float | None:
    """The measured time of a backend for this class of problems, None without one."""
    for record in profile.measured:
        same = (record.backend, record.operation) == (backend, problem.operation)
        if same and record.when.holds(problem):
            return record.microseconds
    return None


def as_device(profile: HardwareProfile) -> Device:
    """The device a profile describes, for explaining hardware that isn't here."""
    match, facts = profile.match, profile.device
    family = match.family or "unknown"
    if not isinstance(family, str):
        family = family[0]
    return Device(
        type=match.type or "cuda",
        vendor=match.vendor or "generic",
        family=family,
        name=profile.name,
        memory_bytes=int((facts.memory_gib or 0) * 2**30),
        cores=facts.cores or 0,
        isa=isa_up_to(family),
    )
