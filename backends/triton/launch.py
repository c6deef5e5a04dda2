"""From tensors and a problem to a kernel's arguments."""

from __future__ import annotations

import logging
import math
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from portattn.backends.triton.primitives import Extents, Matrix, Rows, Terms, Vector
from portattn.dispatch import device as devices
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem

log = logging.getLogger("portattn")

# A tile spans at most this many rows: beyond 2^31 / rows per stride, offsets need 64 bits.
_TILE_ROWS = 256


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device."""
    return bool(triton.knobs.runtime.interpret)


def family(tensor: Tensor) -> str:
    """The architecture family that kernels run on."""
    return devices.of(tensor.device).family


def device(tensor: Tensor) -> devices.Device:
    """The device that kernels run on."""
    return devices.of(tensor.device)


# int32 words of a slice of counters, and slices made at a time.
_SLICE, _SLICES = 4096, 256
_COUNTERS: dict[Any, Tensor] = {}
_FRESH: dict[torch.device, list[Tensor]] = {}


def counters(like: Tensor, count: int) -> Tensor:
    """At least `count` int32 zeros for a kernel that leaves them zero.

    Kernels on one stream follow each other and share a slice. A captured graph may be replayed
    beside anything, so each of its launches keeps a slice of its own for good; where none is left
    that was cleared before the capture, the graph clears one itself.
    """
    capturing = like.is_cuda and torch.cuda.is_current_stream_capturing()
    if capturing:
        fresh = _FRESH.get(like.device)
        if count > _SLICE or not fresh:
            return torch.zeros(count, dtype=torch.int32, device=like.device)
        return fresh.pop()
    key = (like.device, torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0)
    found = _COUNTERS.get(key)
    if found is None or found.numel() < count:
        found = torch.zeros(max(count, _SLICE), dtype=torch.int32, device=like.device)
        _COUNTERS[key] = found
    if len(_FRESH.setdefault(like.device, [])) < _SLICES // 2:
        more = torch.zeros(_SLICES, _SLICE, dtype=torch.int32, device=like.device)
        _FRESH[like.device] += list(more.unbind())
    return found


class Call(NamedTuple):
    """What a launch is for; `more` are operands beyond the call's own tensors."""

    tensors: AttentionTensors
    problem: AttentionProblem
    config: Config
    more: tuple[Tensor | None, ...] = ()


class _Prepared(NamedTuple):
    """A compiled kernel, the names of its constants in order, and what its key was made of.

    The last two are kept alive so that no id is used twice.
    """

    compiled: Any
    names: tuple[str, ...]
    problem: AttentionProblem
    config: Config


_PREPARED: dict[tuple[Any, ...], _Prepared] = {}
_PREPARED_LIMIT = 4096
_SEEN: set[tuple[str, int, int, torch.dtype]] = set()


def run(
    kernel: Any,
    programs: int,
    args: tuple[Any, ...],
    constants: dict[str, Any],
    tile: Any,
    call: Call,
) -> None:
    """Launch on the tensors' device and torch's current stream.

    Triton works out which specialisation of a kernel its arguments need at every launch. The same
    problem with the same strides always needs the same one as long as all pointers are aligned, so
    it is looked up instead. `constants` are the kernel's constexpr arguments.
    """
    device = call.tensors.q.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return run(kernel, programs, args, constants, tile, call)
    grid = (programs, 1, 1)
    key = _prepared_key(kernel, call)
    if key is not None and (found := _PREPARED.get(key)) is not None:
        found.compiled[grid](*args, *(constants[name] for name in found.names))
        return None
    _announce(kernel, call.problem)
    compiled = kernel[grid](*args, **constants, num_warps=tile.warps, num_stages=tile.stages)
    if key is not None and compiled is not None:
        if len(_PREPARED) >= _PREPARED_LIMIT:
            _PREPARED.clear()
        names = tuple(kernel.arg_names[len(args) :])
        _PREPARED[key] = _Prepared(compiled, names, call.problem, call.config)
    return None


def _prepared_key(kernel: Any, call: Call) -> tuple[Any, ...] | None:
    """What decides a kernel's specialisation; None when a pointer isn't aligned."""
    key: tuple[Any, ...] = (kernel, id(call.problem), id(call.config), call.tensors.q.device)
    pointers = 0
    for tensor in (*_operands(call.tensors), *call.more):
        if tensor is None:
            key += (None,)
        else:
            pointers |= tensor.data_ptr()
            key += (tensor.stride(), tensor.dtype)
    if pointers % 16:
        return None
    return (*key, torch.backends.cuda.matmul.allow_tf32)


_operands = attrgetter(*AttentionTensors.__dataclass_fields__)


def _announce(kernel: Any, problem: AttentionProblem) -> None:
    """Say once that a kernel may have to be compiled, which takes seconds."""
    name = kernel.fn.__name__
    key = (name, problem.head_dim, problem.head_dim_v, problem.dtype)
    if key not in _SEEN:
        _SEEN.add(key)
        log.info("%s: Triton compiles it unless its cache has it (%s)", name, problem)


def new_lse(q: Tensor) -> Tensor:
    """[B, H, Sq] or [H, T], float32, uninitialised."""
    shape = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    return q.new_empty(shape, dtype=torch.float32)


def rows(tensor: Tensor) -> Rows:
    strides = tensor.stride()
    return Rows(tensor, *(strides if len(strides) == 4 else (0, *strides)))


def vector(tensor: Tensor) -> Vector:
    """A [B, H, S] or [H, T] tensor."""
    strides = tensor.stride()
    return Vector(tensor, *(strides if len(strides) == 3 else (0, *strides)))


def matrix(tensor: Tensor | None, full: tuple[int, ...]) -> Matrix | None:
    """A bias or mask, stride 0 along dimensions that are broadcast to a `full` score matrix.

    Where the full size is 1 too, the stride stays: its alignment decides how a kernel is compiled,
    and a sequence alone must get the kernel that it gets among others.
    """
    if tensor is None:
        return None
    values = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
    sizes = zip(tensor.shape, full, tensor.stride(), strict=True)
    return Matrix(values, *(0 if size == 1 < wanted else step for size, wanted, step in sizes))


def extents(tensors: AttentionTensors, problem: AttentionProblem, block_n: int) -> Extents:
    """block_n: keys of a tile, which may lie in one page or not."""
    table = tensors.block_table
    in_page = table is not None and problem.page_size % block_n == 0 and not problem.leftpad
    return Extents(
        problem.seqlen_q,
        problem.seqlen_k,
        tensors.cu_seqlens_q,
        tensors.cu_seqlens_k,
        tensors.seqused_k,
        tensors.leftpad_k,
        tensors.cache_batch_idx,
        table,
        0 if table is None else table.stride(0),
        problem.page_size,
        1 if in_page else None,
    )


def terms(tensors: AttentionTensors, problem: AttentionProblem) -> Terms:
    left, right = problem.window
    slopes = tensors.alibi_slopes
    p = problem.dropout_p
    full = (problem.batch, problem.heads, problem.seqlen_q, problem.seqlen_k)
    return Terms(
        float(problem.softmax_scale),
        float(problem.softcap) if problem.softcap else None,
        left if left >= 0 else None,
        right if right >= 0 else None,
        slopes,
        slopes.stride(0) if slopes is not None and slopes.dim() == 2 else 0,
        matrix(tensors.bias, full),
        matrix(tensors.mask, full),
        tensors.sinks,
        tensors.rng_state,
        math.ceil(p * 2**24),
        1.0 / (1.0 - p) if p < 1 else 0.0,
    )


def dims(problem: AttentionProblem) -> dict[str, int]:
    """Each head dimension and the two powers of two that cover it."""
    d0, d1 = halves(problem.head_dim)
    dv0, dv1 = halves(problem.head_dim_v)
    return {
        "D": problem.head_dim,
        "D0": d0,
        "D1": d1,
        "DV": problem.head_dim_v,
        "DV0": dv0,
        "DV1": dv1,
    }


def halves(dim: int) -> tuple[int, int]:
    """(a, b), powers of two from 16 up (b may be 0) with a + b >= dim and little to spare."""
    if dim <= 16:
        return 16, 0
    a = 1 << (dim.bit_length() - 1)
    if a == dim:
        return a, 0
    b = max(16, 1 << (dim - a - 1).bit_length())
    return (2 * a, 0) if b >= a else (a, b)


def fused(problem: AttentionProblem) -> bool:
    """Whether scores are the product times a positive scale and nothing else."""
    plain = not (problem.softcap or problem.alibi or problem.bias)
    return plain and problem.softmax_scale > 0


def wide(tensors: AttentionTensors) -> bool:
    """Whether offsets within a tile need 64 bits."""
    limit = 2**31 // _TILE_ROWS
    return any(abs(t.stride(-3)) >= limit for t in (tensors.q, tensors.k, tensors.v))


def precision(problem: AttentionProblem) -> str:
    """float32 products are exact to float32 unless torch is told that tf32 will do."""
    if problem.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "ieee"
