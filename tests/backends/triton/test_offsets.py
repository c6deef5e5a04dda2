"""Offsets in 64 bits give the bits that offsets in 32 give."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.budget import problem_of
from tests.conformance.cases import CASES, build

triton_backend = pytest.importorskip("portattn.backends.triton")
arguments = pytest.importorskip("portattn.backends.triton.arguments")


@pytest.mark.parametrize("name", ["strides padded", "varlen features", "cache features"])
def test_wide_offsets(name: str, generator: torch.Generator, on_cpu: torch.device) -> None:
    case = next(case for case in CASES if case.name == name)
    built = build(case, torch.float32, on_cpu, generator)
    problem = problem_of(built.tensors, built.options)
    backend = triton_backend.TritonBackend()
    run = backend.decode if problem.operation == "decode" else backend.forward
    narrow = run(built.tensors, problem, {})
    assert not arguments.wide(built.tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arguments, "wide", lambda tensors: True)
        # The plan of the narrow call must not be taken again.
        problem = problem_of(built.tensors, built.options)
        wide = run(built.tensors, problem, {})
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))
