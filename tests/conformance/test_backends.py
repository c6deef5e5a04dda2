"""Every registered backend on every case: values, gradients, poison, repeatability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from portattn.arguments import Options
from portattn.dispatch import device as devices
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors, Backend
from portattn.dispatch.problem import AttentionProblem
from tests.conformance import naive
from tests.conformance.budget import (
    GRADIENTS,
    Expected,
    check,
    expected,
    expected_gradients,
    problem_of,
)
from tests.conformance.cases import CASES, Case, build

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
KINDS = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
MARKS = {"cpu": (), "cuda": (pytest.mark.gpu,)}


def combinations() -> Iterator[object]:
    for kind in KINDS:
        for name in registry.names():
            if kind not in registry.load(name).capability.devices:
                continue
            for dtype in DTYPES:
                if dtype in registry.load(name).capability.dtypes:
                    label = f"{name}-{kind}-{str(dtype).removeprefix('torch.')}"
                    marks = MARKS[kind]
                    slow = name in ("triton", "ascend_tiled")
                    if slow and (kind, dtype) == ("cpu", torch.float16):
                        # The interpreter is slow, and float32 goes through the same lines.
                        marks = (pytest.mark.nightly,)
                    yield pytest.param(name, kind, dtype, id=label, marks=marks)


COMBINATIONS = list(combinations())


def run(
    backend: Backend, t: AttentionTensors, o: Options, problem: AttentionProblem
) -> dict[str, Tensor]:
    call = backend.decode if problem.operation == "decode" else backend.forward
    out, lse = call(t, problem, {})
    return {"out": out, "lse": lse}


def reasons(backend: Backend, problem: AttentionProblem, kind: str) -> list[str]:
    return backend.reasons_against(problem, devices.of(torch.device(kind)))


@pytest.mark.parametrize(("name", "kind", "dtype"), COMBINATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward(
    name: str, kind: str, dtype: torch.dtype, case: Case, generator: torch.Generator
) -> None:
    backend = registry.load(name)
    t, o = _built(case, dtype, kind, generator)
    problem = problem_of(t, o)
    if _declined(name, kind, case, dtype, problem):
        return
    got = run(backend, t, o, problem)
    assert got["out"].dtype == dtype and got["lse"].dtype in (torch.float32, dtype)
    check(got, expected(t, o), dtype, f"{name} {case.name}")
    again = run(backend, t, o, problem)
    if "repeatable" in backend.capability.promises_on(kind):
        assert all(torch.equal(got[key], again[key]) for key in got)


@pytest.mark.parametrize("lse_grad", [False, True], ids=["", "with dlse"])
@pytest.mark.parametrize(("name", "kind", "dtype"), COMBINATIONS)
@pytest.mark.parametrize("case", [c for c in CASES if c.differentiable], ids=lambda case: case.name)
def test_backward(
    name: str,
    kind: str,
    dtype: torch.dtype,
    case: Case,
    lse_grad: bool,
    generator: torch.Generator,
) -> None:
    backend = registry.load(name)
    t, o = _built(case, dtype, kind, generator)
    problem = problem_of(t, o, "backward", lse_grad)
    if _declined(name, kind, case, dtype, problem):
        return
    grad_out = torch.randn((*t.q.shape[:-1], t.v.shape[-1]), generator=generator).to(dtype).to(kind)
    # The results come from the definition: a backward must take any backend's.
    given = run(registry.load("reference"), t, o, problem_of(t, o))
    grad_lse = None
    if lse_grad:
        grad_lse = torch.randn(given["lse"].shape, generator=generator).to(given["lse"])
        grad_lse = grad_lse.masked_fill(given["lse"].isinf(), 0)
    grads = backend.backward(grad_out, grad_lse, given["out"], given["lse"], t, problem, {})
    got = {f"d{n}": g for n, g in zip(GRADIENTS, grads, strict=True) if g is not None}
    assert set(got) >= {"dq", "dk", "dv"} | {
        f"d{n}" for n in ("bias", "sinks") if getattr(t, n) is not None
    }
    check(got, expected_gradients(t, o, grad_out, grad_lse, given), dtype, f"{name} {case.name}")
    if problem.deterministic or kind == "cpu":
        again = backend.backward(grad_out, grad_lse, given["out"], given["lse"], t, problem, {})
        for first, second in zip(grads, again, strict=True):
            assert first is None or torch.equal(first, second)


@pytest.mark.parametrize(("name", "kind", "dtype"), COMBINATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_poison(
    name: str,
    kind: str,
    dtype: torch.dtype,
    case: Case,
    generator: torch.Generator,
    dirty_memory: None,
) -> None:
    """NaN in keys that no query sees, and in memory nobody wrote, changes nothing."""
    backend = registry.load(name)
    t, o = _built(case, dtype, kind, generator)
    problem = problem_of(t, o)
    if _declined(name, kind, case, dtype, problem):
        return
    if "poison" not in backend.capability.promises_on(kind):
        return
    if case.stored == "int8":
        return  # it can't hold NaN
    clean = expected(t, o)
    t = replace(t, k=_poisoned(t, o, t.k), v=_poisoned(t, o, t.v))
    check(run(backend, t, o, problem), clean, dtype, f"{name} {case.name}, poisoned")


@pytest.mark.parametrize(("name", "kind", "dtype"), COMBINATIONS)
def test_poison_of_a_partly_visible_key(
    name: str, kind: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Causal: NaN in the last key reaches the last row, and only it."""
    backend = registry.load(name)
    case = next(c for c in CASES if c.name == "causal 17x17")
    t, o = _built(case, dtype, kind, generator)
    problem = problem_of(t, o)
    if reasons(backend, problem, kind) or "poison" not in backend.capability.promises_on(kind):
        return
    want = expected(t, o)
    exact, plain = (
        {n: x[:, :-1] if n == "out" else x[..., :-1] for n, x in part.items()} for part in want[:2]
    )
    first = Expected(exact, plain, want.terms)
    for poisoned in ("k", "v"):
        tensor = getattr(t, poisoned).clone()
        tensor[:, -1] = float("nan")
        got = run(backend, replace(t, **{poisoned: tensor}), o, problem)
        assert bool(got["out"][:, -1].isnan().all())
        rows = {"out": got["out"][:, :-1], "lse": got["lse"][..., :-1]}
        check(rows, first, dtype, f"{name}, NaN in {poisoned}")


@pytest.mark.parametrize(("name", "kind", "dtype"), COMBINATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_batch_invariance(
    name: str, kind: str, dtype: torch.dtype, case: Case, generator: torch.Generator
) -> None:
    """A sequence alone and in a batch: the same bits, where that is promised."""
    backend = registry.load(name)
    t, o = _built(case, dtype, kind, generator)
    problem = problem_of(t, o)
    promised = "batch_invariant" in backend.capability.promises_on(kind)
    if not promised or case.layout != "dense" or case.dropout_p or len(t.q) < 2:
        return
    if reasons(backend, problem, kind):
        return
    whole = run(backend, t, o, problem)
    for b in range(len(t.q)):
        one = _only(t, b)
        alone = run(backend, one, o, problem_of(one, o))
        assert torch.equal(alone["out"][0], whole["out"][b])
        assert torch.equal(alone["lse"][0], whole["lse"][b])


def test_repeatability(generator: torch.Generator) -> None:
    """Ten runs of a larger problem: one bit pattern."""
    case = Case("large", ((300, 300),) * 2, heads=4, kv_heads=2, head_dim=64, causal=True)
    _repeat(case, 10, generator)


@pytest.mark.nightly
def test_repeatability_250(generator: torch.Generator) -> None:
    case = Case("large", ((300, 300),) * 2, heads=4, kv_heads=2, head_dim=64, causal=True)
    _repeat(case, 250, generator)


def test_every_case_runs_beyond_the_reference() -> None:
    """On a CPU some backend other than the reference runs each case, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    others = [registry.load(name) for name in registry.names() if name != "reference"]
    for case in CASES:
        t, o = _built(case, torch.float32, "cpu", generator)
        operations = ["", "backward"] if case.differentiable else [""]
        for operation in operations:
            problem = problem_of(t, o, operation)
            assert any(not reasons(backend, problem, "cpu") for backend in others), case.name


def _declined(
    name: str, kind: str, case: Case, dtype: torch.dtype, problem: AttentionProblem
) -> bool:
    """Whether a backend declines, which is only legal by its declared limits or its own words."""
    found = reasons(registry.load(name), problem, kind)
    assert all(isinstance(reason, str) and reason for reason in found)
    if name in ("reference", "cpu"):
        assert not found, f"{name} declines {case.name}: {found}"
    return bool(found)


@cache
def _device(kind: str) -> torch.device:
    return torch.device(kind)


def _built(
    case: Case, dtype: torch.dtype, kind: str, generator: torch.Generator
) -> tuple[AttentionTensors, Options]:
    built = build(case, dtype, _device(kind), generator)
    return built.tensors, built.options


def _poisoned(t: AttentionTensors, o: Options, stored: Tensor) -> Tensor:
    """A copy of k or v with NaN wherever no query of any sequence looks."""
    seen = torch.zeros(stored.shape[:-1], dtype=torch.bool, device=stored.device)
    marks = seen[..., None].clone()
    batch = len(t.cu_seqlens_q) - 1 if t.cu_seqlens_q is not None else len(t.q)
    positions = torch.arange(marks.numel(), device=stored.device).view(marks.shape)
    for b in range(batch):
        where = naive.stored_sequence(replace(t, k=positions, v=positions), b)[1]
        q = naive.sequence(t, b)[0]
        looks = naive.visible(t, o, b, (len(q), len(where))).any(1)
        looks = looks.unflatten(0, (where.shape[1], -1)).any(1).T
        seen.view(-1)[where[..., 0][looks]] = True
    if stored.dtype == torch.float8_e4m3fn:
        return stored.view(torch.uint8).masked_fill(~seen[..., None], 0x7F).view(stored.dtype)
    return stored.masked_fill(~seen[..., None], float("nan"))


def _only(t: AttentionTensors, b: int) -> AttentionTensors:
    def cut(x: Tensor | None, batched: bool = True) -> Tensor | None:
        return x if x is None or not batched or x.shape[0] == 1 else x[b : b + 1]

    slopes = t.alibi_slopes
    return replace(
        t,
        q=t.q[b : b + 1],
        k=t.k[b : b + 1],
        v=t.v[b : b + 1],
        bias=cut(t.bias),
        mask=cut(t.mask),
        alibi_slopes=cut(slopes, slopes is not None and slopes.dim() == 2),
    )


def _repeat(case: Case, times: int, generator: torch.Generator) -> None:
    for kind in KINDS:
        t, o = _built(case, torch.bfloat16, kind, generator)
        problem = problem_of(t, o)
        for name in registry.names():
            backend = registry.load(name)
            if reasons(backend, problem, kind):
                continue
            first = run(backend, t, o, problem)
            for _ in range(times - 1):
                again = run(backend, t, o, problem)
                assert all(torch.equal(first[key], again[key]) for key in first), name
