"""First-level tiles: the rows and keys of one exchange between the Cube and the Vector units.

Each exchange is a fixed number of synchronisations, so a tile takes as many keys as the vendor's
memory planner accepts with every feature on, up to the Unified Buffer's 192 KiB, L1's 512 KiB and
L0C's 128 KiB. The table was made by `tools/ascend/compile_tiled.py --probe` for the Ascend 910B2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from portattn.dispatch.backend import Config
from portattn.dispatch.problem import AttentionProblem

# Rows and columns of the kernel's mask: no less than the rows and keys of a masked block together.
MASK_SIDE = 512
# Keys of a block that is masked, at the most.
EDGE = 128
_FEW_ROWS, _ROWS = 16, 64
_LEAST_PAGE = 16
MAX_WIDTH = 256

# Keys of a tile by (bytes of an element, head dim, rows).
KEYS = {
    (2, 64, 16): 1024, (2, 64, 64): 512,
    (2, 128, 16): 1024, (2, 128, 64): 512,
    (2, 256, 16): 512, (2, 256, 64): 512,
    (4, 64, 16): 1024, (4, 64, 64): 512,
    (4, 128, 16): 512, (4, 128, 64): 512,
    (4, 256, 16): 256, (4, 256, 64): 256,
}  # fmt: skip

_SIZES = {"block_m": (16, 64), "block_n": (16, 32, 64, 128, 256, 512, 1024)}
KERNELS = {"forward": _SIZES, "decode": _SIZES}


class Tile(NamedTuple):
    """Rows and keys of a block, and keys of one that is masked."""

    block_m: int
    block_n: int
    edge: int


def width(dim: int) -> int:
    """The power of two that covers a head dim; the kernel's products need 16."""
    return max(16, 1 << (dim - 1).bit_length())


def tile(problem: AttentionProblem, rows: int, config: Config) -> Tile:
    """The tile of `rows` query rows that share keys, from a profile's sizes or the table."""
    block_m = config.get("block_m", _FEW_ROWS if rows <= _FEW_ROWS else _ROWS)
    probed = max(64, width(max(problem.head_dim, problem.head_dim_v)))
    itemsize = 4 if problem.dtype == torch.float32 else 2
    block_n = config.get("block_n", KEYS[itemsize, probed, block_m])
    if problem.page_size:
        block_n = min(block_n, page_step(problem.page_size))
    return Tile(block_m, block_n, min(block_n, EDGE))


def page_step(page_size: int) -> int:
    """The largest power of two that divides a page, so that no block crosses into the next."""
    return page_size & -page_size


def page_reason(page_size: int) -> str | None:
    """Why pages of a size can't be read, None when they can."""
    if page_size and page_step(page_size) < _LEAST_PAGE:
        return f"pages must hold a multiple of {_LEAST_PAGE} keys, not {page_size}"
    return None
