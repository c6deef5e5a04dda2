"""One conformance case on the volta kernels, wherever they run."""

from __future__ import annotations

from dataclasses import replace

import torch

from portattn.backends.volta import VoltaBackend, backward, decode, forward
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from tests.conformance.budget import check, expected, expected_gradients, problem_of
from tests.conformance.cases import CASES, Case, build
from tests.conformance.test_backends import _poisoned

V100 = Device("cuda", "nvidia", "sm_70", "V100")


def declared(case: Case, dtype: torch.dtype) -> bool:
    """Whether the backend says that it takes a case."""
    built = build(case, dtype, torch.device("cpu"), torch.Generator())
    problem = problem_of(built.tensors, built.options)
    return not VoltaBackend.capability.reasons_against(problem, V100)


TAKEN = [case for case in CASES if declared(case, torch.float16)]


def differentiable(case: Case) -> bool:
    """Whether the backend says that it has a case's gradients, in float16."""
    built = build(case, torch.float16, torch.device("cpu"), torch.Generator())
    problem = problem_of(built.tensors, built.options, "backward", True)
    reasons = VoltaBackend.capability.reasons_against(problem, V100)
    return not reasons and not backward.reasons_against(problem)


WITH_GRADIENTS = [case for case in CASES if case.differentiable and differentiable(case)]


def run(t: AttentionTensors, problem: AttentionProblem, turing: bool) -> dict[str, torch.Tensor]:
    call = decode.decode if problem.operation == "decode" else forward.forward
    out, lse = call(t, problem, {}, turing)
    return {"out": out, "lse": lse}


def hold(
    case: Case, dtype: torch.dtype, where: str, turing: bool, generator: torch.Generator
) -> None:
    """Values, the same bits again, and NaN in what no query sees."""
    built = build(case, dtype, torch.device(where), generator)
    t, o = built.tensors, built.options
    problem = problem_of(t, o)
    want = expected(t, o)
    got = run(t, problem, turing)
    check(got, want, dtype, case.name)
    again = run(t, problem, turing)
    assert all(torch.equal(got[name], again[name]) for name in got)
    t = replace(t, k=_poisoned(t, o, t.k), v=_poisoned(t, o, t.v))
    check(run(t, problem, turing), want, dtype, f"{case.name}, poisoned")


def hold_gradients(case: Case, where: str, turing: bool, generator: torch.Generator) -> None:
    """Gradients of out and lse, and the same bits again."""
    built = build(case, torch.float16, torch.device(where), generator)
    t, o = built.tensors, built.options
    problem = problem_of(t, o, "backward", True)
    g = torch.randn((*t.q.shape[:-1], t.v.shape[-1]), generator=generator).half().to(where)
    out, lse = registry.load("reference").forward(t, problem_of(t, o), {})
    grad_lse = torch.randn(lse.shape, generator=generator).to(lse).masked_fill(lse.isinf(), 0)
    want = expected_gradients(t, o, g, grad_lse, {"out": out, "lse": lse})
    first, second = (
        backward.backward(g, grad_lse, out, lse, t, problem, turing)[:3] for _ in range(2)
    )
    check(dict(zip(("dq", "dk", "dv"), first, strict=True)), want, torch.float16, case.name)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
