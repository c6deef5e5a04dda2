"""The launchers of decoding: split over keys for a single query, else the forward's."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.volta import forward, program
from portattn.backends.volta.layout import kernel_problem, readable
from portattn.backends.volta.variants import WARPS, Variant, padded, problem_constants
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem

_ROWS = 8  # heads of a group that one block takes
_MOST_SPLITS = 32
_KEYS_PER_SPLIT = 256
_MAX_HEAD_DIM = 128  # a warp holds the outputs of all dims in registers


def decode(
    tensors: AttentionTensors, problem: AttentionProblem, config: Config, turing: bool
) -> tuple[Tensor, Tensor]:
    """out and lse over a KV cache; see AttentionTensors for shapes."""
    if not splits_keys(problem):
        return forward.forward(tensors, problem, {}, turing)
    tensors = readable(tensors)
    out, lse = forward.results(tensors.q, problem)
    if not lse.numel():
        return out, lse
    dim = padded(max(problem.head_dim, problem.head_dim_v))
    constants = {"D": dim, "BLOCKS": 2, **problem_constants(tensors, problem)}
    call = kernel_problem(tensors, problem, out, lse)
    call.keys_per_split = config.get("keys_per_split", keys_per_split(problem.seqlen_k))
    call.splits = max(1, -(-problem.seqlen_k // call.keys_per_split))
    rows = problem.batch * problem.heads
    if call.splits > 1:
        partial = out.new_empty(rows * call.splits * (dim + 2), dtype=torch.float32)
        call.partial = partial.data_ptr()
    groups = problem.batch * problem.kv_heads * -(-call.group // _ROWS)
    variant = Variant("decode", False, tuple(constants.items()))
    shared = 4 * WARPS * _ROWS * (dim + 2) + _ROWS * (128 if dim <= 64 else 256)
    program.launch(variant, groups * call.splits, shared, call)
    if call.splits > 1:
        program.launch(Variant("join", False, variant.constants), rows, 0, call)
    return out, lse


def splits_keys(problem: AttentionProblem) -> bool:
    """Whether the decode kernel runs the problem: one query, all heads seeing the same keys."""
    dim = max(problem.head_dim, problem.head_dim_v)
    return problem.seqlen_q == 1 and not (problem.bias or problem.mask) and dim <= _MAX_HEAD_DIM


def keys_per_split(seqlen_k: int) -> int:
    """Keys of a split, by the cache's size alone: a graph and any batch then split alike."""
    size = _KEYS_PER_SPLIT
    while size * _MOST_SPLITS < seqlen_k:
        size *= 2
    return size
