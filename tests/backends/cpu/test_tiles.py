"""The compiled prefill and backward of every instruction set against the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from portattn.arguments import Options
from portattn.backends.common.philox import keep_scale
from portattn.backends.cpu.compiled_prefill import (
    prefill_backward,
    prefill_forward,
    reasons_against_prefill,
)
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors
from tests.backends.cpu.compiled import library, variants
from tests.conformance.budget import GRADIENTS, check, expected, expected_gradients, problem_of
from tests.conformance.cases import CASES, Case, build, cached, dense, ragged
from tests.conformance.test_backends import _poisoned as poisoned

# The tiles of "avx512_bf16" are those of "avx512".
VARIANTS = [name for name in variants() if name != "avx512_bf16"]
HALF = {"amx": torch.bfloat16, "avx512": torch.float16}
COMBINATIONS = [(v, torch.float32) for v in VARIANTS if v != "amx"]
COMBINATIONS += [(v, HALF.get(v, torch.bfloat16)) for v in VARIANTS]

# Several tiles of keys, blocks of rows, units and chunks, none of them whole.
LARGE = (
    dense("causal", 2, 333, 700, heads=6, kv_heads=2, head_dim=40, head_dim_v=72, causal=True),
    dense("window", 1, 611, 611, heads=4, kv_heads=4, head_dim=64, window=(90, 13)),
    ragged("varlen", (260, 300), (1, 400), (0, 7), (310, 150), causal=True, sinks=True, heads=4),
)
# What the bias is broadcast over, several units add to.
BIASED = [
    dense(
        f"bias over {over}",
        2,
        150,
        700,
        heads=4,
        kv_heads=2,
        head_dim=16,
        causal=True,
        window=(60, 0) if softcap else (-1, 0),
        bias=tuple(letter not in over for letter in "bhqk"),
        softcap=softcap,
    )
    for over, softcap in (("", 0.0), ("b", 5.0), ("h", 0.0), ("bh", 0.0), ("q", 5.0), ("bhqk", 0.0))
]
# Pages whose rows of k and v differ in length.
PAGED = cached("pages 24/40", 20, 70, 300, head_dim=24, head_dim_v=40, page_size=16, causal=True)

pytestmark = pytest.mark.skipif(
    not VARIANTS, reason="needs the compiled library: make test builds it"
)
every = pytest.mark.parametrize(("variant", "dtype"), COMBINATIONS)


def _built(
    case: Case, dtype: torch.dtype, generator: torch.Generator
) -> tuple[AttentionTensors, Options]:
    made = build(case, dtype, torch.device("cpu"), generator)
    return made.tensors, made.options


def _forward(variant: str, t: AttentionTensors, o: Options, threads: int = 2) -> dict[str, Tensor]:
    out, lse = prefill_forward(library(variant), t, problem_of(t, o), {}, threads)
    return {"out": out, "lse": lse}


def _backward(
    variant: str, t: AttentionTensors, o: Options, g: list[Tensor], threads: int = 2
) -> dict[str, Tensor] | None:
    problem = problem_of(t, o, "backward", True)
    grads = prefill_backward(library(variant), *g, t, problem, threads)
    if grads is None:
        return None
    return {f"d{n}": x for n, x in zip(GRADIENTS, grads, strict=True) if x is not None}


def _given(t: AttentionTensors, o: Options, generator: torch.Generator) -> list[Tensor]:
    """grad_out, grad_lse, out, lse as the definition's forward stored them."""
    out, lse = registry.load("reference").forward(t, problem_of(t, o), {})
    grad_lse = torch.randn(lse.shape, generator=generator).to(lse)
    grad_out = torch.randn(out.shape, generator=generator).to(out)
    return [grad_out, grad_lse.masked_fill(lse.isinf(), 0), out, lse]


@every
@pytest.mark.parametrize(
    "case", [c for c in (*CASES, *LARGE, PAGED) if not c.stored], ids=lambda case: case.name
)
def test_forward(variant: str, dtype: torch.dtype, case: Case, generator: torch.Generator) -> None:
    t, o = _built(case, dtype, generator)
    want = expected(t, o)
    check(_forward(variant, t, o), want, dtype, f"{variant} {case.name}")
    hidden = replace(t, k=poisoned(t, o, t.k), v=poisoned(t, o, t.v))
    check(_forward(variant, hidden, o), want, dtype, f"{variant} {case.name}, poisoned")


@every
@pytest.mark.parametrize(
    "case", [c for c in (*CASES, *LARGE, *BIASED) if c.differentiable], ids=lambda case: case.name
)
def test_backward(variant: str, dtype: torch.dtype, case: Case, generator: torch.Generator) -> None:
    t, o = _built(case, dtype, generator)
    given = _given(t, o, generator)
    got = _backward(variant, t, o, given)
    assert got is not None and set(got) >= {"dq", "dk", "dv"}
    stored = {"out": given[2], "lse": given[3]}
    want = expected_gradients(t, o, given[0], given[1], stored)
    check(got, want, dtype, f"{variant} {case.name}")


@every
@pytest.mark.parametrize("case", [*LARGE, *BIASED], ids=lambda case: case.name)
def test_any_number_of_threads_gives_the_same_bits(
    variant: str, dtype: torch.dtype, case: Case, generator: torch.Generator
) -> None:
    t, o = _built(case, dtype, generator)
    given = _given(t, o, generator)
    one, back = _forward(variant, t, o, 1), _backward(variant, t, o, given, 1)
    assert back is not None
    for threads in (2, 3, 8):
        more, more_back = _forward(variant, t, o, threads), _backward(variant, t, o, given, threads)
        assert more_back is not None
        assert all(torch.equal(one[name], more[name]) for name in one)
        assert all(torch.equal(back[name], more_back[name]) for name in back)


@every
def test_a_sequence_does_not_depend_on_its_neighbours(
    variant: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    t, o = _built(LARGE[0], dtype, generator)
    whole = _forward(variant, t, o)
    alone = _forward(variant, replace(t, q=t.q[1:], k=t.k[1:], v=t.v[1:]), o)
    assert all(torch.equal(whole[name][1:], alone[name]) for name in whole)


@every
def test_keys_further_apart_than_32_bits_reach(
    variant: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Three keys 2^30 + 8 elements apart: memory that is never touched costs nothing."""
    t, o = _built(dense("apart", 1, 5, 3, heads=2, kv_heads=1), dtype, generator)
    step, size = 2**30 + 8, tuple(t.k.shape)
    far = torch.empty(3 * step, dtype=dtype)
    k, v = (far[n:].as_strided(size, (step, step, 1, 1)) for n in (0, 64))
    k.copy_(t.k)
    v.copy_(t.v)
    near, given = _forward(variant, t, o), _given(t, o, generator)
    apart = replace(t, k=k, v=v)
    assert all(torch.equal(near[name], x) for name, x in _forward(variant, apart, o).items())
    back, back_apart = _backward(variant, t, o, given), _backward(variant, apart, o, given)
    assert back is not None and back_apart is not None
    assert all(torch.equal(back[name], back_apart[name]) for name in back)


@every
@pytest.mark.parametrize("name", ["q", "k", "v", "grad_out"])
def test_backward_leaves_nan_to_the_torch_path(
    variant: str, dtype: torch.dtype, name: str, generator: torch.Generator
) -> None:
    t, o = _built(LARGE[0], dtype, generator)
    given = _given(t, o, generator)
    tensor = given[0] if name == "grad_out" else getattr(t, name)
    tensor[1, -1, -1, -1] = float("inf")
    assert _backward(variant, t, o, given) is None


@every
@pytest.mark.parametrize("dropout_p", [2.0**-24, 0.1, 0.999999])
def test_dropout_drops_what_the_definition_does(
    variant: str, dtype: torch.dtype, dropout_p: float
) -> None:
    """Equal weights over values of one each: an output's elements are its row's kept weights."""
    q, k = torch.zeros(2, 70, 6, 16, dtype=dtype), torch.zeros(2, 130, 2, 16, dtype=dtype)
    v = torch.eye(130, dtype=dtype)[None, :, None].expand(2, 130, 2, 130)
    state = torch.randint(-(2**62), 2**62, (2,))
    t = AttentionTensors(q, k, v, rng_state=state)
    got = _forward(variant, t, Options(1.0, dropout_p=dropout_p))["out"].transpose(1, 2) != 0
    heads = torch.arange(12).view(2, 6)
    assert torch.equal(got, keep_scale(state, dropout_p, heads, range(70), range(130)) != 0)


def test_what_the_tiles_leave_to_torch_has_a_reason(generator: torch.Generator) -> None:
    t, o = _built(dense("bias", 1, 5, 3, bias=(True,) * 4), torch.float64, generator)
    reasons = reasons_against_prefill(problem_of(t, o, "backward"))
    assert any("float64" in reason for reason in reasons)
