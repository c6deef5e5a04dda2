"""How to divide a layer's keys between device, CPU and link, and how long a step then takes.

With W bytes of keys and values in a layer, of which fractions g stay on the device, c are attended
to by the CPU and p are streamed, all at once, a layer takes

    T = max((g + p) W / B_g,   c W / B_c,   p W / B_p,   (c + p) W / B_d)  +  t_sync

B_g: the device's memory; B_c: the CPU's kernel; B_p: the link; B_d: host memory, which the CPU and
the link share. In a time T the CPU does c = T B_c / W, the link p = T min(B_p, B_d - B_c) / W, and
the device holds g up to its room: the least T at which they add up to 1 has a closed form.
All times are modelled; that the rates were measured, or on what, `Machine.source` says.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from portattn.errors import ArgumentError
from portattn.offload.engine import Share
from portattn.offload.scaled import host_dtype

Policy = Literal["auto", "gpu", "three-way", "split", "stream", "layers"]
POLICIES: tuple[str, ...] = get_args(Policy)
# Of a plain read; the CPU's decode kernel was measured at 0.75 to 0.93 of one.
KERNEL_OF_READ = 0.8
# Of the device's memory: what allocators and libraries keep, and a prefill chunk's activations.
_USABLE = 0.92
_WORKSPACE_BYTES = 2 * 2**30
# Starting the CPU, waiting for it and merging, per layer.
_SYNC_SECONDS = 1e-4


@dataclass(frozen=True)
class Machine:
    """Rates in 1e9 bytes/s and memory in bytes, for one device and its part of the host."""

    name: str
    device_gbs: float
    compute_gbs: float
    link_gbs: float
    host_gbs: float
    device_bytes: int
    host_bytes: int
    alone: bool = False  # the CPU is the device
    sync_seconds: float = _SYNC_SECONDS
    source: str = "given"

    def shared_by(self, devices: int) -> Machine:
        """One of `devices` equal devices: host memory and its rates are shared, links are not."""
        return replace(
            self,
            compute_gbs=self.compute_gbs / devices,
            host_gbs=self.host_gbs / devices,
            host_bytes=self.host_bytes // devices,
        )

    def keeping(self, ratio: float) -> Machine:
        """With host memory's part in `ratio` times the bytes: rates and room in terms of the
        model's dtype grow by as much. That the CPU's kernel reads as fast is an assumption."""
        return replace(
            self,
            compute_gbs=self.compute_gbs / ratio,
            link_gbs=self.link_gbs / ratio,
            host_gbs=self.host_gbs / ratio,
            host_bytes=int(self.host_bytes / ratio),
        )

    def room(self, shape: ModelShape) -> int:
        """The device's bytes for keys and values beside the weights; negative: those don't fit."""
        if self.alone:
            return self.host_bytes - shape.weight_bytes
        return int(self.device_bytes * _USABLE) - _WORKSPACE_BYTES - shape.weight_bytes

    @property
    def beside_gbs(self) -> float:
        """What the link gets from host memory while the CPU's kernel runs."""
        return min(self.link_gbs, max(self.host_gbs - self.compute_gbs, 0.0))


@dataclass(frozen=True)
class ModelShape:
    """What the plan needs to know of a model; `layers` are those with full attention.

    `width` is that of its residual stream, 0 for heads x head_dim, and `vocabulary_bytes` the part
    of its weights that no layer multiplies by.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    element_bytes: int
    weight_bytes: int
    width: int = 0
    vocabulary_bytes: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        return self.kv_heads * (self.head_dim + self.head_dim_v) * self.element_bytes

    def on(self, devices: int) -> ModelShape:
        """One device's part under tensor parallelism."""
        if self.kv_heads % devices:
            raise ArgumentError("tp", f"must divide the {self.kv_heads} kv heads", devices)
        return replace(
            self,
            heads=self.heads // devices,
            kv_heads=self.kv_heads // devices,
            weight_bytes=self.weight_bytes // devices,
        )


# Shapes from the models' published configurations; weights in 16 bits.
SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape(
            "llama-3-8b", 32, 32, 8, 128, 128, 2, 16_060_522_496, 4096, 2 * 128_256 * 4096 * 2
        ),
        ModelShape(
            "llama-3-70b", 80, 64, 8, 128, 128, 2, 141_107_412_992, 8192, 2 * 128_256 * 8192 * 2
        ),
    )
}


@dataclass(frozen=True)
class Plan:
    """Shares of every layer and what they are predicted to take; None seconds: it doesn't fit.

    `engines` are the seconds per step of device, cpu, link and host memory, over all layers.
    """

    shape: ModelShape
    machine: Machine
    context: int
    batch: int
    policy: str
    shares: tuple[Share, ...]
    seconds: float | None
    engines: dict[str, float] = field(default_factory=dict)
    max_length: int = 0
    device_tokens: int = 0
    reason: str = ""

    @property
    def share(self) -> Share:
        """The mean over the layers."""
        count = len(self.shares) or 1
        sums = [sum(share[i] for share in self.shares) / count for i in range(3)]
        return Share(sums[0], sums[1], sums[2])

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.shape.name,
            "machine": self.machine.name,
            "rates": self.machine.source,
            "context": self.context,
            "batch": self.batch,
            "policy": self.policy,
            "shares": self.share._asdict(),
            "modelled_ms_per_step": None if self.seconds is None else self.seconds * 1e3,
            "engines_ms": {name: seconds * 1e3 for name, seconds in self.engines.items()},
            "kv_gb": kv_bytes(self.shape, self.context, self.batch) / 1e9,
            "max_length": self.max_length,
            "reason": self.reason,
        }

    def explain(self) -> str:
        """The plan in words: shares, each engine's time, and what fits at most."""
        held = kv_bytes(self.shape, self.context, self.batch) / 1e9
        head = (
            f"{self.shape.name}, batch {self.batch}, {self.context} tokens, {held:.1f} GB of keys "
            f"and values, on {self.machine.name}"
        )
        longest = f"longest sequence here: {self.max_length} tokens"
        if self.seconds is None:
            return f"{head}\ndoesn't fit: {self.reason}\n{longest}"
        share = self.share
        times = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in self.engines.items())
        return "\n".join(
            (
                head,
                f"policy {self.policy}: {share.resident:.1%} on the device, "
                f"{share.computed:.1%} by the CPU, {share.streamed:.1%} streamed",
                f"attention per step: {self.seconds * 1e3:.1f} ms (modelled: {times})",
                f"rates: {self.machine.source}",
                longest,
            )
        )


def kv_bytes(shape: ModelShape, context: int, batch: int) -> int:
    """Bytes of all keys and values."""
    return shape.layers * shape.token_bytes * context * batch


def plan(
    shape: ModelShape,
    machine: Machine,
    context: int,
    *,
    batch: int = 1,
    policy: Policy = "auto",
    tp: int = 1,
    kv_dtype: str | None = None,
) -> Plan:
    """Divide `context` tokens of `batch` sequences; with `tp` devices, each takes a part of heads.

    policy: "layers" places whole layers, "split" divides each between device and CPU, "three-way"
    streams as well, "stream" has the CPU attend to nothing, "gpu" uses no host memory; "auto" is
    the one predicted fastest. kv_dtype: "int8" or "float8_e4m3fn" for host memory's part.
    """
    for name, value in (("context", context), ("batch", batch), ("tp", tp)):
        if value < 1:
            raise ArgumentError(name, "must be at least 1", value)
    if policy not in POLICIES:
        raise ArgumentError("policy", f"must be one of {', '.join(POLICIES)}", repr(policy))
    shape, machine = shape.on(tp), machine.shared_by(tp)
    rounded = host_dtype(kv_dtype)
    if rounded is not None and not machine.alone:
        machine = machine.keeping(rounded.itemsize / shape.element_bytes)
        machine = replace(machine, source=f"{machine.source}; {kv_dtype} on the host")
    names = [name for name in POLICIES if name != "auto"] if policy == "auto" else [policy]
    if machine.alone:
        names = ["auto"]
    made = [_planned(shape, machine, context, batch, name) for name in names]
    best = min(made, key=lambda one: float("inf") if one.seconds is None else one.seconds)
    if best.seconds is None:
        best = max(made, key=lambda one: one.max_length)
    return replace(best, max_length=max(one.max_length for one in made))


def _planned(shape: ModelShape, machine: Machine, context: int, batch: int, policy: str) -> Plan:
    room = machine.room(shape)
    per_token = shape.layers * shape.token_bytes * batch
    device_tokens = max(0, room) // per_token
    host = 0 if policy == "gpu" or machine.alone else machine.host_bytes
    longest = (max(0, room) + host) // per_token if room >= 0 else 0
    empty = Plan(shape, machine, context, batch, policy, (), None, {}, longest, device_tokens)
    if room < 0:
        need = shape.weight_bytes / 1e9
        return replace(empty, reason=f"the weights alone, {need:.1f} GB, leave no room")
    if context > longest:
        return replace(empty, reason=f"more than {longest} tokens have no room")
    fits = min(1.0, device_tokens / context)
    shares = _shares(shape.layers, machine, fits, policy)
    size = shape.token_bytes * context * batch / 1e9
    engines = dict.fromkeys(("device", "cpu", "link", "host memory"), 0.0)
    seconds = 0.0
    for share in shares:
        times = _times(share, size, machine)
        for name, value in zip(engines, times, strict=True):
            engines[name] += value
        seconds += max(times) + (
            machine.sync_seconds if share.computed and not machine.alone else 0
        )
    return replace(empty, shares=shares, seconds=seconds, engines=engines)


def _times(share: Share, size: float, machine: Machine) -> tuple[float, float, float, float]:
    """Seconds of device, CPU, link and host memory for a layer of `size` GB."""
    resident, computed, streamed = share
    return (
        (resident + streamed) * size / machine.device_gbs,
        computed * size / machine.compute_gbs,
        streamed * size / machine.link_gbs,
        (computed + streamed) * size / machine.host_gbs,
    )


def _shares(layers: int, machine: Machine, fits: float, policy: str) -> tuple[Share, ...]:
    if machine.alone:
        return (Share(0.0, 1.0, 0.0),) * layers
    if policy == "layers":
        on_device = int(layers * fits)
        return (Share(0.0, 1.0, 0.0),) * (layers - on_device) + (Share(1.0, 0.0, 0.0),) * on_device
    if policy == "gpu":
        return (Share(1.0, 0.0, 0.0),) * layers
    if policy == "stream":
        return (Share(fits, 0.0, 1.0 - fits),) * layers
    streams = policy == "three-way"
    return (balanced(machine, fits, streams=streams),) * layers


def balanced(machine: Machine, fits: float, *, streams: bool) -> Share:
    """The shares of least time where at most the fraction `fits` can stay on the device."""
    cpu = min(machine.compute_gbs, machine.host_gbs)
    link = machine.beside_gbs if streams else 0.0
    # T / W at which all engines finish together, with the device's rate or its room the limit.
    unit = max(1.0 / (cpu + machine.device_gbs), (1.0 - fits) / (cpu + link))
    computed = min(1.0, unit * cpu)
    resident = min(fits, 1.0 - computed)
    return Share(resident, computed, max(0.0, 1.0 - computed - resident))
