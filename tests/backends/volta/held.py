"""One conformance case on the volta kernels, wherever they run."""

from __future__ import annotations

from dataclasses import replace

import torch

from portattn.backends.volta import VoltaBackend, decode, forward
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from tests.conformance.budget import check, expected, problem_of
from tests.conformance.cases import CASES, Case, build
from tests.conformance.test_backends import _poisoned

V100 = Device("cuda", "nvidia", "sm_70", "V100")


def declared(case: Case, dtype: torch.dtype) -> bool:
    """Whether the backend says that it takes a case."""
    built = build(case, dtype, torch.device("cpu"), torch.Generator())
    problem = problem_of(built.tensors, built.options)
    return not VoltaBackend.capability.reasons_against(problem, V100)


TAKEN = [case for case in CASES if declared(case, torch.float16)]


def run(
    t: AttentionTensors, problem: AttentionProblem, turing: bool
) -> dict[str, torch.Tensor]:
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
