"""Tensor parallel on gloo ranks: sums are those of one process, and the same however cut."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import portattn
from portattn.dispatch import profile as profiles
from portattn.errors import ArgumentError, DtypeError, ShapeError
from portattn.parallel import schedule, tensor
from tests.parallel import ranks

CUTS = ((1.0,), (1.0, 1.0), (2.0, 1.0, 0.5))


def shard(whole: Tensor, axis: int) -> Tensor:
    return whole.chunk(dist.get_world_size(), axis)[dist.get_rank()].contiguous()


def close(got: Tensor, want: Tensor) -> bool:
    return bool(torch.allclose(got, want, atol=1e-4, rtol=1e-4))


def sums() -> dict[str, Any]:
    """What each rank finds, in one start of the processes."""
    group = dist.group.WORLD
    assert group is not None
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    count = group.size()
    found: dict[str, Any] = {}
    for rows in (300, 7, 1, 0):
        x, weight, bias = normal(rows, 24 * count), normal(40, 24 * count), normal(40)
        parts = [
            (mine @ share.T).float()
            for mine, share in zip(x.chunk(count, 1), weight.chunk(count, 1), strict=True)
        ]
        want = torch.zeros(rows, 40)
        for part in parts:
            want = want + part
        want += bias
        for cuts in CUTS:
            plan = schedule.cut(rows, count, cuts)
            got = tensor.linear(shard(x, 1), shard(weight, 1), group, bias, plan=plan)
            # A product of a few rows takes another kernel, so that a row's bits depend on them.
            same = torch.equal if rows == 300 else close
            found[f"{rows} rows in {cuts}"] = same(got, want)
            mine = tensor.linear_scattered(shard(x, 1), shard(weight, 1), group, plan=plan)
            span = plan.span(group.rank())
            found[f"{rows} rows in {cuts}, this rank's"] = torch.equal(mine + bias, got[span])
            whole = tensor.gather_rows(mine, group, plan) + bias
            found[f"{rows} rows in {cuts}, gathered"] = torch.equal(whole, got)
        chosen = tensor.linear(shard(x, 1)[None], shard(weight, 1), group, bias)
        mine = tensor.linear_scattered(shard(x, 1), shard(weight, 1), group)
        plan = tensor.scattered_plan(shard(x, 1), shard(weight, 1), group)
        whole = tensor.gather_rows(mine, group, plan) + bias
        found[f"{rows} rows, chosen and gathered"] = close(whole, want)
        found[f"{rows} rows, chosen"] = chosen.shape == (1, rows, 40) and close(chosen[0], want)
    heads, dim = 2 * count, 16
    q, k, v = (normal(1, 150, heads, dim) for _ in range(3))
    weight = normal(48, heads * dim)
    for causal in (False, True):
        alone = portattn.attention(q, k, v, causal=causal).flatten(2) @ weight.T
        for cuts in CUTS:
            got = tensor.attention(
                *(shard(x, 2) for x in (q, k, v)),
                shard(weight, 1),
                group,
                causal=causal,
                plan=schedule.cut(150, count, cuts),
            )
            found[f"attention causal={causal} in {cuts}"] = close(got, alone)
    return found


@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_cut_is_the_sum_of_all_ranks(count: int) -> None:
    for rank, found in enumerate(ranks.run(sums, count)):
        assert len(found) > 15
        assert not [what for what, right in found.items() if not right], f"rank {rank}"


def by_the_profile() -> dict[str, Any]:
    """The blocks of the profile ascend-910b2 in this group, chosen by the environment as a user
    would, and how often the library reduced what."""
    os.environ["PORTATTN_PROFILE"] = "ascend-910b2"
    profiles.forget()
    group = dist.group.WORLD
    assert group is not None
    generator = torch.Generator().manual_seed(4)
    rows, columns, count = 5000, 24, group.size()
    x = torch.randn(rows, 16 * count, generator=generator)
    weight = torch.randn(columns, 16 * count, generator=generator)
    reduced: list[int] = []
    all_reduce = dist.all_reduce

    def spy(tensor: Tensor, *args: Any, **options: Any) -> Any:
        reduced.append(tensor.shape[0])
        assert options["async_op"]
        return all_reduce(tensor, *args, **options)

    dist.all_reduce = spy
    got = tensor.linear(shard(x, 1), shard(weight, 1), group)
    blocks = list(reduced)
    q = torch.randn(1, 4200, count, 16, generator=generator)
    mine, projection = shard(q, 2), torch.randn(24, 16 * count, generator=generator)
    chosen = tensor.attention(mine, mine, mine, shard(projection, 1), group, causal=True)
    alone = portattn.attention(q, q, q, causal=True).flatten(2) @ projection.T
    return {"linear": close(got, x @ weight.T), "attention": close(chosen, alone),
            "blocks": blocks, "all": sum(reduced)}  # fmt: skip


def test_blocks_of_the_ascend_profile_are_reduced_in_turn_over_gloo() -> None:
    plan = schedule.of_rules(profiles.by_name("ascend-910b2").blocks, 5000, 2)
    assert plan is not None
    for found in ranks.run(by_the_profile, 2):
        assert found["linear"] and found["attention"]
        assert found["blocks"] == [block.rows for block in plan.order(0)]
        assert len(found["blocks"]) == 5 and found["all"] == 5000 + 4200


class Alone:
    """A group of one, for what is checked before anything is sent."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def test_a_group_of_one_multiplies() -> None:
    x, weight = torch.randn(2, 3, 8), torch.randn(5, 8)
    group: Any = Alone()
    assert torch.allclose(tensor.linear(x, weight, group), x @ weight.T, atol=1e-6)


def test_what_does_not_fit() -> None:
    x, weight, group = torch.randn(6, 8), torch.randn(5, 8), Alone()
    call: Any = tensor.linear
    with pytest.raises(ShapeError, match="weight"):
        call(x, torch.randn(5, 9), group)
    with pytest.raises(ShapeError, match="bias"):
        call(x, weight, group, torch.randn(4))
    with pytest.raises(DtypeError, match="weight"):
        call(x, weight.double(), group)
    with pytest.raises(ArgumentError, match="6 rows for 1 ranks"):
        call(x, weight, group, plan=schedule.cut(7, 1))
    with pytest.raises(ShapeError, match="x"):
        tensor.linear_scattered(x[None], weight, group)
    with pytest.raises(ShapeError, match="mine"):
        tensor.gather_rows(x, group, schedule.cut(7, 1))
    with pytest.raises(ShapeError, match="q"):
        tensor.attention(x, x, x, weight, group)  # type: ignore[arg-type]
