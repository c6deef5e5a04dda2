"""Sums over ranks through memory that all ranks of a host map: copy engines move, few cores add.

Each rank copies its part of a block into its owner's memory, and then a flag. The owner's stream
waits for the flags, adds the parts in the order of the ranks, and flags the sum, which the others
fetch. No collective's kernel takes cores from the products, and the host waits for nothing.

One memory serves call after call without a barrier between. A rank's call is over when it has
fetched every other's sums, so what it then sends finds the parts of the call before added up; and
a rank adds, over its old sums, only what the others sent after they had fetched those.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
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
    """Products added up over the ranks of `group`, all on this host, each on its own `device`.

    Collective to make and to call: every rank with the same shapes and plans, in the same order.
    Its memory grows to what the largest call needs: the bytes of the result and of a rank's span.
    """

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self._rank, self._ranks = group.rank(), group.size()
        self._memories: list[Tensor] = []
        self._views: list[_View] = []
        self._one = torch.ones((), dtype=torch.int32, device=device)
        self._send, self._add, self._fetch = (
            torch.cuda.Stream(device, priority=-1) for _ in range(3)
        )

    def linear(self, x: Tensor, weight: Tensor, plan: BlockPlan) -> Tensor:
        """The sum over ranks of x @ weight.T, equal on all ranks.

        x [rows, inner], weight [columns, inner] -> [rows, columns]. Blocks of `plan` are computed
        on the current stream, which in the end waits for the last sum.
        """
        out = x.new_empty((x.shape[0], weight.shape[0]))
        views = self._reserve(plan, out)
        main = torch.cuda.current_stream(self._device)
        for stream in (self._send, self._add, self._fetch):
            stream.wait_stream(main)
        parts = []
        for block in plan.order(self._rank):
            part = x[block.start : block.stop] @ weight.T
            parts.append(part)
            done = main.record_event()
            if block.owner != self._rank:
                self._give(part, block, plan, views, done)
            else:
                self._sum(part, block, plan, views, done, out)
                self._take(block.piece, plan, views, out)
        # Only now may the memory of the parts be used for something else on this stream.
        for stream in (self._send, self._add, self._fetch):
            main.wait_stream(stream)
        return out

    def _give(
        self, part: Tensor, block: Block, plan: BlockPlan, views: list[_View], done: torch.Event
    ) -> None:
        self._send.wait_event(done)
        with torch.cuda.stream(self._send):
            there = views[block.owner]
            there.place(self._rank, part, block.start - plan.span(block.owner).start).copy_(part)
            there.given[self._rank, block.piece].copy_(self._one)

    def _sum(
        self,
        part: Tensor,
        block: Block,
        plan: BlockPlan,
        views: list[_View],
        done: torch.Event,
        out: Tensor,
    ) -> None:
        self._add.wait_event(done)
        here, first = views[self._rank], block.start - plan.span(self._rank).start
        with torch.cuda.stream(self._add):
            for source in self._others():
                _await(self._add, here.given[source, block.piece])
            add_kernel[(triton.cdiv(part.numel(), _ADDED),)](
                part, here.place(0, part, first), here.stride(part),
                here.place(self._ranks, part, first), out[block.start : block.stop], part.numel(),
                RANK=self._rank, RANKS=self._ranks, BLOCK=_ADDED, num_warps=8,
            )  # fmt: skip
            for target in self._others():
                views[target].added[self._rank, block.piece].copy_(self._one)

    def _take(self, piece: int, plan: BlockPlan, views: list[_View], out: Tensor) -> None:
        with torch.cuda.stream(self._fetch):
            for owner in self._others():
                block = plan.pieces[piece][owner]
                rows = out[block.start : block.stop]
                _await(self._fetch, views[self._rank].added[owner, piece])
                first = block.start - plan.span(owner).start
                rows.copy_(views[owner].place(self._ranks, rows, first))

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
        # Captured graphs go on using what they were captured with.
        self._memories.append(memory)
        return [
            _View(mapped.get_buffer(rank, (size,), torch.uint8), self._ranks, span_bytes)
            for rank in range(self._ranks)
        ]


class _View:
    """A rank's memory: flags, a part of its span from each rank, and the span's sum."""

    def __init__(self, memory: Tensor, ranks: int, span_bytes: int) -> None:
        self.span_bytes = span_bytes
        flags = memory[: 2 * ranks * MOST_PIECES * 4].view(torch.int32)
        self.given, self.added = flags.view(2, ranks, MOST_PIECES)
        self._spans = memory[_ALIGN:].view(ranks + 1, span_bytes)

    @staticmethod
    def bytes(ranks: int, span_bytes: int) -> int:
        return _ALIGN + (ranks + 1) * span_bytes

    def place(self, number: int, like: Tensor, first: int) -> Tensor:
        """Room for a tensor like `like` from row `first` of a rank's part, or of the sum (last)."""
        start = first * like.shape[1] * like.element_size()
        held = self._spans[number, start : start + like.numel() * like.element_size()]
        return held.view(like.dtype).view(like.shape)

    def stride(self, like: Tensor) -> int:
        """Elements from one rank's part to the next one's."""
        return self.span_bytes // like.element_size()


@triton.jit
def add_kernel(
    own, parts, part_stride, total, out, count,
    RANK: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """total = out = parts[0] + parts[1] + ... in that order, in fp32; parts[RANK] is `own`."""
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
    tl.store(total + at, rounded, mask=inside)
    tl.store(out + at, rounded, mask=inside)


def _await(stream: torch.cuda.Stream, flag: Tensor) -> None:
    """The stream, not the host, waits until the flag is set, and takes it down."""
    driver, address = _driver(), ctypes.c_uint64(flag.data_ptr())
    pointer = ctypes.c_void_p(stream.cuda_stream)
    for call, mode in ((driver.cuStreamWaitValue32_v2, 1), (driver.cuStreamWriteValue32_v2, 0)):
        status = call(pointer, address, ctypes.c_uint32(mode), ctypes.c_uint(_GREATER_OR_EQUAL))
        if status:
            raise RuntimeError(f"{call.__name__} failed with CUDA driver error {status}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
