"""Which constants a problem's kernel is compiled with, and the tiles it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from portattn.backends.volta.layout import BIAS_TYPES, aligned
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem

KERNELS = Path(__file__).parent / "kernels"
# Query rows of a block (a warp has a quarter of them) and keys of a tile.
TILES: dict[str, dict[str, tuple[int, ...]]] = {
    "forward": {"block_m": (64, 128), "block_n": (32, 48, 64)},
    "decode": {"keys_per_split": (128, 256, 512, 1024, 2048, 4096)},
}
WARPS = 4
# Of one block (CUDA programming guide, compute capabilities).
SHARED_KIB = {"sm_70": 96, "sm_72": 96, "sm_75": 64}
_FILES = {
    "forward": "forward.cu",
    "decode": "decode.cu",
    "join": "decode.cu",
    "gradient_q": "backward.cu",
    "gradient_kv": "backward.cu",
}


@dataclass(frozen=True)
class Variant:
    """A kernel with its constants; `turing` chooses the tiles of sm_75 over those of sm_70."""

    kernel: str
    turing: bool
    constants: tuple[tuple[str, int], ...]

    @cached_property
    def source(self) -> str:
        """One file for NVRTC: definitions, then the kernel's parts."""
        lines = [f"#define TURING {int(self.turing)}"]
        lines += [f"#define {name} {value}" for name, value in self.constants]
        return "\n".join([*lines, *(part.read_text() for part in self.parts)])

    @property
    def parts(self) -> tuple[Path, ...]:
        """Files that make up the kernel, in order."""
        tiles = "turing_tiles.cuh" if self.turing else "volta_tiles.cuh"
        names = ("primitives.cuh", "problem.cuh", tiles, _FILES[self.kernel])
        return tuple(KERNELS / name for name in names)

    @property
    def file_name(self) -> str:
        """Where its PTX lies in a folder of compiled kernels; changes with the source."""
        return f"{self.kernel}-{sha256(self.source.encode()).hexdigest()[:16]}.ptx"

    @property
    def threads(self) -> int:
        return 32 * WARPS

    def __getitem__(self, name: str) -> int:
        return dict(self.constants)[name]


@dataclass(frozen=True)
class Tile:
    """Rows of a block, keys of a tile, blocks that a multiprocessor should hold."""

    block_m: int
    block_n: int
    blocks: int

    def shared_bytes(self, head_dim: int) -> int:
        """q beside one buffer that k and v take turns in; rows are padded to a power of two."""
        pitch = 128 if head_dim <= 64 else 256 if head_dim <= 128 else 512
        return (self.block_m + self.block_n) * pitch


def tile_reasons(tile: Tile, head_dim: int, family: str) -> list[str]:
    """Why a tile of the forward can't run on a family: shared memory, or registers at the least."""
    reasons = []
    shared, limit = tile.shared_bytes(head_dim) // 1024, SHARED_KIB.get(family)
    if limit is not None and shared > limit:
        reasons.append(f"needs {shared} KiB of shared memory, a block has {limit}")
    # Outputs, scores, and a tile of k or v on its way.
    held = tile.block_m * (head_dim + tile.block_n) + tile.block_n * head_dim // 2
    if held > 255 * 32 * WARPS:
        reasons.append(f"needs at least {held // (32 * WARPS)} registers a thread, there are 255")
    return reasons


def padded(head_dim: int) -> int:
    """The head dim of the tiles that a head dim takes."""
    return next(dim for dim in (32, 64, 96, 128, 192, 256) if head_dim <= dim)


def forward_tile(head_dim: int, turing: bool, fused: bool, config: Config) -> Tile:
    """Tiles by the profile, or where it says nothing the largest whose loop doesn't spill."""
    if turing or head_dim > 128:
        block_m, block_n = 64, 64 if head_dim <= 128 else 32
    else:
        block_m, block_n = 128, {32: 64, 64: 64, 96: 48, 128: 48 if fused else 32}[head_dim]
    block_m = config.get("block_m", block_m)
    block_n = config.get("block_n", block_n)
    return Tile(block_m, block_n, 2)


def forward_variant(
    tensors: AttentionTensors, problem: AttentionProblem, turing: bool, tile: Tile
) -> Variant:
    dim = padded(max(problem.head_dim, problem.head_dim_v))
    constants = {
        "D": dim,
        "ROW_TILES": tile.block_m // (16 * WARPS),
        "BLOCK_N": tile.block_n,
        "BLOCKS": tile.blocks,
        **problem_constants(tensors, problem),
    }
    return Variant("forward", turing, tuple(constants.items()))


def is_fused(problem: AttentionProblem) -> bool:
    """Whether scores are the product times a positive scale and nothing else."""
    plain = not (problem.softcap or problem.alibi or problem.bias)
    return plain and problem.softmax_scale > 0


def problem_constants(tensors: AttentionTensors, problem: AttentionProblem) -> dict[str, int]:
    """What problem.cuh is compiled for."""
    bias = tensors.bias
    return {
        "ELEMENT": BIAS_TYPES.index(problem.dtype),
        "ALIGNED": int(aligned(tensors.q, tensors.k, tensors.v)),
        "PAGED": int(tensors.block_table is not None),
        "FUSED": int(is_fused(problem)),
        "SOFTCAP": int(problem.softcap != 0),
        "ALIBI": int(problem.alibi),
        "BIAS": 0 if bias is None else 1 + BIAS_TYPES.index(bias.dtype),
        "MASK": int(problem.mask),
        "SINKS": int(problem.sinks),
    }
