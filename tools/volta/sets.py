"""Which variants of the volta backend's kernels are looked at: what its launchers would launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from portattn.arguments import describe, options
from portattn.backends.volta import backward, decode, forward, program
from portattn.backends.volta.variants import Variant
from portattn.dispatch.backend import AttentionTensors

Variants = dict[Variant, int]  # with their bytes of shared memory


@contextmanager
def recording() -> Iterator[Variants]:
    """Launches are written down, in order, and not made."""
    seen: Variants = {}

    def launch(variant: Variant, blocks: int, shared: int, problem: object) -> None:
        seen[variant] = shared

    with patch.object(program, "launch", launch):
        yield seen


def common(turing: bool) -> Variants:
    """Forwards of every head dim, with and without features, decoding, and backwards."""
    with recording() as seen:
        for head_dim in (32, 64, 96, 128, 192, 256):
            _forward(head_dim, turing)
            _forward(head_dim, turing, softcap=30.0, alibi=True)
            _forward(head_dim, turing, dtype=torch.bfloat16)
        for head_dim in (64, 128):
            _decode(head_dim, turing, paged=False)
            _decode(head_dim, turing, paged=True)
            _backward(head_dim, turing)
    return seen


def of_tests(turing: bool) -> Variants:
    """Every variant that the conformance cases in float16 launch."""
    from tests.backends.volta.held import TAKEN, WITH_GRADIENTS, run
    from tests.backends.volta.test_device import LARGE
    from tests.conformance.budget import problem_of
    from tests.conformance.cases import build

    with recording() as seen:
        for case in (*TAKEN, LARGE):
            built = build(case, torch.float16, torch.device("cpu"), torch.Generator())
            run(built.tensors, problem_of(built.tensors, built.options), turing)
        for case in WITH_GRADIENTS:
            made = build(case, torch.float16, torch.device("cpu"), torch.Generator())
            t, o = made.tensors, made.options
            out, lse = forward.results(t.q, problem_of(t, o))
            problem = problem_of(t, o, "backward", True)
            backward.backward(out, lse, out, lse, t, problem, turing)
    return seen


def _forward(
    head_dim: int,
    turing: bool,
    dtype: torch.dtype = torch.float16,
    softcap: float = 0.0,
    alibi: bool = False,
) -> None:
    q = torch.empty(1, 256, 4, head_dim, dtype=dtype)
    tensors = AttentionTensors(q, q, q)
    if alibi:
        tensors.alibi_slopes = torch.empty(4)
    settings = options(q, softmax_scale=None, causal=True, window_size=(-1, -1), softcap=softcap)
    forward.forward(tensors, describe("forward", tensors, settings), {}, turing)


def _decode(head_dim: int, turing: bool, paged: bool) -> None:
    q = torch.empty(1, 1, 32, head_dim, dtype=torch.float16)
    tensors = AttentionTensors(q, *(torch.empty(16, 256, 8, head_dim).half() for _ in range(2)))
    if paged:
        tensors.block_table = torch.zeros(1, 16, dtype=torch.int32)
    else:
        tensors.k, tensors.v = (
            tensors.k.view(1, -1, 8, head_dim),
            tensors.v.view(1, -1, 8, head_dim),
        )
    tensors.seqused_k = torch.tensor([4000], dtype=torch.int32)
    settings = options(
        q,
        softmax_scale=None,
        causal=True,
        window_size=(-1, -1),
        softcap=0.0,
        max_seqlen_k=4096,  # enough for splits, and so for the kernel that joins them
    )
    decode.decode(tensors, describe("decode", tensors, settings), {}, turing)


def _backward(head_dim: int, turing: bool) -> None:
    q = torch.empty(1, 256, 4, head_dim, dtype=torch.float16)
    tensors = AttentionTensors(q, q, q)
    settings = options(q, softmax_scale=None, causal=True, window_size=(-1, -1), softcap=0.0)
    problem = describe("backward", tensors, settings)
    backward.backward(q, None, q, q.new_empty(1, 4, 256).float(), tensors, problem, turing)
