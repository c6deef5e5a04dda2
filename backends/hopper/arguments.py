"""From tensors to the kernels' arguments, with slots where the pointers go.

A TMA descriptor says where a tensor lies and in which boxes it is copied. All but the address
depends on shapes and strides only, so it is prepared once and filled in for each launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from portattn.backends.common.launch import Slot, operand
from portattn.backends.hopper.primitives import Extents, Rows, Terms, Vector
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import ArgumentError

_GLUON = {
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float32: gl.float32,
}
# Boxes begin at multiples of so many bytes, in every dimension.
ALIGNMENT = 16


class Described:
    """What a launch reads of a TensorDescriptor, over a pointer."""

    __slots__ = ("pointer", "slot")
    padding = "zero"

    def __init__(self, pointer: int, slot: DescriptorSlot) -> None:
        self.pointer, self.slot = pointer, slot

    @property
    def base(self) -> Described:
        return self

    def data_ptr(self) -> int:
        return self.pointer

    @property
    def shape(self) -> list[int]:
        return self.slot.shape

    @property
    def strides(self) -> list[int]:
        return self.slot.strides

    @property
    def block_shape(self) -> list[int]:
        return self.slot.block

    @property
    def layout(self) -> Any:
        return self.slot.layout


@dataclass(frozen=True)
class DescriptorSlot(Slot):
    """A slot whose tensor is passed as a TMA descriptor of [batch, head, row, dim]."""

    shape: list[int]
    strides: list[int]
    block: list[int]
    layout: Any

    def of(self, values: Any) -> Any:
        value = values[self.index]
        if isinstance(value, Tensor):
            return TensorDescriptor(value, self.shape, self.strides, self.block, self.layout)
        return Described(value, self)


def descriptors(
    slot: Slot, name: str, tensor: Tensor, rows: int, parts: tuple[int, int]
) -> tuple[DescriptorSlot | None, DescriptorSlot | None]:
    """Descriptors of both parts of the head dimension, in boxes of `rows` rows.

    Raises ArgumentError where the tensor's memory isn't aligned, which a problem doesn't show.
    """
    if tensor.data_ptr() % ALIGNMENT:
        raise ArgumentError(
            name, f"must begin at a multiple of {ALIGNMENT} bytes for TMA", hex(tensor.data_ptr())
        )
    batched = tensor if tensor.dim() == 4 else tensor[None]
    shape = [batched.shape[i] for i in (0, 2, 1, 3)]
    # The stride of a dimension of one entry may be anything, and is never used.
    step = ALIGNMENT // tensor.element_size()
    strides = [batched.stride(i) if batched.shape[i] > 1 else step for i in (0, 2, 1)]

    def box(width: int) -> DescriptorSlot | None:
        if not width:
            return None
        block = [1, 1, rows, width]
        layout = gl.NVMMASharedLayout.get_default_for(block, _GLUON[tensor.dtype])
        return DescriptorSlot(slot.index, shape, [*strides, 1], block, layout)

    return box(parts[0]), box(parts[1])


def scratch(slot: Slot, tensor: Tensor, block: tuple[int, int]) -> DescriptorSlot:
    """A descriptor of contiguous memory [batch, head, rows, columns]."""
    box = [1, 1, *block]
    layout = gl.NVMMASharedLayout.get_default_for(box, _GLUON[tensor.dtype])
    return DescriptorSlot(slot.index, list(tensor.shape), list(tensor.stride()), box, layout)


def rows(slot: Slot, tensor: Tensor) -> Rows:
    strides = tensor.stride()[:-1]
    return Rows(slot, *(strides if len(strides) == 3 else (0, *strides)))


def vector(slot: Slot, tensor: Tensor) -> Vector:
    """A [B, H, S] or [H, T] tensor."""
    strides = tensor.stride()
    return Vector(slot, *(strides if len(strides) == 3 else (0, *strides)))


def extents(tensors: AttentionTensors, problem: AttentionProblem) -> Extents:
    return Extents(
        problem.seqlen_q,
        problem.seqlen_k,
        _given(tensors, "cu_seqlens_q"),
        _given(tensors, "cu_seqlens_k"),
    )


def _given(tensors: AttentionTensors, name: str) -> Slot | None:
    return None if getattr(tensors, name) is None else operand(name)


def terms(problem: AttentionProblem) -> Terms:
    left, right = problem.window
    return Terms(
        float(problem.softmax_scale),
        float(problem.softcap) if problem.softcap else None,
        left if left >= 0 else None,
        right if right >= 0 else None,
    )


def fused(problem: AttentionProblem) -> bool:
    """Whether scores are the product times a positive scale and nothing else."""
    return not problem.softcap and problem.softmax_scale > 0
