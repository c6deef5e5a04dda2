"""Tile sizes where no profile rule names them: safe on every chip, good on most."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl

from portattn.dispatch.backend import Config
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

# Legal values of each kernel's parameters; profiles are checked against them.
KERNELS = {
    "forward": {
        "block_m": (16, 32, 64, 128, 256),
        "block_n": (16, 32, 64, 128, 256),
        "warps": (1, 2, 4, 8),
        "stages": (1, 2, 3, 4, 5),
    },
    "decode": {
        "block_m": (16, 32, 64, 128),
        "block_n": (16, 32, 64, 128, 256),
        "warps": (1, 2, 4, 8),
        "stages": (1, 2, 3, 4, 5, 6, 7),
        "programs": (1, 2, 3, 4, 6, 8),
    },
    # The pass that owns keys (dk and dv) and the pass that owns rows (dq).
    "backward": {
        "dkv_block_m": (16, 32, 64, 128),
        "dkv_block_n": (16, 32, 64, 128),
        "dkv_warps": (4, 8),
        "dkv_stages": (1, 2, 3, 4),
        "dq_block_m": (16, 32, 64, 128),
        "dq_block_n": (16, 32, 64, 128),
        "dq_warps": (4, 8),
        "dq_stages": (1, 2, 3, 4),
    },
}

# Tiles of keys that one program takes where a sequence must be split by its own length alone.
RUN_ALONE = 16


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


class Tile(NamedTuple):
    """Rows and keys of a tile, warps that share it, tiles of keys in flight."""

    block_m: int
    block_n: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """Triton's options for a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


class DecodeTile(NamedTuple):
    """A Tile, and the programs for each of the device's multiprocessors."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    programs: int

    @property
    def options(self) -> dict[str, int]:
        """Triton's options for a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def forward(problem: AttentionProblem, family: str, config: Config) -> Tile:
    default = _forward_default(problem, family)
    return default._replace(**config)


def _forward_default(problem: AttentionProblem, family: str) -> Tile:
    """On sm_90a by measurement; elsewhere the largest that keep to the registers."""
    wide = max(problem.head_dim, problem.head_dim_v)
    hopper = family == "sm_90a"
    if problem.dtype == torch.float32:
        return Tile(64, 32, 4, 2) if wide <= 64 else Tile(32, 32, 4, 1)
    if problem.seqlen_q <= 64:
        return Tile(64, 64, 4, 2) if wide <= 128 else Tile(64, 32, 4, 2)
    if wide <= 64:
        return Tile(128, 64, 4, 4 if hopper and problem.seqlen_k > 8192 else 3)
    if wide <= 128:
        if hopper:
            return Tile(128, 128, 8, 3) if problem.seqlen_k > 4096 else Tile(64, 64, 4, 3)
        return Tile(128, 64, 8, 2)
    return Tile(64, 32, 4, 2)


def multiprocessors(device: Device) -> int:
    """How many multiprocessors the device has."""
    return max(1, device.cores)


# Chips whose multiprocessors have shared memory for one program of decode.
_ONE_PROGRAM = frozenset({"sm_86", "sm_89", "sm_120a"})


# Chips whose registers convert float8 (e4m3fn).
_FLOAT8 = frozenset({"sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a"})


def has_float8(family: str) -> bool:
    """Whether kernels read float8 as such; elsewhere they are given its bits."""
    return family in _FLOAT8


# Chips that set up a kernel while the one before it still runs.
_OVERLAPPING = frozenset({"sm_90a", "sm_100a", "sm_103a", "sm_120a"})


def overlaps(family: str) -> bool:
    """Whether a kernel may begin before the one in front of it ends, and wait for it there."""
    cuda = getattr(tl.extra, "cuda", None)
    return family in _OVERLAPPING and hasattr(cuda, "gdc_wait")


def decode_outputs(problem: AttentionProblem, block_m: int) -> int:
    """Tiles of query rows, over all sequences and kv heads."""
    rows = problem.seqlen_q * (problem.heads // problem.kv_heads)
    return problem.batch * problem.kv_heads * cdiv(rows, block_m)


def decode(problem: AttentionProblem, device: Device, config: Config) -> DecodeTile:
    rows = problem.seqlen_q * (problem.heads // problem.kv_heads)
    tile = _decode_default(problem, 16 if rows <= 16 else 32 if rows <= 32 else 64)
    if device.family in _ONE_PROGRAM:
        tile = tile._replace(programs=1)
    elif _few_and_long(problem, device, tile):
        tile = tile._replace(programs=1, warps=8)
    return tile._replace(**config)


def _few_and_long(problem: AttentionProblem, device: Device, tile: DecodeTile) -> bool:
    """Whether no program goes from one output to the next, during which another would load.

    Then a single one with all warps, and half as much under way, is faster on an H100, but for
    pages. A deterministic result must not depend on the batch.
    """
    few = decode_outputs(problem, tile.block_m) <= multiprocessors(device)
    measured = tile[1:] == (64, 4, 3, 2) and problem.kv_dtype in (None, problem.dtype)
    measured = measured and device.family == "sm_90a" and not problem.page_size
    return few and measured and not problem.deterministic


def _decode_default(problem: AttentionProblem, block_m: int) -> DecodeTile:
    """About 32 KiB of keys and values a stage; as many rows as keep to registers beside them."""
    bytes_per_key = (problem.head_dim + problem.head_dim_v) * problem.dtype.itemsize
    if problem.dtype == torch.float32 and bytes_per_key > 256:
        block_m = 16
    if bytes_per_key <= 256:
        return DecodeTile(block_m, 128, 4, 3, 2)
    if bytes_per_key <= 512:
        return DecodeTile(block_m, 64, 4, 3, 2)
    if bytes_per_key <= 1024:
        return DecodeTile(min(block_m, 32), 32, 4, 3, 2)
    if problem.dtype == torch.float32:
        return DecodeTile(block_m, 16, 8, 1, 1)
    return DecodeTile(min(block_m, 32), 16, 8, 2, 1)


class BackwardTiles(NamedTuple):
    """Tiles of the pass that owns keys and of the one that owns rows."""

    dkv: Tile
    dq: Tile


def backward(problem: AttentionProblem, family: str, config: Config) -> BackwardTiles:
    default = _backward_default(problem, family)
    return BackwardTiles(
        _replaced(default.dkv, "dkv_", config),
        _replaced(default.dq, "dq_", config),
    )


def _replaced(tile: Tile, prefix: str, config: Config) -> Tile:
    given = {name: config[prefix + name] for name in Tile._fields if prefix + name in config}
    return tile._replace(**given)


def _backward_default(problem: AttentionProblem, family: str) -> BackwardTiles:
    """The largest tiles whose loops keep to registers, by ptxas, and to the shared memory.

    Hopper reads operands of its products from shared memory; elsewhere they take registers too.
    """
    wide = max(problem.head_dim, problem.head_dim_v)
    hopper = family == "sm_90a"
    if problem.dtype == torch.float32:
        if wide <= 64:
            return BackwardTiles(Tile(32, 32, 8, 1), Tile(32, 32, 8, 1))
        if wide <= 128:
            return BackwardTiles(Tile(16, 32, 8, 1), Tile(32, 16, 8, 1))
        return BackwardTiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1))
    if wide <= 64:
        if hopper:
            return BackwardTiles(Tile(64, 64, 4, 3), Tile(64, 64, 4, 3))
        return BackwardTiles(Tile(32, 128, 8, 2), Tile(128, 64, 8, 2))
    if wide <= 128:
        if family.startswith("gfx"):
            return BackwardTiles(Tile(32, 64, 4, 2), Tile(64, 64, 4, 2))
        if hopper:
            return BackwardTiles(Tile(64, 128, 8, 3), Tile(128, 64, 8, 3))
        return BackwardTiles(Tile(64, 64, 8, 2), Tile(128, 64, 8, 2))
    if hopper and problem.head_dim + problem.head_dim_v <= 320:
        return BackwardTiles(Tile(64, 64, 8, 2), Tile(64, 64, 8, 2))
    return BackwardTiles(Tile(32, 32, 4, 1), Tile(64, 32, 8, 1))
