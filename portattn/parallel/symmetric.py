"""Sums over ranks through memory that all ranks of a host map: copy engines move, few cores add.

Each rank copies its part of a block into its owner's memory, and then a flag. The owner's stream
waits for the flags, adds the parts in the order of the ranks, and flags the sum, which the others
fetch. No collective's kernel takes cores from the products, and the host waits for nothing. When
the last sums are made all products are over, and cores store faster than copy engines fetch: those
are stored into the others' memory by the kernel that makes them.

    compute  part A.0 | part B.0 | part A.1 | part B.1 |            this rank owns B, a peer owns A
    send              | A.0 > peer          | A.1 > peer
    add                          | B.0 + peer's        | B.1 + peer's > peer
    fetch                                 | A.0 < peer           | A.1

One memory serves call after call without a barrier between. A rank's call is over when it has
every other's sums, so what it then sends finds the parts of the call before added up; and a rank
adds, over its old sums, only what the others sent after they had those.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed import _symmetric_memory as symmetric

from portattn.parallel.schedule import Block, BlockPlan

MOST_PIECES = 16
_ALIGN = 4096
_ADDED = 4096
_GREATER_OR_EQUAL = 0


class SymmetricSum:
    """Adds up what the ranks of `group` compute, all on this host, each on its own `device`.

    Collective to make and to call: every rank with the same shapes and plans, in the same order.
    Its memory grows to what the largest call needs: 2 + 1 / ranks times the bytes of the result.
    """

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self._rank, self._ranks = group.rank(), group.size()
        # Captured graphs go on using the memory that they were captured with.
        self._memories: list[Tensor] = []
        self._views: list[_View] = []
        self._one = torch.ones((), dtype=torch.int32, device=device)
        self._send, self._add, self._fetch = (
            _Stream(torch.cuda.Stream(device, priority=-1)) for _ in range(3)
        )

    def blocks(self, compute: Callable[[slice], Tensor], out: Tensor, plan: BlockPlan) -> Tensor:
        """`out` [rows, columns], filled with the sums over ranks of compute(rows of a block).

        Blocks are computed on the current stream, which in the end waits for the last sum.
        """
        views = self._reserve(plan, out)
        streams = (self._send, self._add, self._fetch)
        main = torch.cuda.current_stream(self._device)
        for stream in streams:
            stream.torch.wait_stream(main)
        parts = []
        for block in plan.order(self._rank):
            part = compute(slice(block.start, block.stop))
            parts.append(part)
            done = main.record_event()
            if block.owner != self._rank:
                self._give(part, block, plan, views, done)
            else:
                self._sum(part, block, plan, views, done, out)
                self._take(block.piece, plan, views, out)
        # Only now may the memory of the parts be used for something else on this stream.
        for stream in streams:
            main.wait_stream(stream.torch)
        return out

    def _give(
        self, part: Tensor, block: Block, plan: BlockPlan, views: list[_View], done: torch.Event
    ) -> None:
        there, first = views[block.owner], block.start - plan.span(block.owner).start
        self._send.torch.wait_event(done)
        self._send.copy(there.part(self._rank, part, first), part.data_ptr(), part.nbytes)
        self._send.copy(there.given(self._rank, block.piece), self._one.data_ptr(), 4)

    def _sum(
        self,
        part: Tensor,
        block: Block,
        plan: BlockPlan,
        views: list[_View],
        done: torch.Event,
        out: Tensor,
    ) -> None:
        here, first = views[self._rank], block.start - plan.span(self._rank).start
        self._add.torch.wait_event(done)
        for source in self._others():
            self._add.wait(here.given(source, block.piece))
        last = block.piece + 1 == len(plan.pieces)
        targets = [views[other] for other in self._others()] if last else [here]
        with torch.cuda.stream(self._add.torch):
            add_kernel[(triton.cdiv(part.numel(), _ADDED),)](
                part, here.elements(here.part(0, part, first), part),
                tuple(view.elements(view.sum(self._rank, part, first), part) for view in targets),
                out[block.start : block.stop], here.stride(part), part.numel(),
                RANK=self._rank, RANKS=self._ranks, BLOCK=_ADDED, num_warps=8,
            )  # fmt: skip
        for target in self._others():
            flag = views[target].added(self._rank, block.piece)
            self._add.copy(flag, self._one.data_ptr(), 4)

    def _take(self, piece: int, plan: BlockPlan, views: list[_View], out: Tensor) -> None:
        last = piece + 1 == len(plan.pieces)
        for owner in self._others():
            block = plan.pieces[piece][owner]
            rows = out[block.start : block.stop]
            first = block.start - plan.span(owner).start
            self._fetch.wait(views[self._rank].added(owner, piece))
            there = views[self._rank if last else owner]
            self._fetch.copy(rows.data_ptr(), there.sum(owner, rows, first), rows.nbytes)

    def _others(self) -> Iterator[int]:
        """The other ranks, the next one first."""
        return ((self._rank + step) % self._ranks for step in range(1, self._ranks))

    def _reserve(self, plan: BlockPlan, out: Tensor) -> list[_View]:
        """Each rank's memory, large enough."""
        longest = max(
            span.stop - span.start for span in (plan.span(rank) for rank in range(plan.ranks))
        )
        needed = -(-longest * out.shape[1] * out.element_size() // _ALIGN) * _ALIGN
        if not self._views or needed > self._views[0].span_bytes:
            self._views = self._allocated(needed)
        return self._views

    def _allocated(self, span_bytes: int) -> list[_View]:
        size = _View.bytes(self._ranks, span_bytes)
        torch.cuda.synchronize(self._device)
        dist.barrier(self._group)
        memory = symmetric.empty(size, dtype=torch.uint8, device=self._device).zero_()
        mapped = symmetric.rendezvous(memory, self._group)
        torch.cuda.synchronize(self._device)
        dist.barrier(self._group)
        self._memories.append(memory)
        return [
            _View(mapped.get_buffer(rank, (size,), torch.uint8), self._ranks, span_bytes)
            for rank in range(self._ranks)
        ]


class _View:
    """A rank's memory: flags, parts of its own span from each rank, and each rank's sums."""

    def __init__(self, memory: Tensor, ranks: int, span_bytes: int) -> None:
        self.span_bytes = span_bytes
        self._memory, self._begin, self._ranks = memory, memory.data_ptr(), ranks

    @staticmethod
    def bytes(ranks: int, span_bytes: int) -> int:
        return _ALIGN + 2 * ranks * span_bytes

    def given(self, source: int, piece: int) -> int:
        """The flag that `source` has given its part of a piece."""
        return self._begin + (source * MOST_PIECES + piece) * 4

    def added(self, owner: int, piece: int) -> int:
        """The flag that `owner` has added its piece up."""
        return self.given(self._ranks + owner, piece)

    def part(self, source: int, like: Tensor, first: int) -> int:
        """Where the part of `source` is, from row `first` of the span."""
        row = like.shape[1] * like.element_size()
        return self._begin + _ALIGN + source * self.span_bytes + first * row

    def sum(self, owner: int, like: Tensor, first: int) -> int:
        """Where the sum of `owner` is, from row `first` of its span."""
        return self.part(self._ranks + owner, like, first)

    def elements(self, address: int, like: Tensor) -> Tensor:
        """The memory from an address on, as elements of like's dtype."""
        return self._memory[address - self._begin :].view(like.dtype)

    def stride(self, like: Tensor) -> int:
        """Elements from one rank's part to the next one's."""
        return self.span_bytes // like.element_size()


@triton.jit
def add_kernel(
    own, parts, targets, out, part_stride, count,
    RANK: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = parts[0] + parts[1] + ... in that order, in fp32, and to each target; parts[RANK] is
    `own`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    added = tl.zeros([BLOCK], tl.float32)
    for rank in tl.static_range(RANKS):
        if rank == RANK:
            part = tl.load(own + at, mask=inside)
        else:
            part = tl.load(parts + rank * part_stride.to(tl.int64) + at, mask=inside)
        added += part.to(tl.float32)
    rounded = added.to(out.dtype.element_ty)
    for number in tl.static_range(len(targets)):
        tl.store(targets[number] + at, rounded, mask=inside)
    tl.store(out + at, rounded, mask=inside)


class _Stream:
    """A stream's copies and flags without torch's share of a launch."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.torch = stream
        self._handle = ctypes.c_void_p(stream.cuda_stream)

    def copy(self, to: int, source: int, count: int) -> None:
        """By the copy engine, also between devices."""
        self._call("cuMemcpyAsync", to, source, count)

    def wait(self, flag: int) -> None:
        """The stream, not the host, waits until the flag is set, and takes it down."""
        driver = _driver()
        for call, value in (
            (driver.cuStreamWaitValue32_v2, 1),
            (driver.cuStreamWriteValue32_v2, 0),
        ):
            _check(
                call(self._handle, ctypes.c_uint64(flag), ctypes.c_uint32(value), _GREATER_OR_EQUAL)
            )

    def _call(self, name: str, to: int, source: int, count: int) -> None:
        arguments = (ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(count))
        _check(getattr(_driver(), name)(*arguments, self._handle))


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"a copy or a flag between devices failed: CUDA driver error {status}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
