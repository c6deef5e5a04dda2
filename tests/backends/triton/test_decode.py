"""The even split of decode, over every number of programs and lengths of all kinds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portattn.backends.common import definition
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

triton_backend = pytest.importorskip("portattn.backends.triton")
tiles = pytest.importorskip("portattn.backends.triton.tiles")


def _problem(lengths: list[int], queries: int, deterministic: bool = False) -> AttentionProblem:
    return AttentionProblem(
        "decode",
        "cache",
        torch.float32,
        len(lengths),
        queries,
        max(lengths),
        4,
        2,
        16,
        16,
        0.25,
        causal=True,
        window=(-1, 0),
        deterministic=deterministic,
    )


def _tensors(lengths: list[int], queries: int, seed: int) -> AttentionTensors:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = AttentionTensors(
        normal(len(lengths), queries, 4, 16),
        normal(len(lengths), max(lengths) + 3, 2, 16),
        normal(len(lengths), max(lengths) + 3, 2, 16),
    )
    tensors.seqused_k = torch.tensor(lengths, dtype=torch.int32)
    return tensors


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=5),
    queries=st.sampled_from([1, 3]),
    programs=st.sampled_from([1, 2, 3, 7, 18, 40]),
    seed=st.integers(0, 2**30),
)
def test_any_split_is_exact(
    lengths: list[int], queries: int, programs: int, seed: int, on_cpu: torch.device
) -> None:
    """Runs that begin and end anywhere, outputs over one program, some, or more than 16."""
    lengths = [*lengths, 5]
    tensors, problem = _tensors(lengths, queries, seed), _problem(lengths, queries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "multiprocessors", lambda device: programs)
        out, lse = triton_backend.TritonBackend().decode(
            tensors, problem, {"block_n": 16, "programs": 1}
        )
    right, right_lse = definition.forward(tensors, problem)
    torch.testing.assert_close(out, right, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(lse, right_lse, rtol=1e-5, atol=2e-6)


def test_alone_and_in_a_batch_alike(on_cpu: torch.device) -> None:
    """deterministic: a sequence's bits don't depend on the batch around it."""
    backend = triton_backend.TritonBackend()
    lengths = [700, 3, 311]
    tensors = _tensors(lengths, 1, 7)
    config = {"block_n": 16}
    whole, whole_lse = backend.decode(tensors, _problem(lengths, 1, True), config)
    for b, length in enumerate(lengths):
        one = AttentionTensors(tensors.q[b : b + 1], tensors.k[b : b + 1], tensors.v[b : b + 1])
        one.seqused_k = torch.tensor([length], dtype=torch.int32)
        out, lse = backend.decode(one, _problem([length], 1, True), config)
        assert torch.equal(out[0], whole[b]) and torch.equal(lse[0], whole_lse[b])
