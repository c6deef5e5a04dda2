"""Attention in tiled torch operations: every feature and dtype, without the compiled library."""

from __future__ import annotations

from torch import Tensor

from portattn.backends.common.definition import empty_result, like_inputs, zero_gradients
from portattn.backends.common.pieces import pieces
from portattn.backends.cpu.torch_backward import piece_backward
from portattn.backends.cpu.torch_forward import piece_forward
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.problem import AttentionProblem


def forward(
    tensors: AttentionTensors, problem: AttentionProblem, config: Config
) -> tuple[Tensor, Tensor]:
    """out and lse of any layout, as Backend.forward returns them."""
    out, lse = empty_result(tensors)
    tile = (config.get("block_m", 128), config.get("block_n", 256))
    for piece in pieces(tensors, problem):
        piece_forward(
            piece,
            problem,
            tensors.rng_state,
            tile,
            piece.queries_of(out),
            piece.row_values_of(lse),
        )
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: AttentionTensors,
    problem: AttentionProblem,
    config: Config,
) -> Gradients:
    """Gradients, as Backend.backward returns them."""
    sums = zero_gradients(tensors, problem, lse.dtype)
    # delta = sum_j p_j dp_j - dlse, one value per row (see torch_backward.py).
    delta = (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1).transpose(-1, -2)
    if grad_lse is not None:
        delta = delta - grad_lse
    tile = (config.get("block_m", 128), config.get("block_n", 256))
    for piece in pieces(tensors, problem):
        piece_backward(piece, problem, tensors, tile, grad_out, delta, lse, sums)
    return like_inputs(sums, tensors)
