"""The vendor route: what it passes, what it makes of the answer, and what it refuses, and how.

The operators' own arithmetic needs a chip; their names, arguments and shapes are compared with the
real torch-npu by test_real_operators.py.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest
import torch

import portattn.backends.ascend as ascend
from portattn.backends.ascend import constraints
from portattn.backends.common import definition
from portattn.dispatch import registry
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import NoBackendError
from tests.backends.ascend.fused_operators import FusedOperators, FusedOperatorsV2
from tests.conformance.budget import problem_of
from tests.conformance.cases import CASES, Case, build

CPU = torch.device("cpu")
NPU = Device("npu", "huawei", "ascend910b", "Ascend910B2")
DECODE = AttentionProblem("decode", "cache", torch.bfloat16, 2, 1, 512, 8, 2, 128, 128, 128**-0.5)
FORWARD = replace(DECODE, operation="forward", layout="dense", seqlen_q=512)
# Pages of the operators' own size, which no general case has.
PAGED = [
    replace(case, name=f"{case.name} of 128", page_size=128)
    for case in CASES
    if case.page_size and not case.leftpad
]


@pytest.fixture(params=[FusedOperators, FusedOperatorsV2], ids=["v1", "v2"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = request.param()
    monkeypatch.setattr(ascend, "_library", lambda: made)
    monkeypatch.setattr(constraints, "environment_reasons", lambda: ())
    return made


def close(found: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("case", [*CASES, *PAGED], ids=lambda case: case.name)
def test_passes_and_reads_every_convention(
    case: Case, operators: Any, generator: torch.Generator
) -> None:
    backend = registry.load("ascend")
    built = build(case, torch.float16, CPU, generator)
    t, problem = built.tensors, problem_of(built.tensors, built.options)
    right, right_lse = definition.forward(t, problem)
    if not backend.reasons_against(problem, NPU):
        call = backend.decode if problem.operation == "decode" else backend.forward
        out, lse = call(t, problem, {})
        close(out, right)
        close(lse, right_lse)
    backward = replace(problem, operation="backward")
    if problem.operation == "decode" or backend.reasons_against(backward, NPU):
        return
    grad_out = right.cos()
    found = backend.backward(grad_out, None, right, right_lse, t, backward, {})
    wanted = definition.backward(grad_out, None, right, right_lse, t, backward)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            close(one, other)


def test_most_cases_are_within_its_limits(operators: Any, generator: torch.Generator) -> None:
    backend = registry.load("ascend")
    runs = []
    for case in [*CASES, *PAGED]:
        built = build(case, torch.float16, CPU, generator)
        problem = problem_of(built.tensors, built.options)
        runs += [problem] if not backend.reasons_against(problem, NPU) else []
    assert len(runs) >= 50
    assert {problem.layout for problem in runs} == {"dense", "varlen", "cache"}
    assert {problem.page_size for problem in runs} >= {0, 128}


LIMITS = [
    (replace(FORWARD, head_dim=776, head_dim_v=776), "head_dim 776 is more than 768"),
    (replace(FORWARD, head_dim_v=256), "values can't be wider than keys"),
    (replace(FORWARD, heads=512, kv_heads=512), "up to 256 heads, not 512"),
    (replace(FORWARD, seqlen_k=2**20 + 1), "up to 1048576 rows or keys"),
    (replace(FORWARD, layout="varlen", batch=2049), "up to 2048 packed sequences"),
    (replace(FORWARD, dtype=torch.float64), "dtype float64 is not supported"),
    (replace(FORWARD, softcap=9.0), "softcap is not supported"),
    (replace(FORWARD, sinks=True), "CANN may not know them"),
    (replace(DECODE, page_size=64), "pages of 128 to 512 keys in steps of 128, not 64"),
    (replace(DECODE, page_size=640), "not 640"),
    (replace(DECODE, head_dim=72, head_dim_v=72), "multiples of 16 up to 512, not 72"),
    (replace(DECODE, heads=130), "up to 64 heads per kv head"),
    (replace(DECODE, window=(9, 0)), "ignores windows for a single query"),
    (replace(DECODE, batch=65537), "a batch up to 65536"),
]


@pytest.mark.parametrize(("problem", "words"), LIMITS)
def test_limits_are_reasons(problem: AttentionProblem, words: str, operators: Any) -> None:
    backend = registry.load("ascend")
    assert not backend.reasons_against(FORWARD, NPU) and not backend.reasons_against(DECODE, NPU)
    assert any(words in reason for reason in backend.reasons_against(problem, NPU))


def test_on_another_family_it_says_so(operators: Any) -> None:
    reasons = registry.load("ascend").reasons_against(FORWARD, replace(NPU, family="ascend310p"))
    assert any("this device is ascend310p" in reason for reason in reasons)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that exactly these packages are installed."""

    def install(**versions: str) -> None:
        known = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in known:
                raise metadata.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(metadata, "version", version)
        for cached in (constraints.environment_reasons, constraints.triton_reasons):
            cached.cache_clear()
        from portattn.backends.common import library

        library.missing.cache_clear()

    yield install
    monkeypatch.undo()
    install_nothing = (constraints.environment_reasons, constraints.triton_reasons)
    for cached in install_nothing:
        cached.cache_clear()


def test_a_missing_or_unfitting_package_is_a_reason(packages: Any) -> None:
    minor = ".".join(torch.__version__.split(".")[:2])
    packages()
    (reason,) = constraints.environment_reasons()
    assert f"pip install torch-npu=={minor}.*" in reason and "CANN" in reason
    packages(torch_npu="2.5.1")
    assert "2.6 or newer is needed" in constraints.environment_reasons()[0]
    packages(torch_npu="2.99.0")
    assert "torch-npu 2.99 needs torch 2.99" in constraints.environment_reasons()[0]
    packages(torch_npu=f"{minor}.0")  # as where CANN's libraries can't be found
    assert "CANN" in constraints.environment_reasons()[0]


def test_the_two_tritons_exclude_each_other(packages: Any) -> None:
    packages(triton="3.6.0", triton_ascend="3.2.0")
    assert "overwrite each other" in constraints.triton_reasons()[0]
    packages(triton="3.6.0")
    assert "triton-ascend is not installed" in constraints.triton_reasons()[0]
    packages(triton_ascend="3.2.0")
    assert constraints.triton_reasons() == ()


def test_without_torch_npu_an_explicit_choice_says_what_is_missing(packages: Any) -> None:
    from portattn.dispatch.select import select

    packages()
    with pytest.raises(NoBackendError, match="torch-npu is not installed"):
        select(FORWARD, NPU, backend="ascend")
