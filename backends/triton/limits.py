"""What a tile needs of a multiprocessor at the least, and what there is.

A loop over tiles of `stream` rows, `stages` of them in flight, beside a tile of `resident` rows
that stays, each row of `width` elements, takes of shared memory at least

    (resident + (stages - 1) stream) width itemsize

since the last stage may be consumed from where it lands. Its float32 sums and its scores lie in
registers: accumulated elements / (32 warps) for a thread, of which no chip gives it more than 255.
Both are lower bounds: the compiler may need more, and then says so itself.
"""

from __future__ import annotations

from typing import NamedTuple

from portattn.backends.triton import tiles
from portattn.dispatch.backend import Config
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

# KiB of shared memory that one block may have (CUDA programming guide, compute capabilities).
SHARED_KIB = {
    "sm_80": 163,
    "sm_86": 99,
    "sm_87": 163,
    "sm_89": 99,
    "sm_90a": 227,
    "sm_100a": 227,
    "sm_103a": 227,
    "sm_120a": 99,
}
REGISTERS = 255
# These accumulate in a memory of the tensor cores' own.
_TENSOR_MEMORY = frozenset({"sm_100a", "sm_103a"})


class Need(NamedTuple):
    """Bytes of shared memory and registers of each thread, at the least."""

    loop: str
    shared: int
    registers: int


def reasons_against(
    kernel: str, config: Config, problem: AttentionProblem, device: Device
) -> list[str]:
    """Which of the device's limits a configuration exceeds; none where they aren't known."""
    if device.family not in SHARED_KIB:
        return []
    limit, reasons = SHARED_KIB[device.family], []
    for need in needs(kernel, config, problem, device):
        if need.shared > limit * 1024:
            reasons.append(
                f"{need.loop} needs at least {need.shared / 1024:.0f} KiB of shared memory, "
                f"a block has {limit}"
            )
        if need.registers > REGISTERS and device.family not in _TENSOR_MEMORY:
            reasons.append(
                f"{need.loop} needs at least {need.registers} registers a thread, there are "
                f"{REGISTERS}"
            )
    return reasons


def needs(
    kernel: str, config: Config, problem: AttentionProblem, device: Device
) -> tuple[Need, ...]:
    """What each loop of a kernel needs."""
    operation = kernel.rpartition(".")[2]
    if operation == "backward":
        return _backward_needs(tiles.backward(problem, device.family, config), problem)
    if operation == "decode":
        tile = tiles.Tile(*tiles.decode(problem, device, config)[:4])
    else:
        tile = tiles.forward(problem, device.family, config)
    in_flight = tile.stages - 1
    size, kv_size = problem.dtype.itemsize, (problem.kv_dtype or problem.dtype).itemsize
    dim, dim_v = problem.head_dim, problem.head_dim_v
    shared = tile.block_m * dim * size + in_flight * tile.block_n * (dim + dim_v) * kv_size
    sums = tile.block_m * (dim_v + tile.block_n)
    return (Need(operation, shared, sums // (32 * tile.warps)),)


def _backward_needs(pair: tiles.BackwardTiles, problem: AttentionProblem) -> tuple[Need, ...]:
    """dkv keeps keys and streams rows, dq keeps rows and streams keys."""
    width, size = problem.head_dim + problem.head_dim_v, problem.dtype.itemsize
    found = []
    for loop, tile, resident, stream, columns in (
        ("dkv", pair.dkv, pair.dkv.block_n, pair.dkv.block_m, width),
        ("dq", pair.dq, pair.dq.block_m, pair.dq.block_n, problem.head_dim),
    ):
        shared = (resident + (tile.stages - 1) * stream) * width * size
        sums = resident * columns + tile.block_m * tile.block_n
        found.append(Need(loop, shared, sums // (32 * tile.warps)))
    return tuple(found)
