"""Which rows a rank computes when: every row once, in the order that hides the transfers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portattn.dispatch import profile as profiles
from portattn.errors import ArgumentError
from portattn.parallel import schedule
from portattn.parallel.schedule import Speeds

H100 = Speeds(multiply=700e12, send=340e9, start=12e-6, cores=132)
PIECES = st.lists(st.floats(0.1, 8.0), min_size=1, max_size=6)


@given(rows=st.integers(0, 5000), ranks=st.integers(1, 9), pieces=PIECES)
def test_every_row_once(rows: int, ranks: int, pieces: list[float]) -> None:
    plan = schedule.cut(rows, ranks, pieces)
    for rank in range(ranks):
        blocks = list(plan.order(rank))
        covered = sorted(row for block in blocks for row in range(block.start, block.stop))
        assert covered == list(range(rows))
        for number in range(len(pieces)):
            piece = blocks[number * ranks : (number + 1) * ranks]
            assert [block.piece for block in piece] == [number] * ranks
            assert piece[-1].owner == rank
            assert sorted(block.owner for block in piece) == list(range(ranks))
        span = plan.span(rank)
        assert abs((span.stop - span.start) - rows / ranks) < 1
        assert all(
            span.start <= block.start <= block.stop <= span.stop
            for block in blocks
            if block.owner == rank
        )


@pytest.mark.parametrize("wrong", [(-1, 2, (1.0,)), (8, 0, (1.0,)), (8, 2, ()), (8, 2, (0.0,))])
def test_what_is_no_plan(wrong: tuple[int, int, tuple[float, ...]]) -> None:
    with pytest.raises(ArgumentError, match="rows from 0"):
        schedule.cut(*wrong)


def test_one_piece_where_cutting_does_not_pay() -> None:
    slow_start = Speeds(multiply=1e12, send=1e12, start=1.0, host=10.0)
    assert len(schedule.best(8192, 4096, 4096, 2, 2, slow_start).pieces) == 1
    assert len(schedule.best(64, 4096, 4096, 2, 2, H100).pieces) == 1


@given(rows=st.integers(0, 3000), ranks=st.integers(1, 6), pieces=PIECES)
def test_ahead_computes_the_same_and_its_own_after_the_others(
    rows: int, ranks: int, pieces: list[float]
) -> None:
    plan = schedule.cut(rows, ranks, pieces)
    for rank in range(ranks):
        ahead = list(plan.ahead(rank))
        assert sorted(ahead, key=repr) == sorted(plan.order(rank), key=repr)
        for number, block in enumerate(ahead):
            if block.owner == rank:
                done = [other for other in ahead[:number] if other.owner != rank]
                assert len(done) == (ranks - 1) * min(block.piece + plan.lead + 1, len(pieces))


def test_pieces_where_it_does() -> None:
    plan = schedule.best(16384, 14336, 8192, 2, 2, H100)
    assert len(plan.pieces) > 1
    whole = schedule.modelled(schedule.cut(16384, 2), 14336, 8192, 2, H100)
    pieces = schedule.modelled(plan, 14336, 8192, 2, H100)
    assert pieces.total < whole.total
    assert pieces.hidden > whole.hidden


@given(
    rows=st.integers(256, 20000),
    inner=st.sampled_from([1024, 4096, 14336]),
    ranks=st.integers(2, 8),
    pieces=PIECES,
)
def test_no_plan_beats_its_products_or_its_link(
    rows: int, inner: int, ranks: int, pieces: list[float]
) -> None:
    told = schedule.modelled(schedule.cut(rows, ranks, pieces), inner, 4096, 2, H100)
    assert told.total >= max(told.compute, told.transfer)


ASCEND = [name for name in profiles.names() if name.startswith("ascend")]


@pytest.mark.parametrize("name", ASCEND)
@given(rows=st.integers(0, 70000), ranks=st.integers(1, 8))
def test_block_rules_of_a_profile_give_every_row_once_at_the_same_turn_on_all_ranks(
    name: str, rows: int, ranks: int
) -> None:
    plan = schedule.of_rules(profiles.by_name(name).blocks, rows, ranks)
    assert plan is not None and plan.reduction == "all_reduce" and plan.ranks == ranks
    blocks = list(plan.order(0))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(rows))
    assert all(list(plan.order(rank)) == blocks for rank in range(ranks))
    assert {block.owner for block in blocks} == {schedule.EVERY}
    if rows >= 4096:
        assert len(blocks) == 5 and blocks[0].rows < blocks[1].rows > blocks[-1].rows
        assert all(block.rows % 128 == 0 for block in blocks[:-1])


def test_a_profile_without_block_rules_leaves_the_choice() -> None:
    assert schedule.of_rules(profiles.by_name("nvidia-h100").blocks, 8192, 2) is None
