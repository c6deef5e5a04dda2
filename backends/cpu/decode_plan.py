"""Decode calls planned once: all that shapes, strides and dtypes decide, then only addresses.

A step of decoding calls each layer with tensors of the same shapes, and at a short context the
kernel takes less time than describing the call to it.
"""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from portattn.backends.cpu import library
from portattn.backends.cpu.decode_call import NO_MEMORY, arguments_of
from portattn.backends.cpu.prefill_arguments import ForwardArguments
from portattn.dispatch.backend import AttentionTensors, Run
from portattn.dispatch.problem import AttentionProblem

_RESULTS_AND_INPUTS = struct.Struct("=5q")
_ADDRESS = struct.Struct("=q")
# The members of pa_layout that come before its pointers.
_LAYOUT_INTEGERS = 7
_LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "seqused_k", "leftpad_k", "cache_batch_idx")


def _offsets() -> dict[str, int]:
    """Where pa_decode_args holds the address of each optional tensor, in bytes."""
    layout = ctypes.sizeof(ForwardArguments) + _LAYOUT_INTEGERS * _ADDRESS.size
    members = {
        "block_table": ForwardArguments.block_table,
        "alibi_slopes": ForwardArguments.slopes,
        "bias": ForwardArguments.bias,
        "mask": ForwardArguments.mask,
        "sinks": ForwardArguments.sinks,
    }
    return {
        **{name: member.offset for name, member in members.items()},
        **{name: layout + n * _ADDRESS.size for n, name in enumerate(_LENGTHS)},
    }


_OFFSETS = _offsets()


class DecodePlan:
    """Calls of the loaded library on up to `most` threads, for tensors like those of `template`.

    `optional` are the names of the other tensors, where their addresses go, and their strides.
    `otherwise` runs once another library or instruction set is in use.
    """

    def __init__(
        self,
        template: bytes,
        like: tuple[Tensor, Tensor],
        optional: list[tuple[str, int, tuple[int, ...]]],
        most: int,
        otherwise: Run,
    ) -> None:
        self._template, self._tail = template, template[_RESULTS_AND_INPUTS.size :]
        self._out_like, self._lse_like = like
        self._optional, self._most, self._otherwise = optional, most, otherwise
        loaded = library.load()
        assert loaded is not None
        self._function, self._in_use = loaded.pa_decode, library.in_use()

    def run(self, tensors: AttentionTensors) -> tuple[Tensor, Tensor]:
        """out [B, Sq, H, Dv] and lse [B, H, Sq]."""
        tail = self._filled(tensors) if self._optional else self._tail
        if tail is None or library.in_use() != self._in_use:
            return self._otherwise(tensors)
        q, k, v = tensors.q, tensors.k, tensors.v
        lse = torch.empty_like(self._lse_like, memory_format=torch.contiguous_format)
        out = self._call(q.data_ptr(), k.data_ptr(), v.data_ptr(), lse.data_ptr(), tail)
        return out, lse

    def at(self, q: int, k: int, v: int) -> Tensor | None:
        """out, None where optional tensors are needed or another library is in use."""
        if self._optional or library.in_use() != self._in_use:
            return None
        return self._call(q, k, v, 0, self._tail)

    def _call(self, q: int, k: int, v: int, lse: int, tail: bytes) -> Tensor:
        out = torch.empty_like(self._out_like, memory_format=torch.contiguous_format)
        threads = 1 if self._most == 1 else min(self._most, torch.get_num_threads())
        addresses = _RESULTS_AND_INPUTS.pack(q, k, v, out.data_ptr(), lse)
        if self._function(addresses + tail, threads):
            raise MemoryError(NO_MEMORY)
        return out

    def _filled(self, tensors: AttentionTensors) -> bytes | None:
        """The arguments behind the first addresses; None for tensors of other strides."""
        arguments = bytearray(self._template)
        for name, at, stride in self._optional:
            tensor = getattr(tensors, name)
            if tensor.stride() != stride:
                return None
            _ADDRESS.pack_into(arguments, at, tensor.data_ptr())
        return bytes(arguments[_RESULTS_AND_INPUTS.size :])


def plan_decode(
    tensors: AttentionTensors, problem: AttentionProblem, block_n: int, most: int, otherwise: Run
) -> DecodePlan | None:
    """The plan of a problem for the decode kernel; None where a tensor needs a conversion."""
    if tensors.cu_seqlens_q is not None:
        return None
    batch, rows, heads, _ = tensors.q.shape
    # One element stands for all: only shapes and dtypes of these are used.
    like = (
        torch.empty(1, dtype=tensors.q.dtype).expand(batch, rows, heads, problem.head_dim_v),
        torch.empty(1, dtype=torch.float32).expand(batch, heads, rows),
    )
    converted: list[Tensor] = []
    template = arguments_of(tensors, problem, block_n, *like, converted)
    optional = []
    for name, at in _OFFSETS.items():
        tensor = getattr(tensors, name)
        if tensor is None:
            continue
        if _ADDRESS.unpack_from(template, at) != (tensor.data_ptr(),):
            return None
        optional.append((name, at, tensor.stride()))
    return DecodePlan(template, like, optional, most, otherwise)
