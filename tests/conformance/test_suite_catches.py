"""The suite itself: seeded defects in a working backend must not pass it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from portattn.arguments import Options
from portattn.dispatch.backend import AttentionTensors
from tests.conformance import naive
from tests.conformance.budget import check, expected, expected_gradients, problem_of, widened
from tests.conformance.cases import CASES, build

Result = tuple[Tensor, Tensor]
Forward = Callable[[AttentionTensors, Options], Result]


def right(t: AttentionTensors, o: Options) -> Result:
    out, lse = naive.attention(widened(t, torch.float32), o)
    return out.to(t.q.dtype), lse


def wrong_options(**changes: object) -> Forward:
    return lambda t, o: right(t, o._replace(**changes))  # type: ignore[arg-type]


def wrong_tensors(change: Callable[[AttentionTensors], AttentionTensors]) -> Forward:
    return lambda t, o: right(change(t), o)


def scale_off(t: AttentionTensors, o: Options) -> Result:
    return right(t, o._replace(softmax_scale=o.softmax_scale * 1.01))


def causal_off_by_one(t: AttentionTensors, o: Options) -> Result:
    return right(t, o._replace(causal=False, window=(o.window[0], 1)))


def top_left(t: AttentionTensors, o: Options) -> Result:
    seen = t.q.shape[1]
    return right(replace(t, k=t.k[:, :seen], v=t.v[:, :seen]), o)


def missing_rescale(t: AttentionTensors, o: Options) -> Result:
    """Two tiles of keys added without bringing them to one maximum."""
    half = t.k.shape[1] // 2
    parts = [
        right(replace(t, k=t.k[:, s], v=t.v[:, s]), o) for s in (slice(0, half), slice(half, None))
    ]
    out = (parts[0][0].float() + parts[1][0].float()) / 2
    return out.to(t.q.dtype), torch.logaddexp(parts[0][1], parts[1][1])


def lse_without_sinks(t: AttentionTensors, o: Options) -> Result:
    return right(t, o)[0], right(replace(t, sinks=None), o)[1]


def lse_in_base_two(t: AttentionTensors, o: Options) -> Result:
    out, lse = right(t, o)
    return out, lse / 0.6931471805599453


def blind_rows_are_nan(t: AttentionTensors, o: Options) -> Result:
    out, lse = right(t, o)
    rows = lse.isinf().transpose(1, 2)
    return out.masked_fill(rows[..., None], float("nan")), lse


def lse_of_blind_rows_is_zero(t: AttentionTensors, o: Options) -> Result:
    out, lse = right(t, o)
    return out, lse.masked_fill(lse.isinf(), 0.0)


def half_precision_scores(t: AttentionTensors, o: Options) -> Result:
    coarse = widened(t, torch.bfloat16)
    out, lse = naive.attention(coarse, o)
    return out.to(t.q.dtype), lse.float()


def last_key_dropped(t: AttentionTensors, o: Options) -> Result:
    return right(replace(t, k=t.k[:, :-1], v=t.v[:, :-1]), o)


DEFECTS: dict[str, tuple[str, Forward]] = {
    "scale": ("plain", scale_off),
    "causal off by one": ("causal 17x17", causal_off_by_one),
    "causal top-left": ("causal 5x40", top_left),
    "window off by one": ("window 4,0 causal=True", wrong_options(window=(5, 0))),
    "softcap ignored": ("softcap", wrong_options(softcap=0.0)),
    "missing rescale": ("plain", missing_rescale),
    "wrong kv head": (
        "heads 6/2",
        wrong_tensors(lambda t: replace(t, k=t.k.flip(2), v=t.v.flip(2))),
    ),
    "sinks ignored": ("sinks", wrong_tensors(lambda t: replace(t, sinks=None))),
    "lse without sinks": ("sinks", lse_without_sinks),
    "lse in base two": ("plain", lse_in_base_two),
    "alibi of the wrong head": (
        "alibi per head",
        wrong_tensors(lambda t: replace(t, alibi_slopes=t.alibi_slopes.flip(0))),  # type: ignore[union-attr]
    ),
    "bias of the wrong sequence": (
        "bias 1111",
        wrong_tensors(lambda t: replace(t, bias=t.bias.flip(0))),  # type: ignore[union-attr]
    ),
    "mask ignored": ("mask 1111", wrong_tensors(lambda t: replace(t, mask=None))),
    "blind rows are NaN": ("causal 40x5", blind_rows_are_nan),
    "lse 0 of blind rows": ("causal 40x5", lse_of_blind_rows_is_zero),
    "bfloat16 scores": ("plain", half_precision_scores),
    "last key dropped": ("length 63x65", last_key_dropped),
    "dropout offset ignored": (
        "dropout",
        wrong_tensors(lambda t: replace(t, rng_state=t.rng_state + 1)),  # type: ignore[operator]
    ),
}


def attempt(name: str, run: Forward, generator: torch.Generator) -> None:
    case = next(case for case in CASES if case.name == name)
    built = build(case, torch.float32, torch.device("cpu"), generator)
    out, lse = run(built.tensors, built.options)
    want = expected(built.tensors, built.options)
    check({"out": out, "lse": lse}, want, torch.float32, name)


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_caught(defect: str, generator: torch.Generator) -> None:
    name, run = DEFECTS[defect]
    attempt(name, right, generator)
    with pytest.raises(AssertionError):
        attempt(name, run, generator)


@pytest.mark.parametrize(
    "defect", ["dq scale", "dk of the wrong head", "no delta", "dv transposed"]
)
def test_gradient_defects_are_caught(defect: str, generator: torch.Generator) -> None:
    from portattn.backends.common import definition

    case = next(case for case in CASES if case.name == "heads 6/2")
    t, o = (lambda built: (built.tensors, built.options))(
        build(case, torch.float32, torch.device("cpu"), generator)
    )
    problem = problem_of(t, o, "backward")
    out, lse = definition.forward(t, problem_of(t, o))
    g = torch.randn(out.shape, generator=generator)
    dq, dk, dv, *_ = definition.backward(g, None, out, lse, t, problem)
    want = expected_gradients(t, o, g, None, {"out": out, "lse": lse})
    check({"dq": dq, "dk": dk, "dv": dv}, want, torch.float32, "right")
    if defect == "dq scale":
        dq = dq * 1.001
    elif defect == "dk of the wrong head":
        dk = dk.flip(2)
    elif defect == "no delta":
        dq, dk, dv, *_ = definition.backward(g, None, out * 0, lse, t, problem)
    else:
        dv = dv.flip(1)
    with pytest.raises(AssertionError):
        check({"dq": dq, "dk": dk, "dv": dv}, want, torch.float32, defect)
