"""The plan of many devices: its formula against the schedule's events, and the command."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from portattn.cli.app import app
from portattn.errors import ArgumentError
from portattn.offload.planner import SHAPES
from portattn.parallel import planner
from portattn.parallel.layout import Layout, Pattern
from portattn.parallel.planner import Hop, Layer
from portattn.parallel.simulate import simulate

# How far the formula may be from the events: steps of equal work differ by their diagonals.
STATED_ERROR = 0.02

rates = st.floats(3e8, 1e12)
seconds = st.floats(1e-5, 1e-1)
starts = st.floats(1e-6, 1e-4)
hops = st.builds(Hop, rates, starts)


def _layer(draw: Any, cp: int, node: int, near: Hop, far: Hop, tp: int, blocks: int) -> Layer:
    """A ring whose hops out of a node of some ranks have another rate."""
    ring = [near if r // node == (r + 1) % cp // node else far for r in range(cp)]
    return Layer(
        3, tp, cp, blocks, draw(seconds), draw(seconds), draw(st.floats(1e5, 1e9)),
        draw(seconds), draw(seconds), draw(seconds), draw(st.floats(1e5, 1e9)),
        tuple(ring) if cp > 1 else (), near,
    )  # fmt: skip


@given(st.data(), st.sampled_from((1, 2, 3, 4, 8)), st.sampled_from((1, 2, 4)), hops, hops)
@settings(max_examples=150, deadline=None)
def test_the_formula_agrees_with_the_events(
    data: st.DataObject, cp: int, node: int, near: Hop, far: Hop
) -> None:
    """Compute-bound and link-bound, over one network tier and over two."""
    tp, blocks = data.draw(st.sampled_from((1, 2, 8))), data.draw(st.sampled_from((1, 3, 8)))
    layer = _layer(data.draw, cp, node, near, far, tp, blocks)
    tokens = data.draw(st.integers(256 * cp, 2**20))
    played = simulate(layer, Layout((tokens,), (tokens,), cp), layers=layer.layers)
    assert layer.times().total == pytest.approx(played, rel=STATED_ERROR)


def test_the_events_see_what_the_formula_takes_for_granted() -> None:
    """Without zigzag the last rank's work delays all: the formula holds for balanced parts only."""
    hop = Hop(1e12, 1e-6)
    layer = Layer(2, 1, 4, 1, 1e-4, 1e-2, 1e6, 1e-4, 1e-4, 1e-4, 1e6, (hop,) * 4, hop)
    patterns: tuple[Pattern, ...] = ("zigzag", "contiguous")
    balanced, unbalanced = (
        simulate(layer, Layout((8192,), (8192,), 4, pattern=pattern)) for pattern in patterns
    )
    assert balanced == pytest.approx(layer.times().total, rel=STATED_ERROR)
    assert unbalanced > 1.5 * balanced


def test_blocks_hide_sums_and_rings_hide_keys() -> None:
    shape, where = SHAPES["llama-3-70b"], planner.cluster("64xh100")
    one, four = (planner.plan(shape, where, 2**18, tp=8, cp=1, blocks=n).prefill for n in (1, 4))
    assert one and four and four.sums < 0.6 * one.sums
    long, short = (planner.plan(shape, where, n, tp=8, cp=8).prefill for n in (2**20, 2**12))
    assert long and short and long.exchange == 0 < short.exchange


def test_memory_adds_up_and_bounds_the_longest_sequence() -> None:
    shape, where = SHAPES["llama-3-70b"], planner.cluster("8xv100-32")
    made = planner.plan(shape, where, 2**18, tp=8)
    assert made.prefill and 2**18 <= made.longest < 2**19
    assert made.memory["weights"] == shape.weight_bytes // 8
    assert made.memory["keys and values"] == 80 * 2 * 128 * 2 * 2**18
    assert planner.plan(shape, where, made.longest, tp=8).prefill
    assert planner.plan(shape, where, made.longest + 1, tp=8).prefill is None
    # A kv head is on every device that reads it.
    wide = planner.plan(shape, planner.cluster("16xh100"), 2**18, tp=16)
    assert wide.memory["keys and values"] == made.memory["keys and values"]


@pytest.mark.parametrize(
    ("devices", "tp", "cp", "argument"),
    [
        ("8xabacus", 8, None, "devices"),
        ("v100", 1, None, "devices"),
        ("8xv100-99", 1, None, "devices"),
        ("16xrtx4090", 1, None, "devices"),
        ("8xh100", 3, None, "tp"),
        ("8xh100", 8, 2, "cp"),
    ],
)
def test_what_can_not_be_planned_is_named(
    devices: str, tp: int, cp: int | None, argument: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        planner.plan(SHAPES["llama-3-8b"], planner.cluster(devices), 4096, tp=tp, cp=cp)
    assert caught.value.argument == argument


def test_the_command_prints_the_plan() -> None:
    call = ["plan", "--model", "llama-3-70b", "--context", "256K", "--devices", "8xv100-32"]
    call += ["--tp", "8"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0
    for words in ("memory per device", "prefill", "modelled", "longest sequence", "data sheet"):
        assert words in done.stdout
    found = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    assert found["fits"] and found["kind"] == "modelled" and (found["tp"], found["cp"]) == (8, 1)
    assert CliRunner().invoke(app, [*call, "--cp", "4"]).exit_code == 1
