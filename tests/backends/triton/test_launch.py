"""A launch is planned once, and every later one passes its own tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import portattn
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

launch = pytest.importorskip("portattn.backends.common.launch")
arguments = pytest.importorskip("portattn.backends.triton.arguments")

PROBLEM = AttentionProblem("forward", "dense", torch.float32, 1, 8, 8, 2, 2, 16, 16, 0.25)


class Recorder:
    """Stands for a kernel compiled for a device that isn't there, and notes its launches."""

    arg_names = ("x", "y", "z", "SIZE")
    __name__ = "recorder"

    def __init__(self) -> None:
        self.fn = SimpleNamespace(__name__="recorder")
        self.compiled: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def compile_and_launch(*args: Any, **options: Any) -> Any:
            self.compiled.append(args)
            return {grid: lambda *given: self.launched.append(given)}

        return compile_and_launch


def _launch(kernel: Recorder, tensors: AttentionTensors, config: dict[str, int]) -> int:
    """Launch once; returns how often the launch was planned."""
    planned = []

    def plan() -> Any:
        planned.append(1)
        args = (
            arguments.rows(launch.operand("q"), tensors.q),
            arguments.rows(launch.operand("k"), tensors.k),
            arguments.vector(launch.further(0), tensors.q[..., 0]),
        )
        return launch.Plan(3, args, {"SIZE": 16}, {"num_warps": 4})

    launch.run(kernel, launch.Call(tensors, PROBLEM, config), (tensors.v,), plan)
    return len(planned)


def _aligned(*shape: int) -> torch.Tensor:
    """Memory at a multiple of 16 bytes."""
    spare = torch.zeros(torch.Size(shape).numel() + 4)
    start = -spare.data_ptr() % 16 // 4
    return spare[start : start + torch.Size(shape).numel()].view(shape)


def test_each_launch_gets_its_own_pointers() -> None:
    """Also where the first call's tensors were one and the same."""
    kernel, config = Recorder(), {}
    same = _aligned(1, 8, 2, 16)
    assert _launch(kernel, AttentionTensors(same, same, same), config) == 1
    assert kernel.compiled[0][0].ptr is same
    q, k, v = (_aligned(1, 8, 2, 16) for _ in range(3))
    assert _launch(kernel, AttentionTensors(q, k, v), config) == 0
    (first, second, third, size), *_ = kernel.launched
    assert (first[0], second[0], third[0]) == (q.data_ptr(), k.data_ptr(), v.data_ptr())
    assert first[1:] == q.stride() and size == 16


def test_other_strides_or_alignment_are_other_launches() -> None:
    kernel, config = Recorder(), {}
    q = _aligned(1, 8, 2, 16)
    assert _launch(kernel, AttentionTensors(q, q, q), config) == 1
    wide = _aligned(1, 8, 2, 32)[..., :16]
    assert _launch(kernel, AttentionTensors(q, wide, q), config) == 1
    shifted = _aligned(2 * 8 * 16 + 4)[1 : 1 + 2 * 8 * 16].view(1, 8, 2, 16)
    assert _launch(kernel, AttentionTensors(q, shifted, q), config) == 1
    assert _launch(kernel, AttentionTensors(q, shifted, q), config) == 1
    assert len(kernel.compiled) == 4 and not kernel.launched


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_small_tensors_with_gaps(name: str) -> None:
    """A view of every second entry is what its contiguous copy is, gradients included."""
    q = torch.randn(1, 8, 2, 16, requires_grad=True)
    gaps = torch.rand(4)[::2]
    results = []
    for tensor in (gaps.contiguous(), gaps, gaps):
        out = portattn.attention(q, q, q, **{name: tensor}, backend="triton")
        results.append((out, torch.autograd.grad(out.sum(), q)[0]))
    for found in results[1:]:
        assert all(map(torch.equal, results[0], found))


def test_lengths_with_gaps() -> None:
    """As the last column of a table of them."""
    lengths = torch.tensor([[0, 0], [5, 3], [10, 8]], dtype=torch.int32)
    q, cache = torch.randn(8, 2, 16), torch.randn(2, 8, 2, 16)
    outs = []
    for ends in (lengths[:, 1].contiguous(), lengths[:, 1]):
        varlen = portattn.attention_varlen(q, q, q, ends, ends, 5, 5, backend="triton")
        held = portattn.ContiguousKVCache.from_tensors(cache, cache, ends[1:], longest=8)
        decoded = portattn.attention_with_kvcache(q[:2, None], held, backend="triton")
        outs.append((varlen, decoded))
    assert all(map(torch.equal, *outs))
