"""The buffers of a core and views of them, address by address.

A view is a base address in bytes with an offset, extents and strides in elements, as a memref is;
i1 is one bit, so its elements are bits. New memory holds NaN bit patterns in every float type.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Bytes of the 910B's buffers; L0A and L0B live inside the vendor's matrix routine.
SIZES = {"cbuf": 512 * 1024, "cc": 128 * 1024, "ub": 192 * 1024}
# Bytes of what accesses are compared by.
GRANULE = 4

_STORED = {
    "f16": np.float16, "bf16": np.uint16, "f32": np.float32, "i8": np.int8, "i16": np.int16,
    "i32": np.int32, "i64": np.int64,
}  # fmt: skip


class OutOfBounds(IndexError):
    """An access beyond the end of a buffer."""


class Buffer:
    """A piece of memory; `space` is its address space, "gm" for global memory."""

    def __init__(self, name: str, space: str, data: Array) -> None:
        self.name, self.space, self.data = name, space, data

    @classmethod
    def filled(cls, name: str, space: str, size: int) -> Buffer:
        return cls(name, space, np.full(size, 0xFF, np.uint8))


@dataclass(frozen=True)
class View:
    """A memref's value: where its elements lie in a buffer."""

    buffer: Buffer
    base: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @property
    def bits(self) -> int:
        return 1 if self.dtype == "i1" else 8 * np.dtype(_STORED[self.dtype]).itemsize

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return (self.elements * self.bits + 7) // 8

    @property
    def first_byte(self) -> int:
        return self._extent()[0] // 8

    @property
    def end_byte(self) -> int:
        return -(-self._extent()[1] // 8)

    def _extent(self) -> tuple[int, int]:
        """The first bit and the one after the last."""
        first = self.base * 8 + self.offset * self.bits
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        end = first + (last + 1) * self.bits
        if first < 0 or end > 8 * self.buffer.data.size:
            name, size = self.buffer.name, self.buffer.data.size
            raise OutOfBounds(f"bytes {first // 8} to {-(-end // 8)} of {name}, which has {size}")
        return first, end

    def _positions(self) -> Array:
        at: Array = np.zeros((1,) * len(self.shape), np.int64)
        for axis, (n, s) in enumerate(zip(self.shape, self.strides, strict=True)):
            extent = [1] * len(self.shape)
            extent[axis] = n
            at = at + (np.arange(n, dtype=np.int64) * s).reshape(extent)
        return at

    def _array(self) -> Array:
        self._extent()
        stored = np.dtype(_STORED[self.dtype])
        return np.ndarray(
            self.shape, stored, self.buffer.data.data,
            self.base + self.offset * stored.itemsize,
            tuple(s * stored.itemsize for s in self.strides),
        )  # fmt: skip

    def get(self) -> Array:
        """A copy of the elements: half types as float32, i1 as bool."""
        if not self.elements:
            return np.zeros(self.shape, np.float32)
        if self.dtype == "i1":
            first, _ = self._extent()
            at = first + self._positions()
            found: Array = (self.buffer.data[at // 8] >> (at % 8).astype(np.uint8)) & 1
            return found.astype(bool)
        stored = self._array()
        if self.dtype == "bf16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "f16":
            return stored.astype(np.float32)
        return stored.copy()

    def put(self, values: Any) -> None:
        """Store elements, floats rounded to nearest even."""
        if not self.elements:
            return
        given = np.broadcast_to(np.asarray(values), self.shape)
        if self.dtype == "i1":
            first, _ = self._extent()
            at = (first + self._positions()).ravel()
            bits = (1 << (at % 8)).astype(np.uint8)
            np.bitwise_and.at(self.buffer.data, at // 8, ~bits)
            set_ = given.ravel().astype(bool)
            np.bitwise_or.at(self.buffer.data, at[set_] // 8, bits[set_])
        elif self.dtype == "bf16":
            self._array()[...] = to_bfloat16(given)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                self._array()[...] = given

    def granules(self) -> slice | Array:
        """What the view touches, in granules of its buffer."""
        if not self.elements:
            return slice(0, 0)
        first, end = self._extent()
        inner, run = len(self.shape), 1
        while inner and (self.shape[inner - 1] == 1 or self.strides[inner - 1] == run):
            inner -= 1
            run *= self.shape[inner]
        unit = 8 * GRANULE
        if not inner:
            return slice(first // unit, -(-end // unit))
        outer = View(
            self.buffer,
            self.base,
            self.offset,
            self.shape[:inner],
            self.strides[:inner],
            self.dtype,
        )
        starts = (first + outer._positions().ravel() * self.bits)[:, None]
        width = -(-run * self.bits // unit)
        # A run that begins inside a granule may reach into one more.
        spread = starts // unit + np.arange(width + 1)
        inside = spread * unit < starts + run * self.bits
        return np.unique(spread[inside])


def to_bfloat16(values: Array) -> Array:
    """The upper halves of float32, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
