"""The decode kernel's shares: any lengths, any number of programs, in any order of arrival."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from portattn.arguments import Options
from portattn.dispatch.backend import AttentionTensors
from tests.conformance.budget import check, expected, problem_of
from tests.conformance.cases import Case, build, cached

decode = pytest.importorskip("portattn.backends.triton.decode")
launch = pytest.importorskip("portattn.backends.common.launch")
tl = pytest.importorskip("triton.language")

SMALLEST = {"block_n": 16, "programs": 1}
# Programs on the whole device: one, uneven shares, more than merge among themselves, and too many.
PROGRAMS = (1, 2, 3, 7, 40)

# Failing cases are small enough as they are; the interpreter is too slow to shrink them.
few = settings(max_examples=10, deadline=None, phases=(Phase.explicit, Phase.generate))


@contextmanager
def programs(count: int, sequences_at_once: int = 2, shortest: int = 1) -> Iterator[None]:
    """A device of that many multiprocessors, that scans so many sequences at a time."""
    with (
        patch.object(decode.tiles, "multiprocessors", lambda device: count),
        patch.object(decode, "_SEQUENCES_AT_ONCE", sequences_at_once),
        patch.object(decode, "SHORTEST", tl.constexpr(shortest)),
    ):
        yield


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Interpreted programs run in a random order instead of by their ids."""
    from triton.runtime.interpreter import interpreter_builder

    set_grid_idx = interpreter_builder.set_grid_idx

    def renamed(x: int, y: int, z: int) -> None:
        order = list(range(interpreter_builder.grid_dim[0]))
        Random(seed).shuffle(order)
        set_grid_idx(order[x], y, z)

    with patch.object(interpreter_builder, "set_grid_idx", renamed):
        yield


def built(case: Case, seed: int) -> tuple[AttentionTensors, Options]:
    generator = torch.Generator().manual_seed(seed)
    made = build(case, torch.float32, torch.device("cpu"), generator)
    return made.tensors, made.options


def run(t: AttentionTensors, o: Options, **changes: Any) -> dict[str, Tensor]:
    problem = replace(problem_of(t, o), **changes)
    out, lse = decode.decode(t, problem, SMALLEST)
    return {"out": out, "lse": lse}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few sequences of very different lengths, short ones and empty ones among them."""
    keys = draw(st.lists(st.sampled_from((0, 1, 15, 16, 17, 48, 100, 333)), min_size=1, max_size=5))
    heads, kv_heads = draw(st.sampled_from(((1, 1), (4, 2), (6, 1), (20, 1))))
    return cached(
        "shares",
        draw(st.sampled_from((1, 1, 3))),
        *keys,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((16, 24))),
        causal=True,
        window=(draw(st.sampled_from((-1, -1, 20))), 0),
        sinks=draw(st.booleans()),
        page_size=draw(st.sampled_from((0, 12, 16))),
    )


@few
@given(
    case=cases(),
    count=st.sampled_from(PROGRAMS),
    at_once=st.sampled_from((2, 1024)),
    shortest=st.sampled_from((1, 4)),
    deterministic=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_share(
    case: Case,
    count: int,
    at_once: int,
    shortest: int,
    deterministic: bool,
    seed: int,
    on_cpu: torch.device,
) -> None:
    """What the programs do together is the definition."""
    t, o = built(case, seed)
    with programs(count, at_once, shortest):
        got = run(t, o, deterministic=deterministic)
    check(got, expected(t, o), torch.float32, f"{count} programs, {case}")


@pytest.mark.parametrize("count", [3, 40])
def test_any_order(count: int, on_cpu: torch.device) -> None:
    """The bits don't depend on which program comes last."""
    t, o = built(cached("order", 1, 300, 30, 333, heads=2, kv_heads=1), 0)
    with programs(count):
        first = run(t, o)
        for seed in range(2):
            with shuffled(seed):
                again = run(t, o)
            assert all(torch.equal(first[name], again[name]) for name in first), f"order {seed}"


def test_deterministic_ignores_the_batch(on_cpu: torch.device) -> None:
    """A sequence's bits are its own, wherever its programs stand among those of the others."""
    lengths = (300, 40, 4500, 600)
    t, o = built(cached("batch", 1, *lengths, heads=2, kv_heads=1), 1)
    with programs(3):
        whole = run(t, o, deterministic=True)
        for b in range(len(lengths)):
            used = t.seqused_k[b : b + 1] if t.seqused_k is not None else None
            one = replace(t, q=t.q[b : b + 1], k=t.k[b : b + 1], v=t.v[b : b + 1], seqused_k=used)
            alone = run(one, o, deterministic=True)
            for name in whole:
                assert torch.equal(alone[name][0], whole[name][b]), f"{name} of sequence {b}"
