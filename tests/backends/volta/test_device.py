"""The kernels on a GPU, of any generation: newer ones emulate m8n8k4 and have m16n8k8.

With PORTATTN_VOLTA_PTX the m8n8k4 kernels are PTX for compute_70, made by tools/volta/build.py,
which the driver compiles; without it NVRTC compiles them for the GPU at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch

from portattn.backends.volta import backward, forward, program
from tests.backends.volta.held import TAKEN, WITH_GRADIENTS, hold, hold_gradients, run
from tests.conformance.budget import problem_of
from tests.conformance.cases import Case, build, dense

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
_PRODUCTS = pytest.mark.parametrize("turing", [False, True], ids=["m8n8k4", "m16n8k8"])
LARGE = dense("large", 2, 300, 300, heads=4, kv_heads=2, head_dim=64, causal=True)


@pytest.fixture(autouse=True)
def _cupy() -> None:
    pytest.importorskip("cupy")


@_PRODUCTS
@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_conformance(
    case: Case, turing: bool, generator: torch.Generator, dirty_memory: None
) -> None:
    hold(case, torch.float16, "cuda", turing, generator)


@_PRODUCTS
@pytest.mark.parametrize("case", WITH_GRADIENTS, ids=lambda case: case.name)
def test_gradients(
    case: Case, turing: bool, generator: torch.Generator, dirty_memory: None
) -> None:
    hold_gradients(case, "cuda", turing, generator)


_CALLS = pytest.mark.parametrize(
    "case",
    [LARGE, *(case for case in TAKEN if case.name in ("cache", "pages of 64"))],
    ids=lambda case: case.name,
)


@_PRODUCTS
@_CALLS
def test_250_repetitions(case: Case, turing: bool, generator: torch.Generator) -> None:
    built = build(case, torch.float16, torch.device("cuda"), generator)
    problem = problem_of(built.tensors, built.options)
    first = run(built.tensors, problem, turing)
    for _ in range(249):
        again = run(built.tensors, problem, turing)
        assert all(torch.equal(first[name], again[name]) for name in first)


@_PRODUCTS
def test_250_gradients(turing: bool, generator: torch.Generator) -> None:
    built = build(LARGE, torch.float16, torch.device("cuda"), generator)
    tensors = built.tensors
    problem = problem_of(tensors, built.options, "backward", True)
    out, lse = forward.forward(tensors, problem_of(tensors, built.options), {}, turing)
    grad = torch.randn(out.shape, generator=generator).half().cuda()
    first = backward.backward(grad, None, out, lse, tensors, problem, turing)[:3]
    for _ in range(249):
        again = backward.backward(grad, None, out, lse, tensors, problem, turing)[:3]
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@_PRODUCTS
@_CALLS
def test_graph_capture(case: Case, turing: bool, generator: torch.Generator) -> None:
    built = build(case, torch.float16, torch.device("cuda"), generator)
    problem = problem_of(built.tensors, built.options)
    run(built.tensors, problem, turing)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(built.tensors, problem, turing)
    built.tensors.q.copy_(built.tensors.q.flip(-2))
    graph.replay()
    fresh = run(built.tensors, problem, turing)
    assert all(torch.equal(captured[name], fresh[name]) for name in fresh)


def test_launch_cost(
    generator: torch.Generator, record_property: Callable[[str, object], None]
) -> None:
    """Host time without the device's: of one launch through CuPy, and of a whole call."""
    built = build(LARGE, torch.float16, torch.device("cuda"), generator)
    problem = problem_of(built.tensors, built.options)
    launches: list[tuple[Any, ...]] = []
    real = program.launch

    def recorded(*given: Any) -> None:
        launches.append(given)
        real(*given)

    with patch.object(program, "launch", recorded):
        out = run(built.tensors, problem, True)  # its tensors outlive the launches below
    calls: dict[str, Callable[[], object]] = {
        "launch": partial(real, *launches[0]),
        "call": partial(run, built.tensors, problem, True),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(20):
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / 50)
    for name, seconds in best.items():
        record_property(f"{name}_microseconds", round(seconds * 1e6, 1))
        print(f"host cost of a {name}: {seconds * 1e6:.1f} us")
    assert out["out"].isfinite().all()
    assert best["launch"] <= 10e-6
