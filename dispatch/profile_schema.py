"""What a profile's file may say: the schema of hardware profiles and of users' overlays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from portattn.dispatch.device import Device
from portattn.dispatch.problem import OPERATIONS, AttentionProblem, Operation

_Positive = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**40)]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Sizes = Mapping[str, Annotated[int, Field(ge=0, le=2**20)]]
Dtype = Literal["float64", "float32", "float16", "bfloat16", "float8", "int8"]


def _known_version(version: int) -> int:
    if version != 1:
        raise ValueError(f"must be 1, found {version}")
    return version


# Not Literal[1], which true and 1.0 equal.
_Version = Annotated[int, AfterValidator(_known_version)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Model):
    """min <= value <= max, either side open."""

    min: _Count | None = None
    max: _Count | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Range:
        if self.min is None and self.max is None:
            raise ValueError("needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


def _kind_of_size(value: Any) -> str:
    return "range" if isinstance(value, (dict, Range)) else "count"


# Told apart by kind, so that an error speaks of the kind that was written.
_Size = Annotated[
    Annotated[_Count, Tag("count")] | Annotated[Range, Tag("range")],
    Discriminator(_kind_of_size),
]


class Match(_Model):
    """Which devices a profile is for; what is left out matches everything."""

    type: Literal["cpu", "cuda", "npu", "xpu", "mps"] | None = None
    vendor: _Text | None = None
    # Lax: YAML's lists become tuples, which nobody can change.
    family: _Text | Annotated[tuple[_Text, ...], Field(strict=False, min_length=1)] | None = None
    name_contains: _Text | None = None
    memory_gib: Range | None = None

    def specificity(self, device: Device) -> int | None:
        """How many conditions the device meets, None when it fails one."""
        checks: list[bool] = []
        if self.type is not None:
            checks.append(device.type == self.type)
        if self.vendor is not None:
            checks.append(device.vendor == self.vendor)
        if self.family is not None:
            families = (self.family,) if isinstance(self.family, str) else self.family
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
    tflops: Mapping[Dtype, _Positive] = Field(default_factory=dict)
    tflops_per_core: Mapping[Dtype, _Positive] = Field(default_factory=dict)
    bandwidth_gbs_per_core: _Positive | None = None
    source: _Text | None = None  # where measured rates were measured, and with what


class Links(_Model):
    """Bandwidth to the host, to a peer device and to other nodes, GB/s in one direction.

    `network_gbs` is a device's share of its node's network, in nodes of `node_devices` devices.
    """

    host_gbs: _Positive | None = None
    peer_gbs: _Positive | None = None
    network_gbs: _Positive | None = None
    node_devices: Annotated[int, Field(gt=0, le=2**10)] | None = None
    source: _Text | None = None


class When(_Model):
    """Conditions on a problem; all that are given must hold. gqa is query heads per kv head,
    page_size 0 without pages, and more_keys that seqlen_k is beyond seqlen_q.
    """

    # Lax: YAML's lists become tuples, which nobody can change.
    dtype: Dtype | Annotated[tuple[Dtype, ...], Field(strict=False, min_length=1)] | None = None
    layout: Literal["dense", "varlen", "cache"] | None = None
    causal: bool | None = None
    window: bool | None = None
    more_keys: bool | None = None
    head_dim: _Size | None = None
    head_dim_v: _Size | None = None
    batch: _Size | None = None
    heads: _Size | None = None
    seqlen_q: _Size | None = None
    seqlen_k: _Size | None = None
    gqa: _Size | None = None
    page_size: _Size | None = None

    def holds(self, problem: AttentionProblem) -> bool:
        """Whether a problem meets every condition."""
        for name in self.model_fields_set:
            wanted = getattr(self, name)
            if wanted is None:
                continue
            value = fact(problem, name)
            if isinstance(wanted, Range):
                met = wanted.holds(value)
            else:
                met = value in wanted if isinstance(wanted, tuple) else value == wanted
            if not met:
                return False
        return True


def fact(problem: AttentionProblem, name: str) -> Any:
    """A problem's value for one of When's conditions."""
    if name == "dtype":
        return str(problem.dtype).removeprefix("torch.")
    if name == "window":
        return "window" in problem.features
    if name == "more_keys":
        return problem.seqlen_k > problem.seqlen_q
    if name == "gqa":
        return problem.heads // problem.kv_heads
    return getattr(problem, name)


class Rule(_Model):
    """Kernel parameters, for the problems that meet `when`.

    `basis` says how they were found: "tuned" by measuring on such a device, or "derived" from its
    limits or from a kindred class of problems.
    """

    when: When | None = None
    use: _Sizes
    basis: Literal["tuned", "derived"] | None = None


class BlockRule(_Model):
    """How the rows of a product that devices add up are cut into blocks, in their order.

    `rows` is the range of row counts that the rule is for, `pieces` the blocks' proportions.
    "owner": a span for each rank, which adds up the ranks' parts of it; its pieces are the blocks.
    "all_reduce": every block is reduced by the group's library while the next is computed.
    """

    rows: Range | None = None
    pieces: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1e3)], ...],
        Field(strict=False, min_length=1, max_length=64),
    ]
    reduction: Literal["owner", "all_reduce"] = "owner"


class Measurement(_Model):
    """A time taken on this device, in microseconds, for the problems that meet `when`.

    `config` is the configuration it was taken with, `versions` what it was taken on, `at` the very
    problem: others of the class take another time, but rank the backends alike.
    """

    backend: str
    operation: Operation
    when: When
    microseconds: _Positive
    config: _Sizes = Field(default_factory=dict)
    versions: Mapping[str, str] = Field(default_factory=dict)
    at: _Text | None = None


_Preference = Mapping[
    Operation, Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=64)]
]


def _complete(preference: _Preference) -> _Preference:
    missing = [operation for operation in OPERATIONS if operation not in preference]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    return preference


_Kernels = Mapping[str, Annotated[tuple[Rule, ...], Field(strict=False, min_length=1)]]
_Measured = Annotated[tuple[Measurement, ...], Field(strict=False)]


class HardwareProfile(_Model):
    """A profile as its file says it, checked."""

    schema_version: _Version = Field(alias="schema")
    name: _Name
    match: Match
    device: DeviceFacts = DeviceFacts()
    links: Links = Links()
    preference: Annotated[_Preference, AfterValidator(_complete)]
    kernels: _Kernels = Field(default_factory=dict)
    blocks: Annotated[tuple[BlockRule, ...], Field(strict=False)] = ()
    measured: _Measured = ()

    def preference_for(self, operation: Operation) -> tuple[str, ...]:
        """Backend names in the order they are tried."""
        return self.preference[operation]


class Overlay(_Model):
    """What a user's file may change of a profile; the rest stays as it is."""

    schema_version: _Version = Field(alias="schema")
    name: _Name
    device: DeviceFacts | None = None
    links: Links | None = None
    preference: _Preference = Field(default_factory=dict)
    kernels: _Kernels = Field(default_factory=dict)
    measured: _Measured = ()
