"""Hardware profiles: the facts of a device and which kernel runs with what, as data."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from portattn.dispatch import profile_yaml, registry
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem, Operation
from portattn.dispatch.profile_yaml import Document
from portattn.errors import ProfileError

_Positive = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**40)]
Dtype = Literal["float64", "float32", "float16", "bfloat16", "float8", "int8"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Model):
    """min <= value <= max, either side open."""

    min: _Count | None = None
    max: _Count | None = None

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


_Size = _Count | Range


class Match(_Model):
    """Which devices a profile is for; what is left out matches everything."""

    type: Literal["cpu", "cuda", "npu", "xpu", "mps"] | None = None
    vendor: str | None = None
    family: str | list[str] | None = None
    name_contains: str | None = None
    memory_gib: Range | None = None

    def specificity(self, device: Device) -> int | None:
        """How many conditions the device meets, None when it fails one."""
        checks: list[bool] = []
        if self.type is not None:
            checks.append(device.type == self.type)
        if self.vendor is not None:
            checks.append(device.vendor == self.vendor)
        if self.family is not None:
            families = [self.family] if isinstance(self.family, str) else self.family
            checks.append(device.family in families)
        if self.name_contains is not None:
            checks.append(self.name_contains.lower() in device.name.lower())
        if self.memory_gib is not None:
            checks.append(self.memory_gib.holds(device.memory_bytes / 2**30))
        return len(checks) if all(checks) else None


class DeviceFacts(_Model):
    """What the data sheet or a measurement says; unknown facts are left out.

    The rates per core are for families of CPUs: the device's core count multiplies them.
    """

    memory_gib: _Positive | None = None
    bandwidth_gbs: _Positive | None = None
    shared_kib: _Positive | None = None
    cores: Annotated[int, Field(gt=0, le=2**20)] | None = None
    tflops: dict[Dtype, _Positive] = Field(default_factory=dict)
    tflops_per_core: dict[Dtype, _Positive] = Field(default_factory=dict)
    bandwidth_gbs_per_core: _Positive | None = None


class Links(_Model):
    """Bandwidth to the host and to a peer device, GB/s in one direction."""

    host_gbs: _Positive | None = None
    peer_gbs: _Positive | None = None


class When(_Model):
    """Conditions on a problem; all that are given must hold. gqa is query heads per kv head."""

    dtype: Dtype | None = None
    layout: Literal["dense", "varlen", "cache"] | None = None
    causal: bool | None = None
    window: bool | None = None
    head_dim: _Size | None = None
    head_dim_v: _Size | None = None
    batch: _Size | None = None
    seqlen_q: _Size | None = None
    seqlen_k: _Size | None = None
    gqa: _Size | None = None

    def holds(self, problem: AttentionProblem) -> bool:
        """Whether a problem meets every condition."""
        for name in self.model_fields_set:
            wanted = getattr(self, name)
            if wanted is None:
                continue
            value = _fact(problem, name)
            if isinstance(wanted, Range):
                if not wanted.holds(value):
                    return False
            elif value != wanted:
                return False
        return True


def _fact(problem: AttentionProblem, name: str) -> Any:
    if name == "dtype":
        return str(problem.dtype).removeprefix("torch.")
    if name == "window":
        return "window" in problem.features
    if name == "gqa":
        return problem.heads // problem.kv_heads
    return getattr(problem, name)


class Rule(_Model):
    """Kernel parameters, for the problems that meet `when`."""

    when: When | None = None
    use: dict[str, Annotated[int, Field(ge=0, le=2**20)]]


class Measurement(_Model):
    """A time taken on this device, in microseconds, for the problems that meet `when`."""

    backend: str
    operation: Operation
    when: When
    microseconds: _Positive
    versions: dict[str, str] = Field(default_factory=dict)


class HardwareProfile(_Model):
    """A profile as its file says it, checked."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
    match: Match
    device: DeviceFacts = DeviceFacts()
    links: Links = Links()
    preference: dict[Operation, Annotated[list[str], Field(min_length=1)]]
    kernels: dict[str, Annotated[list[Rule], Field(min_length=1)]] = Field(default_factory=dict)
    measured: list[Measurement] = Field(default_factory=list)

    @model_validator(mode="after")
    def _complete(self) -> HardwareProfile:
        missing = {"forward", "backward", "decode"} - set(self.preference)
        if missing:
            raise ValueError(f"preference lacks {', '.join(sorted(missing))}")
        return self

    def preference_for(self, operation: Operation) -> tuple[str, ...]:
        """Backend names in the order they are tried."""
        return tuple(self.preference[operation])


class _Overlay(_Model):
    """What a user's file may change of a shipped profile."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
    device: DeviceFacts | None = None
    links: Links | None = None
    preference: dict[Operation, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    kernels: dict[str, Annotated[list[Rule], Field(min_length=1)]] = Field(default_factory=dict)
    measured: list[Measurement] = Field(default_factory=list)


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
        raise ProfileError(name, f"is not a shipped profile; there are {', '.join(names())}")
    file = f"{name}.yaml"
    raw = resources.files("portattn.hwconfigs").joinpath(file).read_bytes()
    return _checked(profile_yaml.parse(raw, f"hwconfigs/{file}"), HardwareProfile)


def load_file(path: Path | str) -> HardwareProfile:
    """A whole profile from a file. Raises ProfileError with file, line, key and what is legal."""
    return _checked(profile_yaml.read(Path(path)), HardwareProfile)


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
def _for_device(device: Device, forced: str | None) -> HardwareProfile:
    profile = resolve(forced) if forced else closest(device)
    file = overlay_path(profile.name)
    return overlay(profile, file) if file.exists() else profile


def closest(device: Device) -> HardwareProfile:
    """The shipped profile that meets most conditions; generic-accelerator when none does."""
    found: list[tuple[int, HardwareProfile]] = []
    for name in names():
        profile = by_name(name)
        score = profile.match.specificity(device)
        if score is not None:
            found.append((score, profile))
    return max(found, key=lambda pair: pair[0])[1]


def overlay(profile: HardwareProfile, file: Path) -> HardwareProfile:
    """The profile with a user's changes: facts, links, preference, kernel rules, measurements.

    Raises ProfileError, with nothing applied, for a file that others can write or that asks for
    anything else.
    """
    _refuse_shared(file)
    document = profile_yaml.read(file)
    changes = _checked(document, _Overlay)
    if changes.name != profile.name:
        raise document.error(("name",), f"must be {profile.name}, found {changes.name}")
    merged: dict[str, Any] = {
        "preference": profile.preference | changes.preference,
        "kernels": profile.kernels | changes.kernels,
        "measured": [*changes.measured, *profile.measured],
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
            return RuleMatch(MappingProxyType(dict(candidate.use)), source)
    return RuleMatch(MappingProxyType({}), "the kernel's own defaults")


def measured_us(profile: HardwareProfile, backend: str, problem: AttentionProblem) -> float | None:
    """The measured time of a backend for this class of problems, None without one."""
    for record in profile.measured:
        if (record.backend, record.operation) == (backend, problem.operation):
            if record.when.holds(problem):
                return record.microseconds
    return None


def as_device(profile: HardwareProfile) -> Device:
    """The device a profile describes, for explaining hardware that isn't here."""
    match, facts = profile.match, profile.device
    family = match.family if isinstance(match.family, str) else (match.family or ["unknown"])[0]
    kind = match.type or "cuda"
    memory = int((facts.memory_gib or 0) * 2**30)
    return Device(
        kind, match.vendor or "generic", family, profile.name, 0, memory, facts.cores or 0
    )


def _refuse_shared(file: Path) -> None:
    """An overlay changes what runs: it must be the user's own."""
    if os.name != "posix":
        return
    status = file.stat()
    if status.st_uid not in (os.getuid(), 0):
        raise ProfileError(str(file), "belongs to another user, and is refused")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ProfileError(str(file), "can be written by others, and is refused: chmod go-w it")


def _checked(document: Document, model: type[Any]) -> Any:
    """Validate against the schema, then against what the registered backends declare."""
    if not isinstance(document.values, dict):
        raise document.error((), "must be a mapping of keys to values")
    try:
        checked = model.model_validate(document.values)
    except ValidationError as error:
        # A value that fits no member of a union fails once per member: the deepest one is nearest.
        first = max(error.errors(), key=lambda item: len(item["loc"]))
        place = tuple(part for part in first["loc"] if _is_key(part, document, first["loc"]))
        raise document.error(place, _explain(first, model)) from error
    _check_backends(checked, document)
    return checked


def _is_key(part: str | int, document: Document, loc: tuple[str | int, ...]) -> bool:
    """Pydantic adds the names of union members and '[key]' to a location; files don't have them."""
    return isinstance(part, int) or any(part in known for known in document.lines) or (
        part == loc[-1] and not re.match(r"(int|str|float|list|Range|constrained|\[key\])", part)
    )


def _explain(error: Any, model: type[Any]) -> str:
    if error["type"] == "extra_forbidden":
        known: Any = model
        for part in error["loc"][:-1]:
            known = _field_model(known, part)
        legal = ", ".join(f.alias or n for n, f in getattr(known, "model_fields", {}).items())
        return f"unknown key; legal keys are {legal}" if legal else "unknown key"
    if error["type"] == "missing":
        return "is missing"
    found = error.get("input")
    shown = repr(found) if len(repr(found)) < 80 else f"a {type(found).__name__}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, found {shown}"


def _field_model(model: Any, part: str | int) -> Any:
    """The model behind a field, through lists, dicts and optionals."""
    if isinstance(part, int) or model is None:
        return model
    fields = getattr(model, "model_fields", {})
    if part not in fields:
        return model
    pending = [fields[part].annotation]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        pending.extend(getattr(kind, "__args__", ()))
    return None


def _check_backends(profile: HardwareProfile | _Overlay, document: Document) -> None:
    known = registry.names()
    legal = f"must be one of {', '.join(known)}"
    for operation, backends in profile.preference.items():
        for index, name in enumerate(backends):
            if name not in known:
                raise document.error(("preference", operation, index), f"{legal}, found {name}")
    for index, record in enumerate(profile.measured):
        if record.backend not in known:
            raise document.error(("measured", index, "backend"), f"{legal}, found {record.backend}")
    for kernel, rules in profile.kernels.items():
        _check_rules(kernel, rules, document)


def _check_rules(kernel: str, rules: list[Rule], document: Document) -> None:
    backend, _, operation = kernel.partition(".")
    if backend not in registry.names():
        legal = ", ".join(registry.names())
        raise document.error(("kernels", kernel), f"must begin with a backend: {legal}")
    parameters = registry.load(backend).capability.kernels
    if operation not in parameters:
        legal = ", ".join(f"{backend}.{name}" for name in parameters) or "none to tune"
        raise document.error(("kernels", kernel), f"is not a kernel; {backend} has {legal}")
    for index, candidate in enumerate(rules):
        place = ("kernels", kernel, index)
        if candidate.when is None and index < len(rules) - 1:
            raise document.error(place, "only the last rule may lack `when`")
        if candidate.when is not None and index == len(rules) - 1:
            raise document.error(place, "the last rule must have no `when`")
        for name, value in candidate.use.items():
            legal_values = parameters[operation].get(name)
            if legal_values is None:
                legal = ", ".join(parameters[operation])
                raise document.error((*place, "use", name), f"unknown parameter; legal are {legal}")
            if value not in legal_values:
                legal = ", ".join(map(str, legal_values))
                raise document.error((*place, "use", name), f"must be one of {legal}, found {value}")
