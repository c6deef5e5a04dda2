"""Which variants of the volta backend's kernels are looked at: what its launchers would launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from portattn.arguments import describe, options
from portattn.backends.volta import forward, program
from portattn.backends.volta.variants import Variant
from portattn.dispatch.backend import AttentionTensors


@contextmanager
def recording() -> Iterator[dict[Variant, None]]:
    """Launches are written down, in order, and not made."""
    seen: dict[Variant, None] = {}

    def launch(variant: Variant, *_: object) -> None:
        seen[variant] = None

    with patch.object(program, "launch", launch):
        yield seen


def common(turing: bool) -> list[Variant]:
    """Dense and packed forwards of every head dim, with and without features, and decoding."""
    with recording() as seen:
        for head_dim in (32, 64, 96, 128, 192, 256):
            for features in ({}, {"softcap": 30.0, "alibi": True}):
                _forward(head_dim, turing, torch.float16, **features)
            _forward(head_dim, turing, torch.bfloat16)
    return list(seen)


def of_tests(turing: bool) -> list[Variant]:
    """Every variant that the conformance cases in float16 launch."""
    from tests.backends.volta.held import TAKEN, run
    from tests.backends.volta.test_device import _LARGE
    from tests.conformance.budget import problem_of
    from tests.conformance.cases import build

    with recording() as seen:
        for case in (*TAKEN, _LARGE):
            built = build(case, torch.float16, torch.device("cpu"), torch.Generator())
            run(built.tensors, problem_of(built.tensors, built.options), turing)
    return list(seen)


def _forward(
    head_dim: int, turing: bool, dtype: torch.dtype, softcap: float = 0.0, alibi: bool = False
) -> None:
    q = torch.empty(1, 256, 4, head_dim, dtype=dtype)
    tensors = AttentionTensors(q, q, q)
    if alibi:
        tensors.alibi_slopes = torch.empty(4)
    settings = options(
        q, softmax_scale=None, causal=True, window_size=(-1, -1), softcap=softcap
    )
    problem = describe("forward", tensors, settings)
    forward.forward(tensors, problem, {}, turing)

