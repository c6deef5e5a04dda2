"""The kernels on a GPU, of any generation: newer ones emulate m8n8k4 and have m16n8k8.

With PORTATTN_VOLTA_PTX the m8n8k4 kernels are PTX for compute_70, made by tools/volta/build.py,
which the driver compiles; without it NVRTC compiles them for the GPU at hand.
"""

from __future__ import annotations

import time

import pytest
import torch

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


@_PRODUCTS
def test_250_repetitions(turing: bool, generator: torch.Generator) -> None:
    built = build(LARGE, torch.float16, torch.device("cuda"), generator)
    problem = problem_of(built.tensors, built.options)
    first = run(built.tensors, problem, turing)
    for _ in range(249):
        again = run(built.tensors, problem, turing)
        assert all(torch.equal(first[name], again[name]) for name in first)


@_PRODUCTS
def test_graph_capture(turing: bool, generator: torch.Generator) -> None:
    built = build(LARGE, torch.float16, torch.device("cuda"), generator)
    problem = problem_of(built.tensors, built.options)
    run(built.tensors, problem, turing)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(built.tensors, problem, turing)
    built.tensors.q.copy_(built.tensors.q.flip(1))
    graph.replay()
    fresh = run(built.tensors, problem, turing)
    assert all(torch.equal(captured[name], fresh[name]) for name in fresh)


def test_launch_cost(generator: torch.Generator, record_property: pytest.RecordProperty) -> None:
    """Host time of a call, without the device's; printed, not judged: it is the machine's."""
    built = build(LARGE, torch.float16, torch.device("cuda"), generator)
    problem = problem_of(built.tensors, built.options)
    best = float("inf")
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(50):
            run(built.tensors, problem, True)
        best = min(best, (time.perf_counter() - start) / 50)
    record_property("microseconds", round(best * 1e6, 1))
    print(f"host cost of a call: {best * 1e6:.1f} us")
    assert best < 1e-3
