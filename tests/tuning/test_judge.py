"""Right results pass, wrong ones don't: the measure that stands before every timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from portattn.dispatch import registry
from portattn.dispatch.problem import AttentionProblem
from portattn.tuning import inputs
from portattn.tuning.judge import Judge

CPU = torch.device("cpu")
FULL = AttentionProblem("forward", "dense", torch.float32, 2, 70, 90, 4, 2, 32, 32, 32**-0.5)
FORWARD = replace(FULL, causal=True, window=(-1, 0))
DECODE = replace(FULL, operation="decode", layout="cache", seqlen_q=1)
PROBLEMS = {
    "causal": FORWARD,
    "full": FULL,
    "window": replace(FULL, window=(20, 5)),
    "softcap": replace(FORWARD, softcap=2.0),
    "blind rows": replace(FORWARD, seqlen_q=90, seqlen_k=70),
    "192/128": replace(FORWARD, head_dim=24, head_dim_v=16),
    "backward": replace(FORWARD, operation="backward"),
    "decode": replace(DECODE, seqlen_q=2, causal=True, batch=3),
    "pages": replace(DECODE, page_size=16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_sound_backend_passes(name: str, dtype: torch.dtype) -> None:
    made = inputs.make(replace(PROBLEMS[name], dtype=dtype), CPU)
    judge = Judge(made)
    for backend in ("cpu", "reference"):
        got = inputs.call(registry.load(backend), made, {"block_m": 16, "block_n": 32})()
        assert 0.0 < judge.error_ratio(got) <= 1.0, backend


def scaled(x: Tensor) -> Tensor:
    return x * 1.05


def shifted(x: Tensor) -> Tensor:
    return x.roll(1, dims=-1)


def one_entry(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[-1] += 1.0
    return x


def not_finite(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[0] = float("nan")
    return x


def another_shape(x: Tensor) -> Tensor:
    return x[:1]


@pytest.mark.parametrize("damage", [scaled, shifted, one_entry, not_finite, another_shape])
@pytest.mark.parametrize(
    ("name", "result"),
    [("causal", "out"), ("causal", "lse"), ("backward", "dq"), ("backward", "dk"),
     ("backward", "dv"), ("pages", "out")],
)  # fmt: skip
def test_a_damaged_result_does_not(
    name: str, result: str, damage: Callable[[Tensor], Tensor]
) -> None:
    made = inputs.make(replace(PROBLEMS[name], dtype=torch.bfloat16), CPU)
    got = dict(inputs.call(registry.load("cpu"), made, {})())
    judge = Judge(made)
    assert judge.error_ratio(got) <= 1.0
    got[result] = damage(got[result])
    assert judge.error_ratio(got) > 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"softmax_scale": 0.17},
        {"window": (-1, -1), "causal": False},
        {"window": (60, 0)},
        {"softcap": 50.0},
    ],
    ids=str,
)
def test_the_answer_to_another_problem_does_not(changes: dict[str, object]) -> None:
    made = inputs.make(replace(FORWARD, dtype=torch.bfloat16), CPU)
    other = replace(made, problem=replace(made.problem, **changes))  # type: ignore[arg-type]
    got = inputs.call(registry.load("cpu"), other, {})()
    assert Judge(made).error_ratio(got) > 1.0


def test_what_cant_be_judged_is_said() -> None:
    assert inputs.unsupported(FORWARD) == []
    for changes, word in (
        ({"alibi": True}, "alibi"),
        ({"layout": "varlen", "total_q": 140, "total_k": 180}, "varlen"),
        ({"kv_dtype": torch.float16}, "keys of another dtype"),
    ):
        (reason,) = inputs.unsupported(replace(FORWARD, **changes))  # type: ignore[arg-type]
        assert word in reason
