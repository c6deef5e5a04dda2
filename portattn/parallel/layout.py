"""Which positions of each sequence a rank holds, and what its queries see of another rank's keys.

With the window's sides l and r and offset = Sk - Sq, the query at position i sees the keys at
positions i + offset - l .. i + offset + r. Of the keys that a rank holds, in the order in which
they lie there, those are a range too, whose ends

    low(i) = keys held below i + offset - l        high(i) = keys held up to i + offset + r

rise by one or stay from one query to the next. Where neither end changes its slope, the scores are
a problem of the library's own: an end that stays is no bound, one that rises is the diagonal.
So each rank's queries are cut where a slope changes, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import Literal, NamedTuple, get_args

from portattn.errors import ArgumentError

Segment = tuple[int, int]  # positions start .. stop of one sequence
Share = tuple[Segment, ...]  # what a rank holds of one sequence, in this order, never descending
Pattern = Literal["zigzag", "contiguous"]
Which = Literal["queries", "keys"]
Window = tuple[int, int]


class Block(NamedTuple):
    """Rows and keys [start, stop), counted as they lie on their ranks, and the window over them.

    The window is (-1 or at least 0, -1 or 0); a right side of 0 is causal.
    """

    rows: tuple[int, int]
    keys: tuple[int, int]
    window: Window


@dataclass(frozen=True)
class Layout:
    """How sequences of `queries` and `keys` tokens are spread over ring x ulysses ranks.

    A ring rank holds one contiguous part of each sequence, or with "zigzag" the r-th and the r-th
    from last of 2 x ring parts, which gives every rank the same work under a causal mask. Its
    tokens, in that order, are split evenly among its ulysses ranks. Parts may be empty. Dense
    tensors have one entry, the length that all sequences of the batch share.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    ring: int = 1
    ulysses: int = 1
    pattern: Pattern = "zigzag"

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.keys):
            expected = f"must have a length for each of the {len(self.queries)} sequences"
            raise ArgumentError("keys", expected, self.keys)
        for name in ("queries", "keys"):
            if any(length < 0 for length in getattr(self, name)):
                raise ArgumentError(name, "must be lengths of at least 0", getattr(self, name))
        for name in ("ring", "ulysses"):
            if getattr(self, name) < 1:
                raise ArgumentError(name, "must be at least 1", getattr(self, name))
        if self.pattern not in get_args(Pattern):
            known = " or ".join(get_args(Pattern))
            raise ArgumentError("pattern", f"must be {known}", repr(self.pattern))

    def ring_shares(self, which: Which, ring_rank: int) -> tuple[Share, ...]:
        """What a ring rank's ulysses ranks hold together, per sequence."""
        return _ring_shares(self, which, ring_rank)

    def shares(self, which: Which, ring_rank: int, ulysses_rank: int = 0) -> tuple[Share, ...]:
        """What one rank holds, per sequence."""
        whole = self.ring_shares(which, ring_rank)
        return tuple(_part(share, self.ulysses, ulysses_rank) for share in whole)

    def counts(self, which: Which, ring_rank: int, ulysses_rank: int | None = None) -> list[int]:
        """Tokens of each sequence on a rank, or on all ulysses ranks of a ring rank."""
        if ulysses_rank is None:
            return [held(share) for share in self.ring_shares(which, ring_rank)]
        return [held(share) for share in self.shares(which, ring_rank, ulysses_rank)]

    def blocks(self, ring_rank: int, source: int, window: Window) -> tuple[tuple[Block, ...], ...]:
        """What a ring rank's queries see of the keys of ring rank `source`, per sequence."""
        return tuple(
            blocks(rows, keys, seqlen_k - seqlen_q, window)
            for rows, keys, seqlen_q, seqlen_k in zip(
                self.ring_shares("queries", ring_rank),
                self.ring_shares("keys", source),
                self.queries,
                self.keys,
                strict=True,
            )
        )

    def ring_steps(self, window: Window) -> int:
        """How many ranks' keys must pass by before none is left that somebody would see."""
        return _ring_steps(self, window)


@lru_cache(maxsize=4096)
def _ring_shares(layout: Layout, which: Which, ring_rank: int) -> tuple[Share, ...]:
    ranks = layout.ring
    if layout.pattern == "contiguous" or ranks == 1:
        return tuple(_cut(((0, n),), ranks, (ring_rank,)) for n in getattr(layout, which))
    parts = (ring_rank, 2 * ranks - 1 - ring_rank)
    return tuple(_cut(((0, n),), 2 * ranks, parts) for n in getattr(layout, which))


@lru_cache(maxsize=1024)
def _ring_steps(layout: Layout, window: Window) -> int:
    ranks = range(layout.ring)
    for step in range(layout.ring - 1, 0, -1):
        if any(any(layout.blocks(r, (r - step) % layout.ring, window)) for r in ranks):
            return step + 1
    return 1


def _cut(share: Share, parts: int, wanted: Iterable[int]) -> Share:
    """Some of `parts` even parts of a share's tokens."""
    total = held(share)
    found: list[Segment] = []
    for part in wanted:
        first, last = part * total // parts, (part + 1) * total // parts
        for start, stop in share:
            size = stop - start
            if max(first, 0) < min(last, size):
                found.append((start + max(first, 0), start + min(last, size)))
            first, last = first - size, last - size
    return tuple(found)


def _part(share: Share, parts: int, part: int) -> Share:
    return share if parts == 1 else _cut(share, parts, (part,))


def held(share: Share) -> int:
    """Tokens of a share."""
    return sum(stop - start for start, stop in share)


class _Piece(NamedTuple):
    """Rows whose ends of visible keys are both linear: at the first row and at the last."""

    first: int
    last: int
    low: tuple[int, int]
    high: tuple[int, int]


@lru_cache(maxsize=65536)
def blocks(queries: Share, keys: Share, offset: int, window: Window) -> tuple[Block, ...]:
    """Problems that together hold every visible pair once; each query row is in one at most."""
    left, right = window
    total = held(keys)

    def below(position: int) -> int:
        return sum(min(max(position - start, 0), stop - start) for start, stop in keys)

    def ends(i: int) -> tuple[int, int]:
        low = below(i + offset - left) if left >= 0 else 0
        return low, below(i + offset + right + 1) if right >= 0 else total

    pieces: list[_Piece] = []
    row = 0
    for start, stop in queries:
        for first, last in pairwise(_cuts(start, stop, keys, offset, window)):
            (low0, high0), (low1, high1) = ends(first), ends(last - 1)
            at = row + first - start
            piece = _Piece(at, at + last - first - 1, (low0, low1), (high0, high1))
            joined = _joined(pieces[-1], piece) if pieces else None
            if joined is None:
                pieces.append(piece)
            else:
                pieces[-1] = joined
        row += stop - start
    return tuple(block for piece in pieces if (block := _block(piece)) is not None)


def _cuts(start: int, stop: int, keys: Share, offset: int, window: Window) -> list[int]:
    """Where a segment of queries begins and ends, and where a slope changes in between."""
    left, right = window
    cuts = {start, stop}
    for edge in chain.from_iterable(keys):
        if left >= 0:
            cuts.add(edge - offset + left)
        if right >= 0:
            cuts.add(edge - offset - right - 1)
    return sorted(cut for cut in cuts if start <= cut <= stop)


def _joined(a: _Piece, b: _Piece) -> _Piece | None:
    """Both as one, where each end goes on as it did."""
    for one, other in ((a.low, b.low), (a.high, b.high)):
        slopes = (
            slope
            for slope in (0, 1)
            if one[1] - one[0] == slope * (a.last - a.first)
            and other[1] - other[0] == slope * (b.last - b.first)
            and other[0] - one[1] == slope
        )
        if next(slopes, None) is None:
            return None
    return _Piece(a.first, b.last, (a.low[0], b.low[1]), (a.high[0], b.high[1]))


def _block(piece: _Piece) -> Block | None:
    """A piece without its rows that see nothing; None when that is all of them."""
    first, last, (low, low_last), (high, high_last) = piece
    low_rises, high_rises = low_last > low, high_last > high
    if high_rises and not low_rises:
        first += max(0, low - high + 1)
        high = max(high, low + 1)
    elif low_rises and not high_rises:
        last = min(last, first + high - low - 1)
    if first > last or high <= low:
        return None
    rows = last - first + 1
    right = 0 if high_rises and rows > 1 else -1
    # The first row's first key is the first of all: a left side of keys - rows says so.
    left = high_last - low - rows if low_rises and rows > 1 else -1
    return Block((first, last + 1), (low, high_last), (left, right))
