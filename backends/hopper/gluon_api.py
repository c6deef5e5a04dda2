"""Gluon's names that differ between Triton releases, under one name each.

Triton 3.6 and 3.7 copy with `async_copy_global_to_shared` and have no public reduction to global
memory; from 3.8 on these are `async_load`, `async_store` and `async_atomic_add`.
"""

from __future__ import annotations

from typing import Any

from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import tma

_current = hasattr(tma, "async_load")


@builtin
def _reduce_add(descriptor: Any, coord: Any, source: Any, _semantic: Any = None) -> None:
    from triton._C.libtriton import ir

    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(kind, descriptor.handle, coord, source.handle)


# load(descriptor, coordinates, barrier, shared memory)
load = tma.async_load if _current else tma.async_copy_global_to_shared
# store(descriptor, coordinates, shared memory)
store = tma.async_store if _current else tma.async_copy_shared_to_global
# Adds shared memory to global memory: reduce_add(descriptor, coordinates, shared memory)
reduce_add = tma.async_atomic_add if _current else _reduce_add
store_wait = tma.store_wait
