"""The compiled decode kernel of every instruction set against the definition."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from portattn.arguments import Options
from portattn.backends.cpu import decode_call
from portattn.backends.cpu.decode_call import decode, reasons_against_decode
from portattn.dispatch.backend import AttentionTensors
from tests.backends.cpu.compiled import library, variants
from tests.conformance.budget import check, expected, problem_of
from tests.conformance.cases import CASES, Case, build, cached, dense
from tests.conformance.test_backends import _poisoned as poisoned

VARIANTS = variants()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Several chunks; groups that fill no tile of rows; head dims that fill no vectors.
LARGE = (
    cached("chunks", 1, 1500, 0, 513, 512, heads=8, kv_heads=2, head_dim=128),
    cached("rows", 5, 700, 64, heads=7, kv_heads=1, head_dim=96, head_dim_v=40, causal=True),
    cached(
        "everything",
        16,
        1100,
        30,
        heads=6,
        kv_heads=2,
        head_dim=72,
        causal=True,
        window=(600, 0),
        softcap=3.0,
        alibi="BH",
        bias=(True, True, True, True),
        mask=(True, False, True, True),
        sinks=True,
        leftpad=True,
        batch_idx=True,
    ),
    cached(
        "pages",
        3,
        1100,
        5,
        70,
        heads=12,
        kv_heads=4,
        head_dim=64,
        page_size=16,
        causal=True,
        leftpad=True,
    ),
    dense("strided", 2, 2, 600, heads=3, kv_heads=3, strides="sliced"),
)
FITTING = [
    case
    for case in (*CASES, *LARGE)
    if not case.dropout_p
    and case.stored != "float8_e4m3fn"
    and all(queries <= 16 for queries, _ in case.lengths)
]

pytestmark = pytest.mark.skipif(
    not VARIANTS, reason="needs the compiled library: make test builds it"
)
every = pytest.mark.parametrize("variant", VARIANTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def _built(
    case: Case, dtype: torch.dtype, generator: torch.Generator
) -> tuple[AttentionTensors, Options]:
    made = build(case, dtype, torch.device("cpu"), generator)
    return made.tensors, made.options


def _decode(
    compiled: ctypes.CDLL, t: AttentionTensors, o: Options, block_n: int = 512, threads: int = 2
) -> dict[str, Tensor]:
    problem = problem_of(t, o)
    assert not reasons_against_decode(problem)
    out, lse = decode(compiled, t, problem, block_n, threads)
    return {"out": out, "lse": lse}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@every
@each_dtype
@pytest.mark.parametrize("case", FITTING, ids=lambda case: case.name)
def test_values(
    variant: str,
    dtype: torch.dtype,
    case: Case,
    generator: torch.Generator,
    dirty_memory: None,
) -> None:
    t, o = _built(case, dtype, generator)
    want = expected(t, o)
    for block_n in (16, 512):
        check(_decode(library(variant), t, o, block_n), want, dtype, f"{case.name}, {block_n}")
    if t.k.dtype != torch.int8:  # which can't hold NaN
        hidden = replace(t, k=poisoned(t, o, t.k), v=poisoned(t, o, t.v))
        check(_decode(library(variant), hidden, o), want, dtype, f"{case.name}, poisoned")


@every
@each_dtype
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_any_number_of_threads_gives_the_same_bits(
    variant: str, dtype: torch.dtype, case: Case, generator: torch.Generator
) -> None:
    t, o = _built(case, dtype, generator)
    compiled = library(variant)
    one = _decode(compiled, t, o, 64, 1)
    for threads in (2, 3, 8):
        assert _equal(one, _decode(compiled, t, o, 64, threads))


@every
def test_a_sequence_does_not_depend_on_its_neighbours(
    variant: str, generator: torch.Generator
) -> None:
    t, o = _built(LARGE[0], torch.bfloat16, generator)
    assert t.seqused_k is not None
    whole = _decode(library(variant), t, o)
    alone = replace(t, q=t.q[2:3], k=t.k[2:3], v=t.v[2:3], seqused_k=t.seqused_k[2:3])
    one = _decode(library(variant), alone, o)
    assert all(torch.equal(whole[name][2:3], one[name]) for name in one)


@each_dtype
def test_instruction_sets_differ_by_rounding_only(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    """In lse, which is float32 for all: within the roundings of a sum of head_dim products."""
    t, o = _built(LARGE[0], dtype, generator)
    results = [_decode(library(variant), t, o)["lse"] for variant in VARIANTS]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=2e-6, atol=2e-6)


@every
@each_dtype
def test_nan_in_a_visible_key_propagates(
    variant: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    t, o = _built(LARGE[1], dtype, generator)
    t.v[0, 300, 0, 3] = float("nan")
    t.k[1, 20, 0, 0] = float("inf")
    got, want = _decode(library(variant), t, o), expected(t, o).exact
    assert torch.equal(got["out"][0].isnan(), want["out"][0].isnan())
    assert torch.equal(got["lse"][0].isnan(), want["lse"][0].isnan())
    # inf * q is inf or -inf: a row is NaN, or the key has no weight.
    assert torch.equal(got["lse"][1].isfinite(), want["lse"][1].isfinite())


@every
@pytest.mark.parametrize("hiding", ["bias", "mask"])
def test_a_key_hidden_from_some_rows_changes_nothing_for_them(
    variant: str, hiding: str, generator: torch.Generator
) -> None:
    t, o = _built(dense("hidden", 1, 2, 40, heads=2), torch.float32, generator)
    seen = torch.ones(1, 1, 2, 40, dtype=torch.bool)
    seen[0, 0, 0, 7] = False
    if hiding == "mask":
        t.mask = seen
    else:
        t.bias = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    want = _decode(library(variant), t, o)["out"]
    t.v[0, 7] = float("nan")
    got = _decode(library(variant), t, o)["out"]
    torch.testing.assert_close(got[0, 0], want[0, 0])
    assert got[0, 1].isnan().all()


@every
def test_keys_further_apart_than_32_bits_reach(variant: str, generator: torch.Generator) -> None:
    """Three keys 2^30 + 8 elements apart: memory that is never touched costs nothing."""
    t, o = _built(cached("apart", 1, 3, heads=2, kv_heads=1), torch.float16, generator)
    step, size = 2**30 + 8, (1, 3, 1, 16)
    far = torch.empty(3 * step, dtype=torch.float16)
    k, v = (far[n:].as_strided(size, (step, step, 1, 1)) for n in (0, 64))
    k.copy_(t.k[:, :3])
    v.copy_(t.v[:, :3])
    near = _decode(library(variant), t, o)
    assert _equal(near, _decode(library(variant), replace(t, k=k, v=v), o))


@pytest.mark.nightly
def test_more_than_two_to_the_31_elements(generator: torch.Generator) -> None:
    """One sequence whose K alone has more than 2^31 elements; the last key decides the result."""
    keys = 2**31 // 256 + 4096
    k = torch.zeros(1, keys, 2, 128, dtype=torch.float16)
    q = torch.randn(1, 1, 8, 128, generator=generator).half()
    k[0, -1] = 8 * q[0, 0, ::4] / q[0, 0, ::4].norm(dim=-1, keepdim=True) ** 2
    v = torch.zeros(1, keys, 2, 1, dtype=torch.float16)
    v[0, -1] = 1.0
    t = AttentionTensors(q, k, v, seqused_k=torch.tensor([keys], dtype=torch.int32))
    o = Options(30.0, False, (-1, -1), 0.0, 0.0, False, 1, keys, None)
    got = _decode(library(VARIANTS[-1]), t, o)
    # Its score is 240, that of every other key 0.
    assert got["out"][0, 0, ::4, 0].tolist() == [1.0, 1.0]
    torch.testing.assert_close(got["lse"][0, ::4, 0], torch.full((2,), 240.0), rtol=0.01, atol=0)


def test_what_decode_leaves_to_others_has_a_reason(generator: torch.Generator) -> None:
    t, o = _built(dense("dropout", 1, 17, 3, dropout_p=0.5), torch.float64, generator)
    reasons = reasons_against_decode(problem_of(t, o))
    for word in ("float64", "queries", "dropout"):
        assert any(word in reason for reason in reasons)


def test_arguments_have_the_size_of_the_structure() -> None:
    assert library(VARIANTS[0]).pa_decode_args_bytes() == decode_call.ARGUMENTS.size
