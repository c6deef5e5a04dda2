"""Launches by the CUDA driver itself, where the same kernel runs again with other pointers.

Triton's launcher takes a kernel's arguments apart at every launch, though from one call of a
problem to the next only the pointers differ. Here the parameters lie ready in the memory that the
driver reads; a launch writes its pointers there and makes the call that Triton's launcher makes,
cuLaunchKernelEx (CUDA driver API, "Execution Control").
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from triton import knobs

from portattn.backends.common.parameters import (
    TYPES,
    Parameter,
    Unsuited,
    flatten,
    hidden_parameters,
)
from portattn.errors import ArgumentError, LaunchError


def current_device() -> int:
    """The index of the device that torch's calls go to; -1 in a torch for CPUs."""
    return -1


def current_stream(device: int) -> int:
    """The handle of torch's current stream on a device."""
    return 0


if torch.backends.cuda.is_built():
    # Torch's own functions behind torch.cuda's, which take microseconds.
    current_device = torch._C._cuda_getDevice
    current_stream = torch._C._cuda_getCurrentRawStream

Empty = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]


def empty(device: torch.device) -> Empty:
    """The quickest way to a new tensor of a size, strides and dtype on the current device."""
    quick: Empty | None = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if quick is not None:
        return quick
    return lambda size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device=device.type
    )


def hooked() -> bool:
    """Whether somebody wants Triton to tell them of launches, as a profiler does."""
    enter, leave = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook
    try:
        # A chain of hooks is there even where nobody put one in it.
        return bool(enter.calls or leave.calls)
    except AttributeError:
        return not (enter is None and leave is None)


_RUNTIME = knobs.runtime


def wanted() -> str:
    """Who launches again by PORTATTN_LAUNCH: "triton", the "driver", or the driver where it has
    been seen to work on a GPU, "auto"."""
    value = os.environ.get("PORTATTN_LAUNCH") or "auto"
    if value not in ("auto", "driver", "triton"):
        raise ArgumentError("PORTATTN_LAUNCH", "must be auto, driver or triton", repr(value))
    return value


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute with a value of one number."""

    _fields_ = [("id", ctypes.c_ulonglong), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15)]


# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_OVERLAP = 6

_WORD = 8
# Of a CUtensorMap: its bytes, and what its address is a multiple of.
_MAP, _ALIGNED = 128, 64
_CONFIG = ctypes.sizeof(_Config)
# The memory of a launch, the arguments of cuLaunchKernelEx, and the maps in it.
_Memory = tuple[Any, tuple[ctypes.c_void_p, ...], list[ctypes.c_void_p]]


class Launch:
    """A kernel of one grid whose parameters are known but for pointers.

    May be called from several threads at once: each launch has memory of its own, and the driver
    has read it when it returns.
    """

    def __init__(
        self,
        compiled: Any,
        programs: int,
        arguments: Sequence[Any],
        places: Mapping[int, int],
        device: int,
    ) -> None:
        """Raises Unsuited with the reason where Triton's launcher would do something else.

        places: where the pointer of each slot will be among those that a launch is given.
        """
        self._parameters = tuple(flatten(compiled, arguments))
        types = [parameter.type for parameter in self._parameters]
        self._hidden = hidden_parameters(compiled, types)
        if not 0 < programs < 2**31:
            raise Unsuited(f"a grid of {programs} programs")
        self.compiled, self.device = compiled, device
        self.slots = tuple(sorted({p.value.index for p in self._parameters if p.type == "*"}))
        # There are always several.
        self._choose: Callable[[Sequence[int]], tuple[int, ...]] = itemgetter(
            *[places[slot] for slot in self.slots]
        )
        maps = [parameter for parameter in self._parameters if parameter.type == "map"]
        if maps and wanted() == "auto":
            raise Unsuited("TMA descriptors by the driver haven't been seen on a GPU")
        self._mapped = [places[parameter.value.index] for parameter in maps]
        # First the maps, then the configuration and behind it the pointers, a null and the values.
        self._config = _MAP * len(maps)
        self._pointers = self._config + ctypes.sizeof(_Config)
        self._stream = self._config + _Config.stream.offset
        meta = compiled.metadata
        # One for all launches, which only read it.
        self._attribute = _Attribute(_OVERLAP, 1)
        config = _Config(
            (programs, 1, 1), (32 * meta.num_warps, 1, 1), meta.shared, 0,
            ctypes.addressof(self._attribute), int(getattr(meta, "launch_pdl", False)),
        )  # fmt: skip
        self._image, self._offsets = self._lay_out(config)
        # From the stream to the last pointer, the attributes between them.
        self._attributes = (config.attributes, config.attribute_count)
        self._write = struct.Struct(f"={3 + len(self.slots)}Q").pack_into
        self._launch = library().cuLaunchKernelEx
        self._replace: Any = library().cuTensorMapReplaceAddress if maps else None
        self._free: list[_Memory] = []
        # What can't be described as a map shows here.
        self._free.append(self._new())

    def __call__(self, stream: int, pointers: Sequence[int]) -> None:
        """Launch on a stream of the current device with the addresses of all tensors.

        Raises LaunchError with the driver's name for what is wrong.
        """
        free = self._free
        try:
            memory = free.pop()
        except IndexError:
            memory = self._new()
        block, arguments, maps = memory
        self._write(block, self._stream, stream, *self._attributes, *self._choose(pointers))
        if maps:
            for at, place in zip(maps, self._mapped):  # noqa: B905
                self._check(self._replace(at, ctypes.c_void_p(pointers[place])))
        status = self._launch(*arguments)
        if status:
            status = self._with_context(status, arguments)
        free.append(memory)
        if status:
            self._check(status)

    def _check(self, status: int) -> None:
        if status:
            raise LaunchError(self.compiled.metadata.name, status, *describe(status))

    def _lay_out(self, config: _Config) -> tuple[Any, list[int]]:
        """The memory's initial content, and where in it each parameter lies."""
        null = self._pointers + _WORD * len(self.slots)
        image = ctypes.create_string_buffer(null + _WORD * (1 + len(self._parameters)))
        ctypes.memmove(ctypes.addressof(image) + self._config, ctypes.byref(config), _CONFIG)
        offsets, maps = [], 0
        for index, (kind, value, _) in enumerate(self._parameters):
            if kind == "*":
                offsets.append(self._pointers + _WORD * self.slots.index(value.index))
            elif kind == "map":
                offsets.append(_MAP * maps)
                maps += 1
            else:
                at = null + _WORD * (1 + index)
                try:
                    struct.pack_into("=" + TYPES[kind][0], image, at, value)
                except (OverflowError, struct.error) as error:
                    raise Unsuited(f"{value} as {kind}: {error}") from error
                offsets.append(at)
        return image, offsets + [null] * self._hidden

    def _new(self) -> _Memory:
        """Memory of one launch at a time, and the arguments of the driver's calls."""
        size = len(self._image)
        raw = ctypes.create_string_buffer(_ALIGNED + size + _WORD * len(self._offsets))
        block = (ctypes.c_char * (len(raw) - _ALIGNED)).from_buffer(
            raw, -ctypes.addressof(raw) % _ALIGNED
        )
        ctypes.memmove(block, self._image, size)
        start = ctypes.addressof(block)
        addresses = [start + offset for offset in self._offsets]
        struct.pack_into(f"={len(addresses)}Q", block, size, *addresses)
        described = [p for p in self._parameters if p.type == "map"]
        maps = [ctypes.c_void_p(start + _MAP * index) for index in range(len(described))]
        for at, parameter in zip(maps, described, strict=True):
            _encode(at, parameter)
        values = (start + self._config, self.compiled.function, start + size, None)
        return block, tuple(ctypes.c_void_p(value) for value in values), maps

    def _with_context(self, status: int, arguments: tuple[ctypes.c_void_p, ...]) -> int:
        """Launch once more if it was only that the thread hadn't used the device before."""
        if status != _INVALID_CONTEXT:
            return status
        device, context = ctypes.c_int(), ctypes.c_void_p()
        driver = library()
        again: int = (
            driver.cuDeviceGet(ctypes.byref(device), self.device)
            or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
            or driver.cuCtxSetCurrent(context)
            or driver.cuLaunchKernelEx(*arguments)
        )
        return again


_INVALID_CONTEXT = 201


@functools.cache
def library() -> ctypes.CDLL:
    """The CUDA driver; its calls let other Python threads run. Raises Unsuited without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuLaunchKernelEx  # noqa: B018 (older drivers lack it)
    except (OSError, AttributeError) as error:
        raise Unsuited(str(error)) from error
    return driver


def describe(status: int) -> tuple[str, str]:
    """The driver's name and description of a status."""
    texts = []
    for function in (library().cuGetErrorName, library().cuGetErrorString):
        text = ctypes.c_char_p()
        function(status, ctypes.byref(text))
        texts.append((text.value or b"unknown").decode())
    return texts[0], texts[1]


def _encode(at: ctypes.c_void_p, parameter: Parameter) -> None:
    """Write a TMA descriptor over no memory yet; raises Unsuited where the driver can't.

    As Triton has it: no interleaving, zeros beyond the edges, 128 bytes at a time into the L2.
    """
    boxes, slot = parameter.boxes, parameter.value
    assert boxes is not None
    rank, size = len(slot.shape), boxes["elem_size"]
    sizes = (ctypes.c_uint64 * rank)(*slot.shape[::-1])
    steps = (ctypes.c_uint64 * rank)(*[size * stride for stride in slot.strides[-2::-1]], 0)
    box = (ctypes.c_uint32 * rank)(*list(boxes["block_size"])[::-1])
    ones = (ctypes.c_uint32 * rank)(*[1] * rank)
    status = library().cuTensorMapEncodeTiled(
        at, boxes["type"], rank, ctypes.c_void_p(_NOWHERE), sizes, steps, box, ones,
        0, boxes["swizzle"], _L2_128, 0,
    )  # fmt: skip
    if status:
        raise Unsuited(f"the driver describes no such tensor: {describe(status)[1]}")


# CU_TENSOR_MAP_L2_PROMOTION_L2_128B; an aligned address that stands for none.
_L2_128, _NOWHERE = 2, 1 << 20
