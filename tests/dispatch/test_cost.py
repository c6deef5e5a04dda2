"""Roofline estimates: counts against brute force, times against hand calculation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from portattn.dispatch import cost
from portattn.dispatch import profile as profiles
from portattn.dispatch.problem import AttentionProblem

lengths = st.integers(0, 24)
sides = st.integers(-1, 30)


def problem(**changes: object) -> AttentionProblem:
    base = AttentionProblem("forward", "dense", torch.float16, 2, 64, 128, 8, 2, 128, 64, 128**-0.5)
    return replace(base, **changes)  # type: ignore[arg-type]


def sees(i: int, j: int, seqlen_q: int, seqlen_k: int, window: tuple[int, int]) -> bool:
    """The definition: key j in the window around query i, aligned at the bottom right."""
    middle = i + seqlen_k - seqlen_q
    left, right = window
    return (left < 0 or j >= middle - left) and (right < 0 or j <= middle + right)


@given(lengths, lengths, sides, sides)
def test_visible_pairs_are_those_of_the_definition(
    seqlen_q: int, seqlen_k: int, left: int, right: int
) -> None:
    window = (left, right)
    pairs = [
        (i, j)
        for i in range(seqlen_q)
        for j in range(seqlen_k)
        if sees(i, j, seqlen_q, seqlen_k, window)
    ]
    assert cost.visible_pairs(seqlen_q, seqlen_k, window) == len(pairs)


@given(st.integers(1, 24), st.integers(1, 24), sides)
def test_bytes_count_every_key_that_a_query_sees(seqlen_q: int, seqlen_k: int, left: int) -> None:
    window = (left, 0)
    seen = {
        j
        for i in range(seqlen_q)
        for j in range(seqlen_k)
        if sees(i, j, seqlen_q, seqlen_k, window)
    }
    small = problem(batch=1, seqlen_q=seqlen_q, seqlen_k=seqlen_k, window=window, causal=True)
    rest = cost.byte_count(replace(small, seqlen_k=0))
    assert cost.byte_count(small) - rest == len(seen) * 2 * (128 + 64) * 2


def test_counts_by_hand() -> None:
    dense = problem()
    assert cost.flop_count(dense) == 2 * 2 * 8 * 64 * 128 * (128 + 64)
    queries, keys, lse = 2 * 64 * 8 * 192 * 2, 2 * 128 * 2 * 192 * 2, 2 * 64 * 8 * 4
    assert cost.byte_count(dense) == queries + keys + lse
    backward = replace(dense, operation="backward")
    assert cost.flop_count(backward) == 2.5 * cost.flop_count(dense)
    assert cost.byte_count(backward) == 2 * (queries + keys) + lse
    stored_in_bytes = replace(dense, kv_dtype=torch.float8_e4m3fn)
    assert cost.byte_count(stored_in_bytes) == queries + keys / 2 + lse


def test_causal_halves_a_square_with_and_without_a_stated_window() -> None:
    square = problem(seqlen_k=64, causal=True)
    pairs = cost.flop_count(square) / (2 * 2 * 8 * 192)
    assert pairs == 64 * 65 / 2
    assert cost.flop_count(replace(square, window=(-1, 0))) == cost.flop_count(square)


def test_varlen_counts_the_sequences_as_equally_long() -> None:
    ragged = problem(layout="varlen", seqlen_q=100, seqlen_k=100, total_q=128, total_k=128)
    equal = problem(seqlen_q=64, seqlen_k=64)
    assert cost.flop_count(ragged) == cost.flop_count(equal)
    assert cost.byte_count(ragged) == cost.byte_count(equal)


def test_nothing_costs_nothing() -> None:
    empty = problem(batch=0)
    assert (cost.flop_count(empty), cost.byte_count(empty)) == (0.0, 0.0)
    assert cost.flop_count(problem(seqlen_k=0)) == 0.0


def test_roofline_takes_the_slower_of_computing_and_moving() -> None:
    a100 = profiles.by_name("nvidia-a100")
    prefill = problem(seqlen_q=4096, seqlen_k=4096)
    estimate = cost.estimate(prefill, a100)
    assert estimate.bound == "compute"
    assert estimate.seconds == pytest.approx(estimate.flops / 312e12)
    decode = problem(operation="decode", layout="cache", seqlen_q=1, seqlen_k=4096)
    estimate = cost.estimate(decode, a100)
    assert estimate.bound == "memory"
    assert estimate.seconds == pytest.approx(estimate.bytes / 2039e9)


def test_rates_per_core_are_multiplied() -> None:
    profile = profiles.by_name("x86-avx2")
    large = problem(seqlen_q=2048, seqlen_k=2048)
    one, four = (cost.estimate(large, profile, cores).seconds for cores in (1, 4))
    assert one is not None and four is not None
    assert one == pytest.approx(4 * four)


@pytest.mark.parametrize(
    ("name", "dtype", "known"),
    [
        ("nvidia-t4", torch.bfloat16, True),  # computed in float32
        ("nvidia-t4", torch.float64, False),
        ("generic-accelerator", torch.float16, False),
        ("generic-cpu", torch.float32, False),
    ],
)
def test_no_time_without_rates(name: str, dtype: torch.dtype, known: bool) -> None:
    estimate = cost.estimate(problem(dtype=dtype), profiles.by_name(name), 8)
    assert (estimate.seconds is not None) == known
    assert (estimate.bound is not None) == known
    assert estimate.flops > 0
