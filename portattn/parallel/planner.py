"""Memory and time per device of a model spread over tp x cp devices, from profiles alone.

Heads and weights are divided over tp devices, tokens over cp rings' ranks. With S tokens a
sequence, n = S / cp of them on a device, and per device the rates F (compute), B (memory) and, with
a start of t per transfer, L (link), the prefill of a layer takes

    products    P = 2 n W / (tp F)            W: parameters of a layer
    ring        a + (cp - 1) max(a, x)        a: attention of one step, x = t + K / L for K bytes
    sums        2 exposed AllReduces of n rows, each cut in b blocks behind the product before it:
                with p that product, r = AllReduce of all rows, and r_b of a block,
                p / b + (b - 1) max(p / b, r_b) + r_b - p

since a causal zigzag gives every step of every rank the same work. An AllReduce of R bytes over tp
devices takes 2 (tp - 1) (t + R / (tp L)). A decode step reads weights and keys once; its transfers
are hidden behind nothing, and the gather of partial results is taken as a ring's, cp - 1 hops, the
most it may be. L and t are those of the slowest hop: ranks are placed tp first, so that
tp stays within a node where it fits, and only a ring's hops leave it.

All times are modelled: rates are the profile's, times the stated shares of them that are reached.
`simulate` plays the same schedule event by event, every hop with its own rate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from math import ceil
from typing import NamedTuple

import torch

from portattn.dispatch import cost
from portattn.dispatch import profile as profiles
from portattn.dispatch.profile import HardwareProfile
from portattn.errors import ArgumentError
from portattn.offload.planner import ModelShape

# Of a device's memory: what allocators and libraries leave, and what a layer's activations take.
_USABLE = 0.92
_WORKSPACE_BYTES = 2 * 2**30
# Copies of a token's residual stream that live at once.
_STREAMS = 3


class Reached(NamedTuple):
    """Shares of the stated rates, and the seconds that a transfer takes to start."""

    compute: float = 0.6
    memory: float = 0.8
    link: float = 0.6
    peer_seconds: float = 2e-6
    network_seconds: float = 5e-6


class Hop(NamedTuple):
    """A link as it is used: bytes per second, and seconds before the first."""

    rate: float
    start: float

    def seconds(self, size: float) -> float:
        return self.start + size / self.rate


@dataclass(frozen=True)
class Cluster:
    """Equal devices in nodes, at the rates that are reached; 0 devices a node: one node."""

    name: str
    devices: int
    memory_bytes: int
    flops: float
    memory_rate: float
    peer: Hop
    network: Hop | None
    node_devices: int
    source: str

    def hop(self, first: int, second: int) -> Hop:
        """The link between two devices."""
        per_node = self.node_devices or self.devices
        if first // per_node == second // per_node:
            return self.peer
        if self.network is None:
            raise ArgumentError(
                "devices",
                f"must be at most {per_node}: {self.name} states no network",
                self.devices,
            )
        return self.network


class Times(NamedTuple):
    """Seconds of all layers: products, attention, and what is added to them by transfers of keys,
    or of partial results, between cp ranks and by sums over tp devices."""

    products: float
    attention: float
    exchange: float
    sums: float

    @property
    def total(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class ParallelPlan:
    """What one device holds, and how long prefill and a decode step take; None: it doesn't fit."""

    shape: ModelShape
    cluster: Cluster
    context: int
    batch: int
    tp: int
    cp: int
    blocks: int
    memory: dict[str, int]
    longest: int
    prefill: Times | None = None
    decode: Times | None = None
    layer: Layer | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "kind": "modelled",
            "model": self.shape.name,
            "devices": f"{self.cluster.devices} x {self.cluster.name}",
            "rates": self.cluster.source,
            "context": self.context,
            "batch": self.batch,
            "tp": self.tp,
            "cp": self.cp,
            "blocks": self.blocks,
            "fits": self.prefill is not None,
            "memory_gb": {name: size / 1e9 for name, size in self.memory.items()},
            "usable_gb": self.cluster.memory_bytes * _USABLE / 1e9,
            "longest": self.longest,
            "prefill_s": _parts(self.prefill),
            "decode_ms": _parts(self.decode, 1e3),
        }

    def explain(self) -> str:
        """The plan in words."""
        needed, usable = sum(self.memory.values()), self.cluster.memory_bytes * _USABLE
        lines = [
            f"{self.shape.name}, batch {self.batch}, {self.context} tokens, on "
            f"{self.cluster.devices} x {self.cluster.name}: tp {self.tp} x cp {self.cp}",
            f"memory per device: {needed / 1e9:.1f} of {usable / 1e9:.1f} GB usable ("
            + ", ".join(f"{name} {size / 1e9:.1f}" for name, size in self.memory.items())
            + ")",
        ]
        if self.prefill is None or self.decode is None:
            lines.append("doesn't fit")
        else:
            for name, times, unit, factor in (
                ("prefill", self.prefill, "s", 1.0),
                ("decode", self.decode, "ms a token", 1e3),
            ):
                parts = ", ".join(f"{n} {v * factor:.3g}" for n, v in times._asdict().items())
                total = f"{times.total * factor:.3g} {unit}"
                lines.append(f"{name} per device: {total} (modelled: {parts})")
            lines.append(f"rates: {self.cluster.source}")
        return "\n".join([*lines, f"longest sequence here: {self.longest} tokens"])


def _parts(times: Times | None, factor: float = 1.0) -> dict[str, float] | None:
    if times is None:
        return None
    return {n: v * factor for n, v in {**times._asdict(), "total": times.total}.items()}


@dataclass(frozen=True)
class Layer:
    """A layer's prefill on one device, in seconds and bytes; what `simulate` plays."""

    layers: int
    tp: int
    cp: int
    blocks: int
    before: float  # products before attention: q, k and v
    step: float  # attention of one ring step
    keys_bytes: float  # of keys and values that pass to the next rank
    output: float  # the projection after attention
    mlp: float  # all products of the MLP but the last
    down: float  # the last
    sum_bytes: float  # of the rows that are summed over tp devices
    hops: tuple[Hop, ...]  # from each ring rank to the next
    sum_hop: Hop

    def all_reduce(self, size: float) -> float:
        """Of `size` bytes over the tp devices, as a ring."""
        steps = 2 * (self.tp - 1)
        return steps * (self.sum_hop.start + size / self.tp / self.sum_hop.rate)

    def behind(self, product: float) -> float:
        """A product and the AllReduce of its rows, cut in blocks."""
        if self.tp == 1:
            return product
        piece, reduce = product / self.blocks, self.all_reduce(self.sum_bytes / self.blocks)
        return piece + (self.blocks - 1) * max(piece, reduce) + reduce

    def times(self) -> Times:
        """The formula, over all layers."""
        products = self.before + self.output + self.mlp + self.down
        attention = self.cp * self.step
        slowest = max((hop.seconds(self.keys_bytes) for hop in self.hops), default=0.0)
        exchange = (self.cp - 1) * max(0.0, slowest - self.step)
        sums = sum(self.behind(product) - product for product in (self.output, self.down))
        return Times(*(self.layers * part for part in (products, attention, exchange, sums)))


def cluster(devices: str, reached: Reached | None = None) -> Cluster:
    """Of "8xv100-32": a count and a profile, of which the vendor, or the GiB, may be spelt out.

    Raises ArgumentError for what isn't one, or whose profile lacks a rate.
    """
    reached = reached or Reached()
    match = re.fullmatch(r"(\d+)x([a-z0-9_.-]+)", devices.lower())
    if match is None or not int(match[1]):
        raise ArgumentError("devices", "must be a count and a profile, as 8xv100-32", repr(devices))
    profile, count = _profile(match[2]), int(match[1])
    rates, links = cost.rates(profile), profile.links
    flops = rates.tflops_of(torch.float16)
    facts = {
        "tflops": flops,
        "bandwidth_gbs": rates.bandwidth_gbs,
        "memory_gib": profile.device.memory_gib,
        "peer_gbs": links.peer_gbs if count > 1 else 1.0,
    }
    missing = [name for name, value in facts.items() if not value]
    if missing:
        raise ArgumentError("devices", f"profile {profile.name} states no {', '.join(missing)}")
    network = None
    if links.network_gbs:
        network = Hop(links.network_gbs * 1e9 * reached.link, reached.network_seconds)
    found = {name: float(value or 0) for name, value in facts.items()}
    return Cluster(
        profile.name,
        count,
        int(found["memory_gib"] * 2**30),
        found["tflops"] * 1e12 * reached.compute,
        found["bandwidth_gbs"] * 1e9 * reached.memory,
        Hop(found["peer_gbs"] * 1e9 * reached.link, reached.peer_seconds),
        network,
        links.node_devices or 0,
        f"{rates.measured_on or 'data sheet'} x {reached.compute:g} (compute), "
        f"{reached.memory:g} (memory), {reached.link:g} (links)",
    )


def _profile(name: str) -> HardwareProfile:
    known = profiles.names()
    base, _, memory = name.rpartition("-")
    for candidate in (name, f"nvidia-{name}"):
        if candidate in known:
            return profiles.by_name(candidate)
    for candidate in (base, f"nvidia-{base}"):
        if candidate in known and memory.isdigit():
            found = profiles.by_name(candidate)
            if found.device.memory_gib == int(memory):
                return found
    raise ArgumentError("devices", f"must name one of {', '.join(known)}", repr(name))


def plan(
    shape: ModelShape,
    where: Cluster,
    context: int,
    *,
    tp: int = 1,
    cp: int | None = None,
    batch: int = 1,
    blocks: int = 4,
    chunk: int = 8192,
) -> ParallelPlan:
    """Of `batch` sequences of `context` tokens over tp x cp devices, all of them unless given.

    blocks: parts of the rows whose sums travel behind the next part's product. chunk: tokens that
    go through a layer at once without a ring; with one, all that a device holds do.
    """
    for name, value in (("context", context), ("batch", batch), ("tp", tp), ("blocks", blocks)):
        if value < 1:
            raise ArgumentError(name, "must be at least 1", value)
    cp = max(1, where.devices // tp) if cp is None else cp
    if cp < 1 or tp * cp > where.devices:
        expected = f"tp x cp must be at most {where.devices} devices"
        raise ArgumentError("cp", expected, f"{tp} x {cp}")
    if shape.heads % tp:
        raise ArgumentError("tp", f"must divide the {shape.heads} heads", tp)
    layer = _layer(shape, where, context, batch, tp, cp, blocks)
    memory = _memory(shape, context, batch, tp, cp, chunk)
    room = where.memory_bytes * _USABLE
    longest = _longest(shape, batch, tp, cp, chunk, room)
    made = ParallelPlan(shape, where, context, batch, tp, cp, blocks, memory, longest, layer=layer)
    if sum(memory.values()) > room:
        return made
    return replace(made, prefill=layer.times(), decode=_decode(shape, where, layer, context, batch))


def _token_bytes(shape: ModelShape, tp: int) -> int:
    """Of keys and values in one layer; a kv head that can't be divided lies on every device."""
    return ceil(shape.kv_heads / tp) * (shape.token_bytes // shape.kv_heads)


def _memory(
    shape: ModelShape, context: int, batch: int, tp: int, cp: int, chunk: int
) -> dict[str, int]:
    tokens = ceil(context / cp) * batch
    at_once = tokens if cp > 1 else min(tokens, chunk)
    token = _token_bytes(shape, tp)
    width = shape.width or shape.heads * shape.head_dim
    return {
        "weights": shape.weight_bytes // tp,
        "keys and values": shape.layers * token * tokens,
        "ring buffers": 2 * token * tokens if cp > 1 else 0,
        "activations": _STREAMS * width * shape.element_bytes * at_once + _WORKSPACE_BYTES,
    }


def _longest(shape: ModelShape, batch: int, tp: int, cp: int, chunk: int, room: float) -> int:
    """The most tokens that fit, by bisection: memory only grows with them."""

    def fits(context: int) -> bool:
        return sum(_memory(shape, context, batch, tp, cp, chunk).values()) <= room

    low, high = 0, 2**40
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _layer(
    shape: ModelShape, where: Cluster, context: int, batch: int, tp: int, cp: int, blocks: int
) -> Layer:
    tokens = context / cp * batch
    width = shape.width or shape.heads * shape.head_dim
    heads = shape.heads * (shape.head_dim + shape.head_dim_v)
    # Parameters of a layer's products: q, k, v; the output's; the rest is the MLP's, a third of
    # it the last.
    output = width * shape.heads * shape.head_dim_v
    before = width * (shape.heads * shape.head_dim + shape.token_bytes // shape.element_bytes)
    weights = (shape.weight_bytes - shape.vocabulary_bytes) / shape.element_bytes / shape.layers
    mlp = max(0.0, weights - output - before)
    second = 2.0 * tokens / tp / where.flops
    pairs = batch * context * context / 2
    hops = [where.hop(rank * tp, (rank + 1) % cp * tp) for rank in range(cp)] if cp > 1 else []
    sum_hop = where.hop(0, tp - 1) if tp > 1 else where.peer
    return Layer(
        shape.layers,
        tp,
        cp,
        blocks,
        second * before,
        2.0 * pairs * heads / tp / cp / cp / where.flops,
        tokens * _token_bytes(shape, tp),
        second * output,
        second * mlp * 2 / 3,
        second * mlp / 3,
        tokens * width * shape.element_bytes,
        tuple(hops),
        sum_hop,
    )


def _decode(shape: ModelShape, where: Cluster, layer: Layer, context: int, batch: int) -> Times:
    """A token of every sequence: bytes read, sums of one row, and a gather of partial results."""
    tp, cp = layer.tp, layer.cp
    weights = (shape.weight_bytes - shape.vocabulary_bytes / 2) / tp / where.memory_rate
    keys = context / cp * batch * _token_bytes(shape, tp) / where.memory_rate
    width = shape.width or shape.heads * shape.head_dim
    sums = 2 * layer.all_reduce(batch * width * shape.element_bytes) if tp > 1 else 0.0
    partial = batch * shape.heads / tp * (shape.head_dim_v + 1) * 4
    gather = (cp - 1) * max((hop.seconds(partial) for hop in layer.hops), default=0.0)
    return Times(weights, shape.layers * keys, shape.layers * gather, shape.layers * sums)
