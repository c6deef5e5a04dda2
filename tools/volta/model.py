"""A model of a V100's pipes: what the forward's loop may reach. Modelled, never measured.

One block has a warp on each of the four sub-cores of a multiprocessor. In cycles of one tile of
keys (Jia et al., arXiv 1804.06826; CUDA programming guide, throughput of arithmetic instructions):

  tensor   8 for each mma.m8n8k4 of a warp, which is 1024 multiply-adds on 128 a cycle
  memory   shared by the four warps: a wavefront of 128 bytes each. 4 for an LDS.128, STS.128 or
           LDG.128 of a warp, 1 for a shuffle or a narrow store
  special  8 for MUFU (4 lanes a cycle), 2 for a conversion
  issue    1 for each instruction; a product is four

Two numbers bracket what may come out: the busiest pipe, as if blocks on a multiprocessor hid all of
each other's waits; and one block alone, its products with their loads, then its softmax, then four
barriers of about 40 cycles, with nothing hidden.

Clock 1.53 GHz, 80 multiprocessors. The peers' layouts are those of the table in volta_tiles.cuh,
with their own detour of P; everything else is ours, so that only the layouts are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CLOCK, _MULTIPROCESSORS, _BARRIERS = 1.53e9, 80, 4 * 40


@dataclass(frozen=True)
class Loop:
    """Counts of one warp over one tile of keys; wavefronts of all that passes shared memory."""

    flops: int  # of the four warps
    products: int
    wavefronts: int
    special: int
    conversions: int
    others: int

    def hidden(self) -> float:
        """Cycles of one tile of keys where the busiest pipe is all that counts."""
        special = 8 * self.special + 2 * self.conversions
        issue = 4 * self.products + self.others
        return max(8 * self.products, 4 * self.wavefronts, special, issue)

    def alone(self) -> float:
        """Cycles of one tile of keys with nothing hidden between its parts."""
        special = 8 * self.special + 2 * self.conversions
        return max(8 * self.products, 4 * self.wavefronts) + max(special, self.others) + _BARRIERS

    def teraflops(self, cycles: float) -> float:
        """Of a whole V100, on long sequences without a mask."""
        return self.flops / cycles * _CLOCK * _MULTIPROCESSORS / 1e12

    def memory_share(self) -> float:
        """Wavefronts against the time of the products."""
        return 4 * self.wavefronts / (8 * self.products)


def counted(sass: Mapping[str, int], flops: int) -> Loop:
    """Our loop, from its machine code."""
    products = sass["HMMA"] // 4
    wide = sass["LDS"] + sass["STS"] + sass["LDG"]
    counted = sum(sass[name] for name in ("HMMA", "LDS", "STS", "LDG", "SHFL", "MUFU", "F2F"))
    return Loop(
        flops,
        products,
        4 * wide + sass["SHFL"],
        sass["MUFU"],
        sass["F2F"],
        sum(sass.values()) - counted + wide + sass["SHFL"] + sass["MUFU"] + sass["F2F"],
    )


def peer(ours: Loop, rows: int, head_dim: int, block_n: int, through_shared: bool) -> Loop:
    """A layout that reads 8 bytes of shared memory per lane and product, `rows` a warp.

    through_shared: P is written as float16 to shared memory, two numbers a lane and store, and read
    as 8 bytes a lane and product again (counted in the 8); otherwise one shuffle moves half of it.
    """
    products = 2 * rows * block_n * head_dim // 1024
    operands = 2 * products  # 256 bytes each
    tile = 2 * block_n * head_dim * 2 // 128 // 4  # k and v in: a warp stores a quarter
    fetched = tile
    detour = rows * block_n // 64 if through_shared else 2 * (rows // 16) * (block_n // 16)
    scale = rows / 32 * block_n / (ours.flops / (4 * 4 * 32 * head_dim))
    return Loop(
        4 * 4 * rows * block_n * head_dim,
        products,
        operands + tile + fetched + detour,
        round(ours.special * scale),
        round(ours.conversions * scale),
        round(ours.others * scale),
    )
