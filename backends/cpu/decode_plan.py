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

_ADDRESS = struct.Struct("=q")
_ADDRESSES = struct.Struct("=5q")
# Of k and of v: row, head and dim; then of pa_layout, with what lies between, k_batch and v_batch.
_STRIDES = struct.Struct("=6q")
_BATCHES = struct.Struct("=2q")
_LAYOUT = ctypes.sizeof(ForwardArguments)
_LAYOUT_INTEGERS = (
    "q_batch", "k_batch", "v_batch", "out_batch", "lse_batch", "seqlen_q", "seqlen_k",
)  # fmt: skip
_LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "seqused_k", "leftpad_k", "cache_batch_idx")
_STRIDES_AT = ForwardArguments.k_row.offset
_BATCHES_AT = _LAYOUT + _LAYOUT_INTEGERS.index("k_batch") * _ADDRESS.size
_KEYS_AT = _LAYOUT + _LAYOUT_INTEGERS.index("seqlen_k") * _ADDRESS.size


def _optional_offsets() -> dict[str, int]:
    """Where pa_decode_args holds the address of each optional tensor, in bytes."""
    first = _LAYOUT + len(_LAYOUT_INTEGERS) * _ADDRESS.size
    return {
        "block_table": ForwardArguments.block_table.offset,
        "alibi_slopes": ForwardArguments.slopes.offset,
        "bias": ForwardArguments.bias.offset,
        "mask": ForwardArguments.mask.offset,
        "sinks": ForwardArguments.sinks.offset,
        "k_scale": ForwardArguments.k_scale.offset,
        "v_scale": ForwardArguments.v_scale.offset,
        **{name: first + n * _ADDRESS.size for n, name in enumerate(_LENGTHS)},
    }


_OPTIONAL = _optional_offsets()
_KIND = torch.contiguous_format


class DecodePlan:
    """Calls of the loaded library on up to `most` threads, for tensors like those of `template`.

    `optional` are the names of the other tensors, where their addresses go, and their strides.
    Another thread joins for every `keys_a_thread` keys. `otherwise` runs once another library or
    instruction set is in use.
    """

    def __init__(
        self,
        template: bytes,
        like: tuple[Tensor, Tensor],
        optional: list[tuple[str, int, tuple[int, ...]]],
        threads: tuple[int, float],
        otherwise: Run,
    ) -> None:
        self._template, self._optional, self._otherwise = template, optional, otherwise
        self._out_like, self._lse_like = like
        self._most, self._keys_a_thread = threads
        loaded = library.load()
        assert loaded is not None
        self._function, self._in_use = loaded.pa_decode, library.in_use()

    def run(self, tensors: AttentionTensors) -> tuple[Tensor, Tensor]:
        """out [B, Sq, H, Dv] and lse [B, H, Sq]."""
        if library.in_use() != self._in_use:
            return self._otherwise(tensors)
        arguments = bytearray(self._template)
        for name, at, stride in self._optional:
            tensor = getattr(tensors, name)
            if tensor.stride() != stride:
                return self._otherwise(tensors)
            _ADDRESS.pack_into(arguments, at, tensor.data_ptr())
        lse = torch.empty_like(self._lse_like, memory_format=_KIND)
        q, k, v = tensors.q.data_ptr(), tensors.k.data_ptr(), tensors.v.data_ptr()
        # The strides are those of the template.
        return self._call(arguments, q, k, v, lse.data_ptr(), self._most), lse

    def heads_first(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """out of [B, H, S, D] tensors, whose keys may be more or less than the template's."""
        if self._optional or library.in_use() != self._in_use:
            return None
        arguments = bytearray(self._template)
        k_batch, k_head, k_row, k_dim = key.stride()
        v_batch, v_head, v_row, v_dim = value.stride()
        keys = key.size(2)
        _STRIDES.pack_into(arguments, _STRIDES_AT, k_row, k_head, k_dim, v_row, v_head, v_dim)
        _BATCHES.pack_into(arguments, _BATCHES_AT, k_batch, v_batch)
        _ADDRESS.pack_into(arguments, _KEYS_AT, keys)
        q, k, v = query.data_ptr(), key.data_ptr(), value.data_ptr()
        most = self._most
        if most > 1:
            most = max(1, min(most, int(keys / self._keys_a_thread)))
        return self._call(arguments, q, k, v, 0, most)

    def _call(self, arguments: bytearray, q: int, k: int, v: int, lse: int, most: int) -> Tensor:
        out = torch.empty_like(self._out_like, memory_format=_KIND)
        _ADDRESSES.pack_into(arguments, 0, q, k, v, out.data_ptr(), lse)
        threads = most if most == 1 else min(most, torch.get_num_threads())
        if self._function(bytes(arguments), threads):
            raise MemoryError(NO_MEMORY)
        return out


def plan_decode(
    tensors: AttentionTensors,
    problem: AttentionProblem,
    block_n: int,
    threads: tuple[int, float],
    otherwise: Run,
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
    for name, at in _OPTIONAL.items():
        tensor = getattr(tensors, name)
        if tensor is None:
            continue
        if _ADDRESS.unpack_from(template, at) != (tensor.data_ptr(),):
            return None
        optional.append((name, at, tensor.stride()))
    return DecodePlan(template, like, optional, threads, otherwise)
