"""Sums over ranks through memory that all ranks of a host map: copy engines move what products add.

Each rank copies its part of a block into its owner's memory and raises a flag there. The owner's
product of that block begins when the flags are up and adds the parts to its own, before rounding;
then the others fetch the sum. No collective's kernel takes cores from the products, nothing is
added outside of them, and the host waits for nothing.

    compute  A.0 | A.1 | B.0 + peer's | A.2 | B.1 + peer's | B.2 + peer's |     this rank owns B,
    send           A.0 > peer | A.1 > peer  |    A.2 > peer                     its peer owns A
    fetch                            A.0 < peer      A.1 < peer      A.2 < peer

A rank is a block or two ahead with the others' rows, so that parts have come when they are added.

One memory serves call after call without a barrier between. A rank's call is over when it has
fetched every other's sums, so what it then sends finds the parts of the call before added; and a
rank writes over its old sums only when it has the parts that the others sent after fetching those.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed import _symmetric_memory as symmetric

from portattn.parallel.schedule import Block, BlockPlan

MOST_PIECES = 16
_ALIGN = 4096
_GREATER_OR_EQUAL = 0


class SymmetricSum:
    """Adds up what the ranks of `group` compute, all on this host, each on its own `device`.

    Collective to make and to call: every rank with the same shapes and plans, in the same order.
    Its memory grows to what the largest call needs, the bytes of its result.
    """

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self._rank, self._ranks = group.rank(), group.size()
        # Captured graphs go on using the memory that they were captured with.
        self._memories: list[Tensor] = []
        self._views: list[_View] = []
        self._send, self._told, self._fetch = (
            torch.cuda.Stream(device, priority=-1) for _ in range(3)
        )

    def fill(
        self, out: Tensor, rows: Callable[[slice], Tensor], weight: Tensor, plan: BlockPlan
    ) -> None:
        """out [rows, columns] = the sum over ranks of rows(a block's slice) @ weight.T.

        Products run on the current stream, which in the end waits for the last sum.
        """
        views = self._reserve(plan, out)
        main = torch.cuda.current_stream(self._device)
        streams = (self._send, self._told, self._fetch)
        for stream in streams:
            stream.wait_stream(main)
        kept = []
        for block in plan.ahead(self._rank):
            x = rows(slice(block.start, block.stop))
            if block.owner == self._rank:
                self._sum(x, weight, block, plan, views, out)
                self._take(block.piece, plan, views, out)
            else:
                kept.append(self._give(x, weight, block, plan, views))
        # Only now may the memory of the parts be used for something else on this stream.
        for stream in streams:
            main.wait_stream(stream)

    def _give(
        self, x: Tensor, weight: Tensor, block: Block, plan: BlockPlan, views: list[_View]
    ) -> Tensor:
        part = x @ weight.T
        there = views[block.owner]
        first = block.start - plan.span(block.owner).start
        self._send.wait_event(torch.cuda.current_stream(self._device).record_event())
        _copy(self._send, there.part(self._rank, part, first), part.data_ptr(), part.nbytes)
        _raise(self._send, there.given(self._rank, block.piece))
        return part

    def _sum(
        self,
        x: Tensor,
        weight: Tensor,
        block: Block,
        plan: BlockPlan,
        views: list[_View],
        out: Tensor,
    ) -> None:
        main, here = torch.cuda.current_stream(self._device), views[self._rank]
        mine = out[block.start : block.stop]
        first = block.start - plan.span(self._rank).start
        for source in self._others():
            _await(main, here.given(source, block.piece))
        parts = [here.rows(here.part(source, mine, first), mine) for source in self._others()]
        total = parts[0]
        if len(parts) > 1:
            # Not where another's part comes next: a third rank may still be fetching then.
            total = here.rows(here.sum(self._rank, mine, first), mine)
            total.copy_(_added(parts))
        # In place: products with another target copy what they add to first.
        torch.addmm(total, x, weight.T, out=total)
        self._told.wait_event(main.record_event())
        # First: who has fetched the last sum may send the next call's parts, into the same place.
        _copy(self._told, mine.data_ptr(), total.data_ptr(), mine.nbytes)
        for target in self._others():
            _raise(self._told, views[target].added(self._rank, block.piece))

    def _take(self, piece: int, plan: BlockPlan, views: list[_View], out: Tensor) -> None:
        for owner in self._others():
            block = plan.pieces[piece][owner]
            rows = out[block.start : block.stop]
            first = block.start - plan.span(owner).start
            _await(self._fetch, views[self._rank].added(owner, piece))
            _copy(self._fetch, rows.data_ptr(), views[owner].sum(owner, rows, first), rows.nbytes)

    def _others(self) -> Iterator[int]:
        """The other ranks, the next one first."""
        return ((self._rank + step) % self._ranks for step in range(1, self._ranks))

    def _reserve(self, plan: BlockPlan, out: Tensor) -> list[_View]:
        """Each rank's memory, large enough."""
        spans = [plan.span(rank) for rank in range(plan.ranks)]
        longest = max(span.stop - span.start for span in spans)
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
    """A rank's memory, by address: flags, and parts of its span from each rank.

    One part becomes the sum: of two ranks the other's, of more its own, which nobody sends.
    """

    def __init__(self, memory: Tensor, ranks: int, span_bytes: int) -> None:
        self.span_bytes = span_bytes
        self._memory, self._begin, self._ranks = memory, memory.data_ptr(), ranks

    @staticmethod
    def bytes(ranks: int, span_bytes: int) -> int:
        return _ALIGN + ranks * span_bytes

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
        """Where the sum is, from row `first` of the span of `owner`, whose memory this is."""
        return self.part(1 - owner if self._ranks == 2 else owner, like, first)

    def rows(self, address: int, like: Tensor) -> Tensor:
        """The memory from an address on, as a tensor of like's shape and dtype."""
        start = address - self._begin
        return self._memory[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _added(parts: list[Tensor]) -> Tensor:
    """Their sum in fp32, rounded once."""
    total = parts[0].float()
    for part in parts[1:]:
        total += part
    return total.to(parts[0].dtype)


def _copy(stream: torch.cuda.Stream, to: int, source: int, count: int) -> None:
    """By the copy engine where it is between devices; torch's share of a launch is left out."""
    addresses = (ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(count))
    _check(_driver().cuMemcpyAsync(*addresses, ctypes.c_void_p(stream.cuda_stream)))


def _raise(stream: torch.cuda.Stream, flag: int) -> None:
    """Set a flag, here or on another device, after what the stream did before."""
    _value(_driver().cuStreamWriteValue32_v2, stream, flag, 1)


def _await(stream: torch.cuda.Stream, flag: int) -> None:
    """The stream, not the host, waits until a flag is up, and takes it down."""
    _value(_driver().cuStreamWaitValue32_v2, stream, flag, 1)
    _value(_driver().cuStreamWriteValue32_v2, stream, flag, 0)


def _value(call: Callable[..., int], stream: torch.cuda.Stream, flag: int, value: int) -> None:
    pointer = ctypes.c_void_p(stream.cuda_stream)
    _check(call(pointer, ctypes.c_uint64(flag), ctypes.c_uint32(value), _GREATER_OR_EQUAL))


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"a copy or a flag between devices failed: CUDA driver error {status}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
