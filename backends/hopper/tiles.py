"""Tile sizes where no profile rule names them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from portattn.dispatch.backend import Config
from portattn.dispatch.problem import AttentionProblem

# Legal values of each kernel's parameters; profiles are checked against them.
# warpgroups: of 64 rows each. turns: warpgroups take turns at the tensor cores. persistent: one
# program a multiprocessor, or one a tile. section: heads worked on side by side, longest tiles
# first; 0 is one head after the other. own_out: memory of its own for the output. sums: dq is added
# up by copies from shared memory (1) or by each thread (2).
KERNELS = {
    "forward": {
        "warpgroups": (1, 2, 3),
        "block_n": (32, 64, 128),
        "stages": (1, 2, 3, 4, 5, 6),
        "turns": (0, 1),
        "persistent": (0, 1),
        "section": (0, 1, 2, 4, 8, 16, 32, 64),
        "own_out": (0, 1),
    },
    "backward": {"block_m": (64, 128), "stages": (1, 2, 3), "sums": (1, 2)},
}

# Bytes of shared memory that a block may have.
SHARED = 227 * 1024
# Of these, for barriers and for what the compiler shares between warps.
BARRIERS = 1024


class Registers(NamedTuple):
    """Of a thread: at the launch, and of a consumer's once the copying warps gave theirs up."""

    launch: int
    consumer: int


# By the number of consumer warpgroups: a multiprocessor has 65536.
REGISTERS = {1: Registers(232, 240), 2: Registers(168, 240), 3: Registers(128, 160)}


class Tile(NamedTuple):
    """See KERNELS."""

    warpgroups: int
    block_n: int
    stages: int
    turns: int
    persistent: int
    section: int
    own_out: int


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def halves(dim: int) -> tuple[int, int]:
    """(a, b), powers of two from 16 up (b may be 0) with a + b >= dim and little to spare."""
    if dim <= 16:
        return 16, 0
    a = 1 << (dim.bit_length() - 1)
    if a == dim:
        return a, 0
    b = max(16, 1 << (dim - a - 1).bit_length())
    return (2 * a, 0) if b >= a else (a, b)


def shared_bytes(problem: AttentionProblem, tile: Tile) -> int:
    """Shared memory of the forward's tiles; barriers come on top."""
    d, dv = sum(halves(problem.head_dim)), sum(halves(problem.head_dim_v))
    rows = 64 * tile.warpgroups * (d + (dv if tile.own_out else 0))
    return 2 * (rows + tile.stages * tile.block_n * (d + dv))


def forward(problem: AttentionProblem, config: Config) -> Tile:
    """The profile's tile, completed by what was fastest on an H100 (benchmarks/notes/hopper.md)."""
    wide = max(sum(halves(problem.head_dim)), sum(halves(problem.head_dim_v)))
    tile = Tile(
        warpgroups=3 if wide <= 64 else 2,
        block_n=128,
        stages=2,
        turns=1,
        persistent=0,
        section=8 if problem.window != (-1, -1) else 0,
        own_out=0,
    )
    if problem.seqlen_q <= 64:
        tile = tile._replace(warpgroups=1)
    if shared_bytes(problem, tile) > SHARED - BARRIERS:
        tile = tile._replace(block_n=64)
    return tile._replace(**config)


def tuning_space(kernel: str, problem: AttentionProblem) -> list[Config]:
    """What has been fastest for some problem, and its neighbours."""
    if kernel.endswith("backward"):
        return [
            {"block_m": rows, "stages": stages, "sums": sums}
            for rows, stages, sums in itertools.product((64, 128), (2, 3), (1, 2))
            if not _backward_reasons(problem, {"block_m": rows, "stages": stages, "sums": sums})
        ]
    masked = problem.window != (-1, -1)
    schedules = [
        {"persistent": 0, "own_out": 0, "section": section}
        for section in ((4, 8, 16) if masked else (0,))
    ]
    schedules += [
        {"persistent": 1, "own_out": own_out, "section": 8 if masked else 0} for own_out in (0, 1)
    ]
    return [
        {"warpgroups": groups, "block_n": keys, "stages": stages, "turns": turns, **schedule}
        for groups, keys, stages, turns in itertools.product((2, 3), (64, 128), (2, 3, 4), (0, 1))
        for schedule in schedules
    ]


def reasons_against(kernel: str, config: Config, problem: AttentionProblem) -> list[str]:
    """Why a configuration doesn't fit a multiprocessor; empty when it may."""
    if kernel.endswith(".backward"):
        return _backward_reasons(problem, config)
    tile = forward(problem, config)
    reasons = []
    shared = shared_bytes(problem, tile)
    if shared > SHARED - BARRIERS:
        reasons.append(
            f"needs {shared / 1024:.0f} KiB of shared memory, a block has {SHARED // 1024}"
        )
    # Scores, weights in half precision, and the output: 64 rows over 128 threads.
    registers = (3 * tile.block_n // 2 + sum(halves(problem.head_dim_v))) // 2
    if registers > REGISTERS[tile.warpgroups].consumer:
        reasons.append(
            f"needs at least {registers} registers a thread, {tile.warpgroups} warpgroups leave "
            f"{REGISTERS[tile.warpgroups].consumer}"
        )
    return reasons


def _backward_reasons(problem: AttentionProblem, config: Config) -> list[str]:
    tile, width = backward(problem, config), backward_width(problem)
    shared = 2 * width * (2 * tile.stages * tile.block_m + 2 * 128)
    shared += tile.block_m * 2 * 4 * tile.stages
    shared += tile.block_m * 2 * 2 * 128 if tile.sums else 0
    shared += tile.block_m * 4 * width if tile.sums == 1 else 0
    if tile.block_m == 128 and width == 128:
        return ["128 rows of head dims beyond 64 need more registers than a thread has"]
    if shared <= SHARED - BARRIERS:
        return []
    return [f"needs {shared / 1024:.0f} KiB of shared memory, a block has {SHARED // 1024}"]


MAX_HEAD_DIM_BACKWARD = 128


class BackwardTile(NamedTuple):
    """Rows of a tile, tiles of rows in flight, and how dq is added up; keys are 128."""

    block_m: int
    stages: int
    sums: int


def backward(problem: AttentionProblem, config: Config) -> BackwardTile:
    """The profile's tile, completed by what benchmarks/notes/hopper.md predicts or found."""
    tile = BackwardTile(block_m=64, stages=2, sums=1)
    tile = tile._replace(**config)
    return tile._replace(sums=0) if problem.deterministic else tile


class QueryTile(NamedTuple):
    """Keys of a tile, and tiles of keys in flight, where dq is computed on its own."""

    block_n: int
    stages: int


def query_gradient(problem: AttentionProblem) -> QueryTile:
    return QueryTile(block_n=128 if backward_width(problem) == 64 else 64, stages=2)


def backward_width(problem: AttentionProblem) -> int:
    """The power of two that covers both head dimensions."""
    return 64 if max(problem.head_dim, problem.head_dim_v) <= 64 else 128
