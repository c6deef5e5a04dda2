"""The parameters of a compiled Triton kernel, in the order in which the CUDA driver takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import triton

from portattn.backends.common.launch import Slot


class Unsuited(Exception):
    """Why a kernel's launches are left to Triton's launcher."""


# struct's letter, and the types that such a parameter may have in PTX.
TYPES = {
    "*": ("Q", {"u64", "b64"}),
    "i32": ("i", {"u32", "s32", "b32"}),
    "i64": ("q", {"u64", "s64", "b64"}),
    "fp32": ("f", {"f32", "b32"}),
    "fp64": ("d", {"f64", "b64"}),
    "map": ("", {"align"}),
}
# Triton's own parameters behind the kernel's: global scratch memory, and a profiler's.
_HIDDEN = 2
# Beyond this, releases that know such chips ask the driver for it in a way of their own.
_SHARED = 228 * 1024


class Parameter(NamedTuple):
    """A compiled kernel's parameter: its type in Triton, its value or its pointer's slot.

    Of type "map" it is a TMA descriptor over the slot's tensor, with what Triton says of its boxes.
    """

    type: str
    value: Any
    boxes: Mapping[str, Any] | None = None


def flatten(compiled: Any, arguments: Sequence[Any]) -> Iterator[Parameter]:
    """The parameters of a compiled kernel in order, constants left out, tuples opened.

    `arguments` are a launch's first ones; those after them must all be constants.
    """
    signature = getattr(getattr(compiled, "src", None), "signature", None)
    if not isinstance(signature, Mapping):
        raise Unsuited("Triton doesn't say which parameters the kernel has")
    types = tuple(signature.values())
    if any(kind != "constexpr" for kind in types[len(arguments) :]):
        raise Unsuited("a constant of the kernel was compiled as a parameter")
    boxes = iter(getattr(compiled.metadata, "tensordesc_meta", None) or ())
    yield from _flatten(types[: len(arguments)], arguments, boxes)


def _flatten(
    types: Sequence[Any], values: Sequence[Any], boxes: Iterator[Any]
) -> Iterator[Parameter]:
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple) and isinstance(value, tuple) and len(kind) == len(value):
            yield from _flatten(kind, value, boxes)
        elif kind == "constexpr" and not isinstance(value, (Slot, tuple)):
            continue
        elif isinstance(kind, str) and kind.startswith("*") and isinstance(value, Slot):
            yield Parameter("*", value)
        elif isinstance(kind, str) and kind.startswith("tensordesc") and isinstance(value, Slot):
            yield from _described(kind, value, next(boxes, None))
        elif kind in TYPES and isinstance(value, (int, float)):
            yield Parameter(kind, value)
        else:
            raise Unsuited(f"a parameter of type {kind} for {value}")


def _described(kind: str, slot: Any, boxes: Any) -> Iterator[Parameter]:
    """A TMA descriptor, and the shape and strides that follow it."""
    if not triton.__version__.startswith(KNOWN_MAPS):
        raise Unsuited(f"how Triton {triton.__version__} describes tensors hasn't been compared")
    known = _MAP_TYPES.get(kind.removeprefix("tensordesc<").partition("[")[0])
    if not isinstance(boxes, Mapping) or boxes.get("fp4_padded") or known is None:
        raise Unsuited(f"a descriptor of type {kind} with {boxes}")
    yield Parameter("map", slot, {**boxes, "type": known})
    for size in slot.shape:
        yield Parameter("i32", size)
    for stride in slot.strides:
        yield Parameter("i64", stride)


# The releases whose descriptors were compared with ours, byte by byte.
KNOWN_MAPS = ("3.6.",)
# CUtensorMapDataType.
_MAP_TYPES = {"fp16": 6, "bf16": 9}


def hidden_parameters(compiled: Any, types: Sequence[str]) -> int:
    """How many parameters the compiled kernel has beyond those of the given types, all null."""
    meta = compiled.metadata
    for name, usual in _USUAL.items():
        if getattr(meta, name, usual) != usual:
            raise Unsuited(f"{name} is {getattr(meta, name)}")
    if meta.shared > _SHARED:
        raise Unsuited(f"{meta.shared} bytes of shared memory")
    found = ptx_parameters(compiled.asm.get("ptx", ""), meta.name)
    hidden = found[len(types) :]
    expected = [TYPES[kind][1] for kind in types] + [TYPES["*"][1]] * len(hidden)
    matches = len(found) == len(expected) and all(map(set.__contains__, expected, found))
    if not matches or len(hidden) > _HIDDEN:
        raise Unsuited(f"compiled parameters {found} where {list(types)} were given")
    return len(hidden)


# A kernel's metadata, where a launch is nothing but a grid, parameters and shared memory.
_USUAL: dict[str, Any] = {
    "num_ctas": 1,
    "launch_cooperative_grid": False,
    "global_scratch_size": 0,
    "profile_scratch_size": 0,
    "instrumentation_mode": "",
    "warp_size": 32,
}


def ptx_parameters(ptx: str, name: str) -> list[str]:
    """The types of a kernel's parameters by its PTX, such as u64; a struct's is "align"."""
    _, found, rest = ptx.partition(f".entry {name}(")
    if not found:
        raise Unsuited(f"no PTX of {name}")
    lines = rest.partition(")")[0].split(",")
    return [line.split()[1].lstrip(".") for line in lines if line.strip()]
