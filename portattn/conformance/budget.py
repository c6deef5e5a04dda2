"""How close is close enough: against the float64 answer, measured by the plain formula's error.

output     max and RMS error <= 2 x that of the plain formula in the input's dtype, plus one
           rounding of the output's dtype at the answer's magnitude
gradients  3 x, by the same rule. A backward is given out and lse as the forward stored them, so
           their rounding is not its error: where that alone costs more than the plain formula, it
           is the measure
lse        1e-3 for half types, 1e-5 relative for float32, plus its own rounding

All of it holds for arithmetic in float32: one float32 rounding of each score and of each sum of
terms is allowed besides, which is what remains where the terms cancel and the plain formula
happens to be exact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from portattn.arguments import Options, describe
from portattn.conformance import naive
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

HALF = (torch.float16, torch.bfloat16)
GRADIENTS = ("q", "k", "v", "bias", "sinks")


class Expected(NamedTuple):
    """The float64 answer and the plain formula's in the input's dtype."""

    exact: dict[str, Tensor]
    plain: dict[str, Tensor]
    terms: dict[str, float]


def widened(t: AttentionTensors, dtype: torch.dtype = torch.float64) -> AttentionTensors:
    """The same values in another dtype."""
    floats = {"q": t.q, "bias": t.bias, "sinks": t.sinks}
    if t.k_scale is None:
        floats |= {"k": t.k, "v": t.v}
    changed = {n: None if x is None else x.to(dtype) for n, x in floats.items()}
    return replace(t, **changed)  # type: ignore[arg-type]


def expected(t: AttentionTensors, o: Options) -> Expected:
    """Values by the plain formula in both precisions."""
    wide = widened(t)
    plain = _evaluate(widened(t, t.q.dtype), o)
    return Expected(_evaluate(wide, o), plain, naive.term_sizes(wide, o))


def expected_gradients(
    t: AttentionTensors,
    o: Options,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    stored: dict[str, Tensor],
) -> Expected:
    """Gradients by the plain formula in both precisions, given the forward's stored results."""
    exact = _evaluate(widened(t), o, grad_out, grad_lse)
    plain = _evaluate(widened(t, t.q.dtype), o, grad_out, grad_lse)
    wide = widened(t)
    problem = problem_of(wide, o, "backward", grad_lse is not None)
    from_stored = registry.load("reference").backward(
        grad_out.double(),
        None if grad_lse is None else grad_lse.double(),
        stored["out"].double(),
        stored["lse"].double(),
        wide,
        problem,
        {},
    )
    for name, grad in zip(GRADIENTS, from_stored, strict=True):
        if grad is None:
            continue
        truth, key = exact[f"d{name}"], f"d{name}"
        if _worst(grad, truth) > _worst(plain[key].double(), truth):
            plain[key] = grad
    return Expected(exact, plain, naive.term_sizes(wide, o, grad_out, grad_lse))


def _evaluate(
    t: AttentionTensors,
    o: Options,
    grad_out: Tensor | None = None,
    grad_lse: Tensor | None = None,
) -> dict[str, Tensor]:
    names = [n for n in GRADIENTS if getattr(t, n) is not None] if grad_out is not None else []
    leaves = {n: getattr(t, n).detach().clone().requires_grad_() for n in names}
    out, lse = naive.attention(replace(t, **leaves), o)
    values = {"out": out.detach(), "lse": lse.detach()}
    if grad_out is not None:
        loss = (out * grad_out.to(out.dtype)).sum()
        if grad_lse is not None:
            loss = loss + torch.where(lse.isinf(), 0, lse * grad_lse.to(lse.dtype)).sum()
        wrt = list(leaves.values())
        grads = torch.autograd.grad(loss, wrt, allow_unused=True) if loss.requires_grad else wrt
        for name, leaf, grad in zip(leaves, wrt, grads, strict=True):
            known = grad is not None and loss.requires_grad
            values[f"d{name}"] = grad if known else torch.zeros_like(leaf)
    return values


def check(got: dict[str, Tensor], want: Expected, dtype: torch.dtype, about: str) -> None:
    """Raise AssertionError with the worst ratio when a value is out of its budget."""
    for name, value in got.items():
        exact, plain = want.exact[name], want.plain[name].double()
        _hold(value.shape == exact.shape, f"{about}: {name} has shape {tuple(value.shape)}")
        value = value.double()
        infinite = exact.isinf()
        _hold(not exact.isnan().any(), f"{about}: the reference of {name} is not finite")
        _hold(torch.equal(value[infinite], exact[infinite]), f"{about}: {name} at -inf")
        value, exact, plain = value[~infinite], exact[~infinite], plain[~infinite]
        _hold(bool(value.isfinite().all()), f"{about}: {name} is not finite")
        if not value.numel():
            continue
        factor = 2.0 if name in ("out", "lse") else 3.0
        kept = (
            dtype if name != "lse" else torch.float64 if dtype == torch.float64 else torch.float32
        )
        rounding = torch.finfo(kept).eps if kept != torch.float64 else 1e-12
        unit = 2.0**-23 if dtype != torch.float64 else 1e-13
        error, loose = (value - exact).abs(), (plain - exact).abs()
        if name == "lse" and dtype != torch.float64:
            bound = 1e-3 if dtype in HALF else 1e-5 * float(exact.abs().max().clamp(min=1.0))
            bound += rounding * float(exact.abs().max())
            _hold(float(error.max()) <= bound, f"{about}: lse is off by {float(error.max()):.3g}")
            continue
        for what, mine, theirs, size in (
            ("max", error.max(), loose.max(), exact.abs().max()),
            ("rms", _rms(error), _rms(loose), exact.abs().max()),
        ):
            allowed = (
                factor * float(theirs) + rounding * float(size) + unit * want.terms.get(name, 0.0)
            )
            _hold(
                float(mine) <= allowed,
                f"{about}: {what} error of {name} is {float(mine):.3g}, allowed {allowed:.3g}",
            )


def _hold(condition: bool, message: str) -> None:
    """An assertion that `python -O` keeps."""
    if not condition:
        raise AssertionError(message)


def _worst(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).abs().max()) if value.numel() else 0.0


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def problem_of(
    t: AttentionTensors, o: Options, operation: str = "", lse_grad: bool = False
) -> AttentionProblem:
    """The description that dispatch would hand to a backend."""
    name = operation or ("decode" if t.seqused_k is not None else "forward")
    bias_grad = name == "backward" and t.bias is not None
    return describe(name, t, o, bias_grad=bias_grad, lse_grad=lse_grad)  # type: ignore[arg-type]
