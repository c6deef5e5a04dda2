"""The backward pass as a whole: terms of rows, gradients of keys and values, dq."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from portattn.backends.common import launch
from portattn.backends.hopper import arguments, query_gradient, tiles
from portattn.backends.hopper.backward import BLOCK_N, Sizes, backward_kernel
from portattn.backends.hopper.primitives import Schedule
from portattn.backends.hopper.query_gradient import BLOCK_M, query_gradient_kernel
from portattn.backends.hopper.row_terms import finish_kernel, prepare_kernel
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.problem import AttentionProblem


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: AttentionTensors,
    problem: AttentionProblem,
    config: Config,
) -> Gradients:
    """dq, dk, dv in the inputs' dtype, contiguous."""
    q, k, v = tensors.q, tensors.k, tensors.v
    if not (q.numel() and k.numel()):
        return Gradients(torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
    if not is_addressable(grad_out):
        grad_out = grad_out.clone(memory_format=torch.contiguous_format)
    tile, width = tiles.backward(problem, config), tiles.backward_width(problem)
    row_tiles = padded_tiles(tensors, problem, tile.block_m)
    batch = q.shape[0] if q.dim() == 4 else 1
    rows = (batch, problem.heads, row_tiles * tile.block_m)
    lse2, delta = q.new_empty((2, *rows), dtype=torch.float32).unbind()
    # Rows and keys of no sequence keep their zeros.
    new = torch.zeros if q.dim() == 3 else torch.empty
    dq, dk, dv = (new(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    shape = (batch, problem.heads, row_tiles * tile.block_m * width // 32, 32)
    sums = q.new_zeros(shape, dtype=torch.float32) if tile.sums else None
    call = launch.Call(tensors, problem, config, (grad_out, out, lse, grad_lse))
    launch.run(prepare_kernel, call, (lse2, delta), lambda: _plan_rows(call, lse2))
    call = launch.Call(tensors, problem, config, (grad_out,))
    written = (lse2, delta, dk, dv, sums)
    launch.run(backward_kernel, call, written, lambda: _plan(call, written))
    if sums is not None:
        call = launch.Call(tensors, problem, config)
        launch.run(finish_kernel, call, (sums, dq), lambda: _plan_finish(call, sums, dq))
    else:
        by_rows = (lse2, delta, dq)
        launch.run(query_gradient_kernel, call, by_rows, lambda: _plan_queries(call, by_rows))
    return Gradients(dq, dk, dv)


def is_addressable(tensor: Tensor) -> bool:
    """Whether TMA can describe it: begins and steps on at multiples of 16 bytes."""
    step = arguments.ALIGNMENT // tensor.element_size()
    strides = zip(tensor.shape[:-1], tensor.stride(), strict=False)
    return (
        tensor.stride(-1) == 1
        and tensor.data_ptr() % arguments.ALIGNMENT == 0
        and all(n == 1 or (by > 0 and by % step == 0) for n, by in strides)
    )


def padded_tiles(tensors: AttentionTensors, problem: AttentionProblem, block_m: int) -> int:
    """Tiles of rows where every sequence begins with one, see primitives.padded_tile."""
    if tensors.cu_seqlens_q is None:
        return tiles.cdiv(problem.seqlen_q, block_m)
    return tensors.q.shape[0] // block_m + problem.batch


def _plan_rows(call: launch.Call, lse2: Tensor) -> launch.Plan:
    problem = call.problem
    grad_out, out, lse, grad_lse = call.more
    assert grad_out is not None and out is not None and lse is not None
    tile = tiles.backward(problem, call.config)
    row_tiles = tiles.cdiv(problem.seqlen_q, tile.block_m)
    args = (
        arguments.rows(launch.further(0), grad_out),
        arguments.rows(launch.further(1), out),
        arguments.vector(launch.further(2), lse),
        None if grad_lse is None else arguments.vector(launch.further(3), grad_lse),
        arguments.vector(launch.further(4), lse2),
        launch.further(5),
        arguments.extents(call.tensors, problem),
        problem.heads,
        row_tiles,
    )
    constants = {
        "WIDTH": tiles.backward_width(problem),
        "DIM": problem.head_dim_v,
        "BLOCK_M": tile.block_m,
    }
    programs = row_tiles * problem.heads * problem.batch
    return launch.Plan(programs, args, constants, {"num_warps": 4})


def _plan(call: launch.Call, written: tuple[Tensor | None, ...]) -> launch.Plan:
    tensors, problem = call.tensors, call.problem
    lse2, delta, dk, dv, sums = written
    (grad_out,) = call.more
    assert grad_out is not None and lse2 is not None and delta is not None
    assert dk is not None and dv is not None
    tile, width = tiles.backward(problem, call.config), tiles.backward_width(problem)
    size = Sizes(
        problem.heads // problem.kv_heads,
        width,
        problem.head_dim,
        problem.head_dim_v,
        tile.block_m,
        tile.stages,
        arguments.fused(problem),
        tile.sums,
    )

    def described(slot: launch.Slot, name: str, tensor: Tensor, rows: int) -> Any:
        return arguments.descriptors(slot, name, tensor, rows, (width, 0))[0]

    key_tiles = tiles.cdiv(problem.seqlen_k, BLOCK_N.value)
    args = (
        described(launch.operand("q"), "q", tensors.q, tile.block_m),
        described(launch.operand("k"), "k", tensors.k, 64),
        described(launch.operand("v"), "v", tensors.v, 64),
        described(launch.further(0), "grad_out", grad_out, tile.block_m),
        arguments.scratch(launch.further(1), lse2[:, :, None], (1, tile.block_m)),
        arguments.scratch(launch.further(2), delta[:, :, None], (1, tile.block_m)),
        *(_sums(sums, size) if sums is not None else (None, None)),
        described(launch.further(3), "dk", dk, 64),
        described(launch.further(4), "dv", dv, 64),
        arguments.rows(launch.further(3), dk),
        arguments.rows(launch.further(4), dv),
        arguments.extents(tensors, problem),
        arguments.terms(problem),
        problem.kv_heads,
        key_tiles,
    )
    registers = tiles.REGISTERS[2]
    return launch.Plan(
        key_tiles * problem.kv_heads * problem.batch,
        args,
        {"SIZE": size, "CONSUMER_REGISTERS": registers.consumer},
        {"num_warps": 4, "maxnreg": registers.launch},
    )


def _sums(sums: Tensor, size: Sizes) -> tuple[Any, Any]:
    """The sums of dq as a descriptor, and as strides and a pointer."""
    slot = launch.further(5)
    described = arguments.scratch(slot, sums, (2 * size.columns, 32))
    return described, arguments.vector(slot, sums[:, :, :, 0])


def _plan_queries(call: launch.Call, written: tuple[Tensor, ...]) -> launch.Plan:
    tensors, problem = call.tensors, call.problem
    lse2, _, dq = written
    (grad_out,) = call.more
    assert grad_out is not None
    width = tiles.backward_width(problem)
    tile = tiles.query_gradient(problem)

    def described(slot: launch.Slot, name: str, tensor: Tensor, rows: int) -> Any:
        return arguments.descriptors(slot, name, tensor, rows, (width, 0))[0]

    row_tiles = tiles.cdiv(problem.seqlen_q, BLOCK_M.value)
    args = (
        described(launch.operand("q"), "q", tensors.q, 64),
        described(launch.operand("k"), "k", tensors.k, tile.block_n),
        described(launch.operand("v"), "v", tensors.v, tile.block_n),
        described(launch.further(0), "grad_out", grad_out, 64),
        arguments.vector(launch.further(1), lse2),
        launch.further(2),
        arguments.rows(launch.further(3), dq),
        arguments.extents(tensors, problem),
        arguments.terms(problem),
        Schedule(problem.batch, problem.heads, row_tiles, 8 if problem.window[1] >= 0 else None),
    )
    size = query_gradient.Sizes(
        problem.heads // problem.kv_heads,
        width,
        problem.head_dim,
        tile.block_n,
        tile.stages,
        tiles.backward(problem, call.config).block_m,
        arguments.fused(problem),
    )
    registers = tiles.REGISTERS[2]
    return launch.Plan(
        row_tiles * problem.heads * problem.batch,
        args,
        {"SIZE": size, "CONSUMER_REGISTERS": registers.consumer},
        {"num_warps": 4, "maxnreg": registers.launch},
    )


def _plan_finish(call: launch.Call, sums: Tensor, dq: Tensor) -> launch.Plan:
    problem = call.problem
    tile, width = tiles.backward(problem, call.config), tiles.backward_width(problem)
    row_tiles = tiles.cdiv(problem.seqlen_q, tile.block_m)
    args = (
        arguments.vector(launch.further(0), sums[:, :, :, 0]),
        arguments.rows(launch.further(1), dq),
        arguments.extents(call.tensors, problem),
        problem.heads,
        row_tiles,
        float(problem.softmax_scale),
    )
    constants = {
        "COLUMNS": width if tile.block_m == 128 else width // 2,
        "DIM": problem.head_dim,
        "BLOCK_M": tile.block_m,
    }
    programs = 2 * row_tiles * problem.heads * problem.batch
    return launch.Plan(programs, args, constants, {"num_warps": 4})
