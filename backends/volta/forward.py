"""The forward's launcher."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.volta import program
from portattn.backends.volta.layout import kernel_problem, readable
from portattn.backends.volta.variants import forward_tile, forward_variant, is_fused, padded
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem


def forward(
    tensors: AttentionTensors, problem: AttentionProblem, config: Config, turing: bool
) -> tuple[Tensor, Tensor]:
    """out and lse of any layout; see AttentionTensors for shapes."""
    tensors = readable(tensors)
    q = tensors.q
    out, lse = results(q, problem)
    if not lse.numel():
        return out, lse
    dim = padded(max(problem.head_dim, problem.head_dim_v))
    tile = forward_tile(dim, turing, is_fused(problem), config)
    variant = forward_variant(tensors, problem, turing, tile)
    call = kernel_problem(tensors, problem, out, lse)
    call.row_tiles = -(-problem.seqlen_q // tile.block_m)
    call.heavy_first = int(problem.window[1] >= 0)
    blocks = call.row_tiles * problem.batch * problem.heads
    if blocks:
        program.launch(variant, blocks, tile.shared_bytes(dim), call)
    return out, lse


def results(q: Tensor, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """out and lse: uninitialised, or blank where packed rows may belong to no sequence."""
    shape = (*q.shape[:-1], problem.head_dim_v)
    lse_shape = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    if problem.layout == "varlen":
        return q.new_zeros(shape), q.new_full(lse_shape, float("-inf"), dtype=torch.float32)
    return q.new_empty(shape), q.new_empty(lse_shape, dtype=torch.float32)
