"""Tile sizes where no profile rule names them: safe on every chip, good on most."""

from __future__ import annotations

from typing import NamedTuple

import torch

from portattn.dispatch.backend import Config
from portattn.dispatch.problem import AttentionProblem

# Legal values of each kernel's parameters; profiles are checked against them.
KERNELS = {
    "triton.forward": {
        "block_m": (16, 32, 64, 128, 256),
        "block_n": (16, 32, 64, 128, 256),
        "warps": (1, 2, 4, 8),
        "stages": (1, 2, 3, 4, 5),
    },
}


class Tile(NamedTuple):
    """Rows and keys of a tile, warps that share it, tiles of keys in flight."""

    block_m: int
    block_n: int
    warps: int
    stages: int


def forward(problem: AttentionProblem, family: str, config: Config) -> Tile:
    default = _forward_default(problem, family)
    return default._replace(**config)


def _forward_default(problem: AttentionProblem, family: str) -> Tile:
    wide = max(problem.head_dim, problem.head_dim_v)
    if problem.dtype == torch.float32:
        return Tile(64, 32, 4, 2) if wide <= 64 else Tile(32, 32, 4, 1)
    if problem.seqlen_q <= 64:
        return Tile(64, 64, 4, 2) if wide <= 128 else Tile(64, 32, 4, 2)
    if wide <= 64:
        return Tile(128, 64, 4, 3)
    if wide <= 128:
        return Tile(128, 64, 8, 2)
    return Tile(64, 32, 4, 2)
