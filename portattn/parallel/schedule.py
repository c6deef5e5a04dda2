"""Which rows a rank computes when, so that their sums over ranks travel behind the next rows' work.

The rows of a product are cut into a span for each rank, its owner, which adds up the ranks' parts
of it; and each span into pieces. A rank computes the first piece of every span, its own last, then
the second pieces, and so on: what it sends is on its way while it computes, and the others' parts
of its own piece have come when it gets there. Every sum is taken in the order of the ranks, so it
doesn't depend on the pieces.

The other kind of plan, "all_reduce", leaves the sums to the group's library: blocks run from the
first row to the last on every rank, and each is reduced while the next one is computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from portattn.dispatch.profile_schema import BlockRule
from portattn.errors import ArgumentError

# What a plan is chosen from: pieces of a span, beside each other. A small first one sends early, a
# small last one leaves little to fetch when all products are over.
_PIECES = (
    *((1,) * count for count in (1, 2, 3, 4, 6, 8)),
    *((3, 1), (5, 2, 1), (2, 2, 1), (1, 2, 1), (3, 3, 1), (4, 4, 2, 1), (2, 4, 4, 2, 1)),
)
# What a library's reduction reaches of the link, and its latency in steps.
_REDUCTION, _REDUCTION_STEPS = 0.85, 3
# Fewer rows than a matrix unit's tile save nothing.
_ROWS = 128
# The owner of a block that no rank adds up alone.
EVERY = -1
Reduction = Literal["owner", "all_reduce"]


@dataclass(frozen=True)
class Block:
    """Rows start to stop of the product, added up by rank `owner`; the `piece`th of its span.

    With owner EVERY it is the `piece`th of all rows, and the group's library adds it up.
    """

    owner: int
    piece: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class BlockPlan:
    """Row blocks in the order of pieces, one for each rank in each piece; some may be empty.

    With the reduction "all_reduce" a piece is one block, which all ranks compute at the same turn.
    """

    rows: int
    ranks: int
    pieces: tuple[tuple[Block, ...], ...]
    reduction: Reduction = "owner"

    def order(self, rank: int) -> Iterator[Block]:
        """The blocks as `rank` computes them: of each piece the next rank's first, its own last."""
        if self.reduction == "all_reduce":
            yield from itertools.chain.from_iterable(self.pieces)
            return
        for blocks in self.pieces:
            for step in range(1, self.ranks + 1):
                yield blocks[(rank + step) % self.ranks]

    @property
    def lead(self) -> int:
        """Pieces that a rank is ahead with the others' blocks: while their parts of its own are on
        their way, it has something to compute. Small pieces take less time than a part's way."""
        return 1 if len(self.pieces) < 4 else 2

    def ahead(self, rank: int) -> Iterator[Block]:
        """As `order`, but with the lead."""
        pieces, lead = self.pieces, self.lead
        for number in range(len(pieces) + lead):
            if number < len(pieces):
                for step in range(1, self.ranks):
                    yield pieces[number][(rank + step) % self.ranks]
            if number >= lead:
                yield pieces[number - lead][rank]

    def span(self, owner: int) -> slice:
        """The rows that `owner` adds up."""
        return slice(self.pieces[0][owner].start, self.pieces[-1][owner].stop)


@dataclass(frozen=True)
class Speeds:
    """What a plan's time depends on: rates of one device and its link, in flop/s and bytes/s.

    `multiply` is the matrix product's; `send` the link's, each way; `start` the seconds between
    one operation and the next on the same data, `host` those that a block keeps the host; `cores`
    the units that share a product's tiles.
    """

    multiply: float
    send: float
    start: float
    cores: int = 1
    host: float = 0.0


def cut(rows: int, ranks: int, pieces: Sequence[float] = (1.0,)) -> BlockPlan:
    """Spans that differ by a row at most, and in each the pieces in the given proportions."""
    if rows < 0 or ranks < 1 or not pieces or min(pieces) <= 0:
        raise ArgumentError(
            "rows, ranks, pieces", "rows from 0, ranks from 1 and positive pieces", (rows, ranks)
        )
    bounds = [rows * rank // ranks for rank in range(ranks + 1)]
    shares = [sum(pieces[:number]) / sum(pieces) for number in range(1, len(pieces))]
    cuts = []
    for first, end in itertools.pairwise(bounds):
        inner = [first + _rounded(end - first, share) for share in shares]
        cuts.append([first, *inner, end])
    planned = tuple(
        tuple(Block(owner, number, *span[number : number + 2]) for owner, span in enumerate(cuts))
        for number in range(len(pieces))
    )
    return BlockPlan(rows, ranks, planned)


def in_turn(rows: int, ranks: int, pieces: Sequence[float] = (1.0,)) -> BlockPlan:
    """Blocks of all rows in the given proportions, each reduced by the group's library."""
    whole = cut(rows, 1, pieces)
    blocks = tuple((Block(EVERY, b.piece, b.start, b.stop),) for (b,) in whole.pieces)
    return BlockPlan(rows, ranks, blocks, "all_reduce")


def of_rules(rules: Sequence[BlockRule], rows: int, ranks: int) -> BlockPlan | None:
    """The plan of a profile's first rule for so many rows, None where it has none for them."""
    for rule in rules:
        if rule.rows is None or rule.rows.holds(rows):
            return (in_turn if rule.reduction == "all_reduce" else cut)(rows, ranks, rule.pieces)
    return None


def best(
    rows: int, inner: int, columns: int, itemsize: int, ranks: int, speeds: Speeds
) -> BlockPlan:
    """The plan with the shortest modelled time; one piece where cutting doesn't pay."""
    plans = [
        cut(rows, ranks, pieces)
        for pieces in _PIECES
        if len(pieces) == 1 or rows // ranks * pieces[-1] >= sum(pieces) * _ROWS
    ]
    return min(plans, key=lambda plan: modelled(plan, inner, columns, itemsize, speeds).total)


@dataclass(frozen=True)
class Modelled:
    """Seconds: all of a plan, its products alone, and its transfers alone."""

    total: float
    compute: float
    transfer: float

    @property
    def hidden(self) -> float:
        """The share of the transfers' time that the products cover."""
        return 1.0 - (self.total - self.compute) / self.transfer if self.transfer else 1.0


def modelled(plan: BlockPlan, inner: int, columns: int, itemsize: int, speeds: Speeds) -> Modelled:
    """The time of a plan in which every rank is alike, as rank 0 sees it."""
    row_bytes, peers = columns * itemsize, plan.ranks - 1
    clock = link = compute = transfer = 0.0
    came = [0.0] * len(plan.pieces)
    for block in plan.ahead(0):
        took = product_seconds(block.rows, inner, columns, speeds)
        sent = block.rows * row_bytes / speeds.send
        compute += took
        if block.owner != 0:
            clock += took
            link = came[block.piece] = max(link, clock + speeds.start) + sent
            transfer += sent
        else:
            clock = max(clock, came[block.piece] + speeds.start) + took
            link = max(link, clock + speeds.start) + peers * sent
            transfer += peers * sent
    whole = max(clock, link) + speeds.start if peers else clock
    return Modelled(max(whole, speeds.host * plan.ranks * len(plan.pieces)), compute, transfer)


def plain_seconds(
    rows: int, inner: int, columns: int, itemsize: int, ranks: int, speeds: Speeds
) -> float:
    """The product of all rows, then one all-reduce of the group's library."""
    moved = rows * columns * itemsize * 2 * (ranks - 1) / ranks
    reduced = _REDUCTION_STEPS * speeds.start + moved / (speeds.send * _REDUCTION)
    return product_seconds(rows, inner, columns, speeds) + reduced


def product_seconds(rows: int, inner: int, columns: int, speeds: Speeds) -> float:
    """Of rows x inner by inner x columns in whole waves of tiles of 128 x 256."""
    if not rows:
        return 0.0
    flops = 2.0 * rows * inner * columns
    if speeds.cores == 1:
        return flops / speeds.multiply
    tiles = math.ceil(rows / _ROWS) * math.ceil(columns / 256)
    waves = math.ceil(tiles / speeds.cores)
    tile = 2.0 * _ROWS * 256 * inner / (speeds.multiply / speeds.cores)
    return waves * tile + speeds.start / 2


def _rounded(length: int, share: float) -> int:
    """A share of a span's rows, in whole tiles where it has several."""
    tile = _ROWS if length >= 2 * _ROWS else 1
    return min(round(length * share / tile) * tile, length)
