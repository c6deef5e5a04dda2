"""What TMA is told about a tensor, and what it can't be told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from portattn.arguments import describe, options
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import ArgumentError

arguments = pytest.importorskip("portattn.backends.hopper.arguments")
forward = pytest.importorskip("portattn.backends.hopper.forward")
gradients = pytest.importorskip("portattn.backends.hopper.gradients")
primitives = pytest.importorskip("portattn.backends.hopper.primitives")
tiles = pytest.importorskip("portattn.backends.hopper.tiles")
hopper = pytest.importorskip("portattn.backends.hopper")

H100 = Device("cuda", "nvidia", "sm_90a", "NVIDIA H100", cores=132)


def _problem(q: Tensor, causal: bool = False) -> AttentionProblem:
    settings = options(q, causal=causal, softmax_scale=None, window_size=(-1, -1), softcap=0.0)
    return describe("forward", AttentionTensors(q, q, q), settings)


def _views() -> list[tuple[str, Tensor]]:
    dense = torch.arange(2 * 6 * 4 * 32).half()
    return [
        ("bshd", dense.view(2, 6, 4, 32)),
        ("bhsd", dense.view(2, 4, 6, 32).transpose(1, 2)),
        ("of a fused qkv", dense.view(2, 6, 4, 32)[..., 8:24]),
        ("one sequence", dense.view(2, 6, 4, 32)[1:]),
        ("packed", dense.view(12, 4, 32)),
    ]


@pytest.mark.parametrize(("name", "tensor"), _views(), ids=[name for name, _ in _views()])
def test_a_descriptor_finds_every_element(name: str, tensor: Tensor) -> None:
    """Without a copy: [batch, head, row, dim] over the tensor's own memory."""
    slot = SimpleNamespace(index=0)
    box, rest = arguments.descriptors(slot, "q", tensor, 64, (32, 0))
    assert rest is None and box.block == [1, 1, 64, 32]
    described = box.of([tensor])
    assert all(stride * 2 % 16 == 0 for stride in described.strides[:-1])
    found = tensor.as_strided(described.shape, described.strides, tensor.storage_offset())
    batched = tensor if tensor.dim() == 4 else tensor[None]
    assert torch.equal(found, batched.transpose(1, 2))
    # A launch of the compiled kernel has only the address.
    later = box.of([tensor.data_ptr()])
    assert later.base.data_ptr() == tensor.data_ptr()
    assert (later.shape, later.strides) == (described.shape, described.strides)


class Recorder:
    """Stands for the kernel on a device that isn't there, and notes its launches."""

    def __init__(self, kernel: Any) -> None:
        self.fn, self.arg_names = kernel.fn, kernel.arg_names
        self.compiled: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def compile_and_launch(*args: Any, **options: Any) -> Any:
            self.compiled.append(args)
            return {grid: lambda *given: self.launched.append(given)}

        return compile_and_launch


def test_a_second_call_launches_what_the_first_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own addresses, and an argument for every parameter of the kernel."""
    kernel = Recorder(forward.forward_kernel)
    monkeypatch.setattr(forward, "forward_kernel", kernel)
    q, k, v, other = (torch.zeros(1, 80, 2, 64).half() for _ in range(4))
    problem = _problem(q, causal=True)
    hopper.HopperBackend().forward(AttentionTensors(q, k, v), problem, config := {})
    (first,) = kernel.compiled
    assert first[0].base is q and first[2].base is k and first[4].base is v
    hopper.HopperBackend().forward(AttentionTensors(q, other, v), problem, config)
    assert len(kernel.compiled) == 1
    (later,) = kernel.launched
    assert len(later) == len(kernel.arg_names)
    assert later[2].base.data_ptr() == other.data_ptr()
    assert later[2].shape == first[2].shape


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 8, 2, 36).half()[..., 4:],
        torch.zeros(1, 8, 2, 36).half()[..., :32],
        torch.zeros(1, 1, 2, 32).half().expand(1, 8, 2, 32),
    ],
    ids=["begins at 8 bytes", "steps of 72 bytes", "steps of 0"],
)
def test_what_tma_cannot_address_is_a_reason(tensor: Tensor) -> None:
    (reason,) = hopper.HopperBackend().reasons_against(_problem(tensor), H100)
    assert "16 bytes" in reason
    assert not hopper.HopperBackend().reasons_against(_problem(tensor.contiguous()), H100)


def test_memory_that_is_not_aligned_is_refused() -> None:
    """Only a launch sees the address; the error names the argument."""
    spare = torch.zeros(1024).half()
    start = 1 + -spare.data_ptr() % 16 // 2
    with pytest.raises(ArgumentError, match="k"):
        arguments.descriptors(
            SimpleNamespace(index=1), "k", spare[start : start + 512].view(1, 4, 4, 32), 64, (32, 0)
        )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_dim": 12}, "multiple of 8"),
        ({"head_dim": 264}, "more than 256"),
        ({"dtype": torch.float32}, "float32"),
    ],
)
def test_other_problems_are_declined(changes: dict[str, object], reason: str) -> None:
    problem = replace(_problem(torch.zeros(1, 8, 2, 64).half()), **changes)  # type: ignore[arg-type]
    reasons = hopper.HopperBackend().reasons_against(problem, H100)
    assert any(reason in one for one in reasons), reasons


@pytest.mark.parametrize("head_dim", [8, 40, 64, 96, 128, 160, 192, 256])
@pytest.mark.parametrize("queries", [1, 1000])
def test_default_tiles_fit(head_dim: int, queries: int) -> None:
    problem = _problem(torch.zeros(1, queries, 2, head_dim).half(), causal=True)
    assert not tiles.reasons_against("hopper.forward", {}, problem)


def test_a_tile_that_does_not_fit_is_a_reason() -> None:
    problem = _problem(torch.zeros(1, 512, 2, 256).half())
    reasons = tiles.reasons_against("hopper.forward", {"stages": 4}, problem)
    assert any("shared memory" in reason for reason in reasons)
    reasons = tiles.reasons_against("hopper.forward", {"warpgroups": 3, "stages": 1}, problem)
    assert any("registers" in reason for reason in reasons)


@pytest.mark.parametrize("causal", [False, True])
def test_the_tuning_space_is_legal_and_has_the_default(causal: bool) -> None:
    problem = _problem(torch.zeros(1, 512, 2, 128).half(), causal=causal)
    space = list(hopper.HopperBackend().tuning_space("hopper.forward", problem, H100))
    legal = tiles.KERNELS["forward"]
    assert all(value in legal[name] for config in space for name, value in config.items())
    assert tiles.forward(problem, {})._asdict() in space


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_every_kernel_of_the_backward_gets_its_arguments(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool, packed: bool
) -> None:
    """dq is summed in any order by one kernel, or in a fixed order by another."""
    names = ("prepare_kernel", "backward_kernel", "finish_kernel", "query_gradient_kernel")
    kernels = {name: Recorder(getattr(gradients, name)) for name in names}
    for name, kernel in kernels.items():
        monkeypatch.setattr(gradients, name, kernel)
    q = torch.zeros(*((160,) if packed else (2, 80)), 2, 64).half()
    lse = torch.zeros(*((2, 160) if packed else (2, 2, 80)))
    tensors = AttentionTensors(q, q.clone(), q.clone())
    if packed:
        tensors.cu_seqlens_q = tensors.cu_seqlens_k = torch.tensor([0, 80, 160]).int()
    problem = replace(
        _problem(torch.zeros(2, 80, 2, 64).half(), causal=True),
        operation="backward",
        layout="varlen" if packed else "dense",
        deterministic=deterministic,
    )
    config: dict[str, int] = {}
    for _ in range(2):
        found = hopper.HopperBackend().backward(q, None, q, lse, tensors, problem, config)
        assert found.dq.shape == q.shape and found.dk.shape == q.shape
    last = "query_gradient_kernel" if deterministic else "finish_kernel"
    for name in ("prepare_kernel", "backward_kernel", last):
        (first,), (later,) = kernels[name].compiled, kernels[name].launched
        assert len(later) == len(kernels[name].arg_names) and len(first) < len(later)
    unused = "finish_kernel" if deterministic else "query_gradient_kernel"
    assert not kernels[unused].compiled


@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    block_m=st.sampled_from([64, 128]),
)
def test_padded_sequences_do_not_meet(lengths: list[int], block_m: int) -> None:
    """Each begins with a tile of its own in the memory of lse, delta and dq's sums."""
    tensors = AttentionTensors(*(torch.empty(sum(lengths), 1, 8) for _ in range(3)))
    tensors.cu_seqlens_q = torch.tensor([0, *lengths]).cumsum(0)
    problem = replace(_problem(torch.zeros(1, 8, 1, 8).half()), batch=len(lengths))
    extents = SimpleNamespace(cu_seqlens_q=tensors.cu_seqlens_q)
    end = 0
    for b, (start, length) in enumerate(zip(tensors.cu_seqlens_q.tolist(), lengths, strict=False)):
        tile = primitives.padded_tile.fn(extents, b, start, block_m)
        assert tile >= end
        end = tile + -(-length // block_m)
    assert end <= gradients.padded_tiles(tensors, problem, block_m)


def test_backward_declines_wide_heads_and_tiles_that_do_not_fit() -> None:
    problem = replace(_problem(torch.zeros(1, 512, 2, 192).half()), operation="backward")
    assert any("128" in one for one in hopper.HopperBackend().reasons_against(problem, H100))
    problem = replace(problem, head_dim=128, head_dim_v=128)
    assert not hopper.HopperBackend().reasons_against(problem, H100)
    assert not tiles.reasons_against("hopper.backward", {}, problem)
    assert tiles.reasons_against("hopper.backward", {"block_m": 128}, problem)
    space = tiles.tuning_space("hopper.backward", problem)
    assert {"block_m": 64, "stages": 2, "sums": 1} in space
    legal = tiles.KERNELS["backward"]
    assert all(value in legal[name] for config in space for name, value in config.items())
