"""The same call gives the same bits, 250 times, at sizes that fill the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_forward_and_deterministic_backward_repeat(head_dim: int) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    hopper = pytest.importorskip("portattn.backends.hopper").HopperBackend()
    shape, where = (2, 1100, 8, head_dim), {"device": "cuda", "dtype": torch.bfloat16}
    q, do = torch.randn(shape, **where), torch.randn(shape, **where)
    k, v = (torch.randn((2, 1100, 2, head_dim), **where) for _ in range(2))
    problem = AttentionProblem(
        "forward", "dense", q.dtype, 2, 1100, 1100, 8, 2, head_dim, head_dim, head_dim**-0.5,
        causal=True, window=(-1, 0),
    )  # fmt: skip
    fixed = replace(problem, operation="backward", deterministic=True)
    tensors = AttentionTensors(q, k, v)
    config: dict[str, int] = {}
    first: list[torch.Tensor] = []
    for _ in range(250):
        out, lse = hopper.forward(tensors, problem, config)
        gradients = hopper.backward(do, None, out, lse, tensors, fixed, config)
        found = [out, lse, gradients.dq, gradients.dk, gradients.dv]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))
