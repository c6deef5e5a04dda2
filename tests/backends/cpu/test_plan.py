"""Planned calls: what they skip changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from portattn import attention, ops
from portattn.arguments import Options, describe
from portattn.backends.cpu import CpuBackend, library
from portattn.dispatch.backend import AttentionTensors
from portattn.errors import DtypeError, ShapeError
from portattn.explain import record

pytestmark = pytest.mark.skipif(library.load() is None, reason="the library isn't built")


def _heads_first(
    batch: int, heads: tuple[int, int], keys: int, dims: tuple[int, int]
) -> list[Tensor]:
    (q_heads, kv_heads), (dim, dim_v) = heads, dims
    shapes = ((q_heads, 1, dim), (kv_heads, keys, dim), (kv_heads, keys, dim_v))
    return [torch.randn(batch, *shape) for shape in shapes]


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    out = attention(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale=scale, causal=causal)
    assert isinstance(out, Tensor)
    return out


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 2),
    heads=st.sampled_from([(1, 1), (9, 3), (8, 1)]),
    keys=st.lists(st.integers(0, 300), min_size=2, max_size=5),
    dims=st.sampled_from([(64, 64), (16, 40), (7, 7)]),
    room=st.sampled_from([0, 5]),
    scale=st.sampled_from([None, 0.3]),
)
def test_one_plan_serves_growing_caches_of_any_strides(
    batch: int, heads: tuple[int, int], keys: list[int], dims: tuple[int, int], room: int,
    scale: float | None,
) -> None:  # fmt: skip
    for count in keys:
        q, k, v = _heads_first(batch, heads, count + room, dims)
        k, v = k[:, :, room:], v[:, :, :count]
        got = ops.heads_first(q, k, v, scale, False)
        assert torch.equal(got, _attention(q, k, v, scale, False))
        assert got.is_contiguous()


def test_a_causal_call_of_few_queries_is_the_same() -> None:
    for length in (2, 3, 4, 9, 16):
        q, k, v = (torch.randn(2, heads, length, 32) for heads in (6, 2, 2))
        assert torch.equal(ops.heads_first(q, k, v, None, True), _attention(q, k, v, None, True))


def test_a_plan_ends_where_its_decision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _heads_first(1, (4, 2), 100, (32, 32))
    with record() as counts:
        for _ in range(3):
            ops.heads_first(q, k, v, None, False)
        monkeypatch.setenv("PORTATTN_BACKEND", "reference")
        ops.heads_first(q, k, v, None, False)
        monkeypatch.delenv("PORTATTN_BACKEND")
        monkeypatch.setenv("PORTATTN_CPU_ISA", library.usable_variants(library.load())[0])  # type: ignore[arg-type]
        ops.heads_first(q, k, v, None, False)
    assert sum(counts.values()) == 5
    assert {decision.backend for decision in counts} == {"cpu", "reference"}
    assert library.variant(library.load()) == library.usable_variants(library.load())[0]  # type: ignore[arg-type]


def test_bad_arguments_are_refused_after_a_plan_was_made() -> None:
    q, k, v = _heads_first(1, (4, 2), 100, (32, 32))
    ops.heads_first(q, k, v, None, False)
    with pytest.raises(ShapeError, match="v"):
        ops.heads_first(q, k, v[:, :, 1:], None, False)
    with pytest.raises(ShapeError, match="k"):
        ops.heads_first(q, k[..., 1:], v, None, False)
    with pytest.raises(DtypeError):
        ops.heads_first(q, k.double(), v.double(), None, False)


def test_gradients_pass_a_planned_shape() -> None:
    q, k, v = _heads_first(1, (4, 2), 100, (32, 32))
    ops.heads_first(q, k, v, None, False)
    q.requires_grad_()
    ops.heads_first(q, k, v, None, False).sum().backward()
    assert q.grad is not None and bool(q.grad.isfinite().all())


def test_optional_tensors_are_those_of_the_call() -> None:
    """Other lengths, other addresses, and other strides than those the plan was made with."""
    q, k, v = torch.randn(2, 1, 6, 32), torch.randn(3, 90, 2, 32), torch.randn(3, 90, 2, 32)
    plan = None
    for turn in range(3):
        used, rows, pad = (
            torch.randint(low, high, (2,), dtype=torch.int32)
            for low, high in ((20, 90), (0, 3), (0, 10))
        )
        bias = torch.randn(2, 6, 1, 180)[..., :: 2 if turn == 2 else 1][..., :90]
        tensors = AttentionTensors(
            q, k, v, bias=bias, seqused_k=used, cache_batch_idx=rows, leftpad_k=pad,
            sinks=torch.randn(6),
        )  # fmt: skip
        problem = describe("decode", tensors, Options(0.2, max_seqlen_k=90))
        backend = CpuBackend()
        plan = plan or backend.plan(tensors, problem, {})
        assert plan is not None
        for got, want in zip(plan.run(tensors), backend.decode(tensors, problem, {}), strict=True):
            assert torch.equal(got, want)
