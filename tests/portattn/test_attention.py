"""The public API: what it returns, what it refuses, and how it composes with torch."""

import math
import threading

import pytest
import torch
from torch import Tensor

import portattn
from portattn.errors import (
    ArgumentError,
    BackendUnavailableError,
    DeviceError,
    DtypeError,
    NoBackendError,
    ShapeError,
)


def qkv(
    batch: int = 2,
    seqlen_q: int = 7,
    seqlen_k: int = 9,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 8,
    dtype: torch.dtype = torch.float64,
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((batch, seqlen_q, heads), (batch, seqlen_k, kv_heads), (batch, seqlen_k, kv_heads))
    q, k, v = (torch.randn(*s, dim, dtype=dtype, requires_grad=requires_grad) for s in shapes)
    return q, k, v


def test_lse_normalises_the_scores() -> None:
    q, k, v = qkv(heads=2)
    out, lse = portattn.attention(q, k, v, return_lse=True)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(8)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    torch.testing.assert_close(out, torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v))


def test_splitting_keys_and_merging_is_the_whole() -> None:
    q, k, v = qkv()
    whole, lse = portattn.attention(q, k, v, return_lse=True)
    parts = [
        portattn.attention(q, k[:, s], v[:, s], return_lse=True) for s in (slice(0, 4), slice(4, 9))
    ]
    out, merged = portattn.merge_states(*parts[0], *parts[1])
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(merged, lse)


def test_merging_empty_parts_gives_zero_and_never_nan() -> None:
    out = torch.full((1, 2, 1, 4), math.nan)
    empty = torch.full((1, 1, 2), -math.inf)
    merged, lse = portattn.merge_states(out, empty, out, empty)
    assert torch.equal(merged, torch.zeros_like(out)) and torch.equal(lse, empty)
    real, some = torch.randn(1, 2, 1, 4), torch.randn(1, 1, 2)
    merged, lse = portattn.merge_states(real, some, out, empty)
    torch.testing.assert_close(merged, real)
    torch.testing.assert_close(lse, some)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(5, 5), (3, 8), (8, 3), (1, 6)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_sdpa_is_torchs(seqlen_q: int, seqlen_k: int, is_causal: bool) -> None:
    q, k, v = (t.transpose(1, 2) for t in qkv(2, seqlen_q, seqlen_k))
    ours = portattn.sdpa(q, k, v, is_causal=is_causal, enable_gqa=True)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=is_causal, enable_gqa=True
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(5, 9), (2, 1, 5, 9), (1, 4, 1, 9), (2, 4, 5, 9)])
def test_sdpa_masks_are_torchs(shape: tuple[int, ...]) -> None:
    q, k, v = (t.transpose(1, 2) for t in qkv(2, 5, 9, kv_heads=4))
    boolean = torch.rand(shape) > 0.3
    boolean[..., 0] = True
    for mask in (boolean, torch.randn(shape, dtype=torch.float64)):
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(portattn.sdpa(q, k, v, attn_mask=mask), theirs)


def test_sdpa_takes_any_leading_dimensions() -> None:
    q = torch.randn(2, 3, 4, 5, 8, dtype=torch.float64)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    torch.testing.assert_close(portattn.sdpa(q, q, q), theirs)
    torch.testing.assert_close(portattn.sdpa(q[0, 0], q[0, 0], q[0, 0]), theirs[0, 0])


def test_gradcheck_with_every_differentiable_input() -> None:
    q, k, v = qkv(1, 4, 5, requires_grad=True)
    bias = torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    slopes = torch.rand(4)

    def call(*args: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, bias, sinks = args
        result = portattn.attention(
            q,
            k,
            v,
            bias=bias,
            sinks=sinks,
            alibi_slopes=slopes,
            softcap=3.0,
            causal=True,
            window_size=(2, 0),
            return_lse=True,
        )
        assert isinstance(result, tuple)
        return result

    assert torch.autograd.gradcheck(call, (q, k, v, bias, sinks))


def test_gradcheck_varlen() -> None:
    q, k, v = (t[0] for t in qkv(1, 7, 7))
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    cu = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    assert torch.autograd.gradcheck(
        lambda *args: portattn.attention_varlen(*args, cu, cu, 4, 4, causal=True), (q, k, v)
    )


def test_second_derivative_is_refused() -> None:
    q, k, v = qkv(1, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(portattn.attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


def test_dropout_differs_by_call_and_its_gradient_uses_the_same_mask() -> None:
    q, k, v = qkv(requires_grad=True)
    torch.manual_seed(0)
    first = portattn.attention(q, k, v, dropout_p=0.5)
    second = portattn.attention(q, k, v, dropout_p=0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, portattn.attention(q, k, v, dropout_p=0.5))

    def seeded(*args: Tensor) -> Tensor:
        torch.manual_seed(0)
        return portattn.attention(*args, dropout_p=0.5)

    assert torch.autograd.gradcheck(seeded, (q, k, v))


def flat_arguments(requires_grad: bool, **changes: object) -> tuple[object, ...]:
    q, k, v = qkv(1, 4, 5, requires_grad=requires_grad)
    values: dict[str, object] = dict.fromkeys(
        (
            "bias",
            "mask",
            "alibi_slopes",
            "sinks",
            "cu_seqlens_q",
            "cu_seqlens_k",
            "seqused_k",
            "block_table",
            "cache_batch_idx",
            "leftpad_k",
            "rng_state",
            "k_scale",
            "v_scale",
        )
    )
    values |= {
        "scale": 0.3,
        "causal": True,
        "left": -1,
        "right": 0,
        "softcap": 0.0,
        "dropout_p": 0.0,
        "deterministic": False,
        "max_q": 0,
        "max_k": 0,
        "backend": None,
    }
    values |= changes
    return (q, k, v, *values.values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": torch.randn(1, 4, 1, 5, dtype=torch.float64, requires_grad=True)},
        {"sinks": torch.randn(4, dtype=torch.float64, requires_grad=True)},
        {"mask": torch.ones(1, 1, 4, 5, dtype=torch.bool)},
    ],
    ids=["plain", "bias", "sinks", "mask"],
)
def test_opcheck(changes: dict[str, object]) -> None:
    result = torch.library.opcheck(
        torch.ops.portattn.attention_forward, flat_arguments(True, **changes)
    )
    assert set(result.values()) == {"SUCCESS"} and len(result) == 4


def test_opcheck_varlen() -> None:
    q, k, v = (torch.randn(7, h, 8, requires_grad=True) for h in (4, 2, 2))
    cu = torch.tensor([0, 3, 7], dtype=torch.int32)
    flat = flat_arguments(True, cu_seqlens_q=cu, cu_seqlens_k=cu, max_q=4, max_k=4)
    result = torch.library.opcheck(torch.ops.portattn.attention_forward, (q, k, v, *flat[3:]))
    assert set(result.values()) == {"SUCCESS"} and len(result) == 4


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool) -> None:
    q, k, v = qkv(dtype=torch.float32, requires_grad=True)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = portattn.attention(q, k, v, causal=True, window_size=(4, 0))
        assert isinstance(out, Tensor)
        return out * 2

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(compiled(q, k, v), function(q, k, v))
    ours = torch.autograd.grad(compiled(q, k, v).sum(), (q, k, v))
    for got, want in zip(
        ours, torch.autograd.grad(function(q, k, v).sum(), (q, k, v)), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_compiles_varlen_sdpa_and_dropout() -> None:
    q, k, v = (torch.randn(7, h, 8) for h in (4, 2, 2))
    cu = torch.tensor([0, 3, 7], dtype=torch.int32)

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> object:
        return portattn.attention_varlen(q, k, v, cu, cu, 4, 4, causal=True)

    compiled = torch.compile(varlen, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), varlen(q, k, v))
    x = torch.randn(2, 4, 5, 8)
    twin = torch.compile(portattn.sdpa, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        twin(x, x, x, is_causal=True), portattn.sdpa(x, x, x, is_causal=True)
    )
    dropped = torch.compile(
        lambda x: portattn.attention(x, x, x, dropout_p=0.3), backend="aot_eager", fullgraph=True
    )
    assert torch.isfinite(dropped(x)).all()


BAD_ARGUMENTS = {
    "rank of q": (ShapeError, "q", lambda q, k, v: portattn.attention(q[0], k, v)),
    "rank of k": (ShapeError, "k", lambda q, k, v: portattn.attention(q, k[0], v)),
    "batch": (ShapeError, "k", lambda q, k, v: portattn.attention(q, k[:1], v[:1])),
    "keys and values": (ShapeError, "v", lambda q, k, v: portattn.attention(q, k, v[:, :-1])),
    "head_dim": (ShapeError, "k", lambda q, k, v: portattn.attention(q, k[..., :-1], v)),
    "head ratio": (ShapeError, "k", lambda q, k, v: portattn.attention(q[:, :, :3], k, v)),
    "dtype of q": (DtypeError, "q", lambda q, k, v: portattn.attention(q.int(), k, v)),
    "dtype of k": (DtypeError, "k", lambda q, k, v: portattn.attention(q, k.float(), v.float())),
    "dtype of v": (DtypeError, "v", lambda q, k, v: portattn.attention(q, k, v.float())),
    "device": (DeviceError, "k", lambda q, k, v: portattn.attention(q, k.to("meta"), v)),
    "NaN scale": (
        ArgumentError,
        "softmax_scale",
        lambda q, k, v: portattn.attention(q, k, v, softmax_scale=math.nan),
    ),
    "negative window": (
        ArgumentError,
        "window_size",
        lambda q, k, v: portattn.attention(q, k, v, window_size=(-2, 0)),
    ),
    "negative window, causal": (
        ArgumentError,
        "window_size",
        lambda q, k, v: portattn.attention(q, k, v, window_size=(0, -3), causal=True),
    ),
    "softcap": (
        ArgumentError,
        "softcap",
        lambda q, k, v: portattn.attention(q, k, v, softcap=-1.0),
    ),
    "dropout": (
        ArgumentError,
        "dropout_p",
        lambda q, k, v: portattn.attention(q, k, v, dropout_p=1.0),
    ),
    "bias shape": (
        ShapeError,
        "bias",
        lambda q, k, v: portattn.attention(q, k, v, bias=torch.zeros(3, 7, 9)),
    ),
    "bias of bool": (
        DtypeError,
        "bias",
        lambda q, k, v: portattn.attention(q, k, v, bias=torch.ones(7, 9, dtype=torch.bool)),
    ),
    "mask of float": (
        DtypeError,
        "mask",
        lambda q, k, v: portattn.attention(q, k, v, mask=torch.ones(7, 9)),
    ),
    "slopes shape": (
        ShapeError,
        "alibi_slopes",
        lambda q, k, v: portattn.attention(q, k, v, alibi_slopes=torch.ones(3)),
    ),
    "slopes dtype": (
        DtypeError,
        "alibi_slopes",
        lambda q, k, v: portattn.attention(q, k, v, alibi_slopes=torch.ones(4).half()),
    ),
    "sinks shape": (
        ShapeError,
        "sinks",
        lambda q, k, v: portattn.attention(q, k, v, sinks=torch.ones(2)),
    ),
    "unknown backend": (
        ArgumentError,
        "backend",
        lambda q, k, v: portattn.attention(q, k, v, backend="none"),
    ),
    "sdpa mask and causal": (
        ArgumentError,
        "attn_mask",
        lambda q, k, v: portattn.sdpa(q, q, q, attn_mask=torch.ones(4, 4), is_causal=True),
    ),
    "sdpa heads": (
        ShapeError,
        "key",
        lambda q, k, v: portattn.sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)),
    ),
    "merge shapes": (
        ShapeError,
        "lse_b",
        lambda q, k, v: portattn.merge_states(q, torch.zeros(2, 4, 7), q, torch.zeros(2, 4, 8)),
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named(case: str) -> None:
    kind, argument, call = BAD_ARGUMENTS[case]
    with pytest.raises(kind) as caught:
        call(*qkv())
    assert caught.value.argument == argument
    assert str(caught.value).startswith(f"{argument}: must")


BAD_LENGTHS = {
    "not from 0": ("cu_seqlens_q", [1, 3, 7], [0, 3, 7], 4, 4),
    "decreasing": ("cu_seqlens_k", [0, 3, 7], [0, 5, 3], 4, 5),
    "overrun": ("cu_seqlens_k", [0, 3, 7], [0, 3, 8], 4, 5),
    "short maximum": ("max_seqlen_q", [0, 3, 7], [0, 3, 7], 3, 4),
    "other batch": ("cu_seqlens_k", [0, 3, 7], [0, 7], 4, 7),
    "negative maximum": ("max_seqlen_k", [0, 3, 7], [0, 3, 7], 4, -1),
}


@pytest.mark.parametrize("case", BAD_LENGTHS)
def test_bad_lengths_are_named(case: str) -> None:
    argument, cu_q, cu_k, max_q, max_k = BAD_LENGTHS[case]
    q, k, v = (torch.randn(7, h, 8) for h in (4, 2, 2))
    with pytest.raises(ArgumentError) as caught:
        portattn.attention_varlen(
            q,
            k,
            v,
            torch.tensor(cu_q, dtype=torch.int32),
            torch.tensor(cu_k, dtype=torch.int32),
            max_q,
            max_k,
        )
    assert caught.value.argument == argument


def test_lengths_must_be_int32() -> None:
    q, k, v = (torch.randn(7, h, 8) for h in (4, 2, 2))
    cu = torch.tensor([0, 3, 7])
    with pytest.raises(DtypeError, match="cu_seqlens_q: must be int32"):
        portattn.attention_varlen(q, k, v, cu, cu, 4, 4)


def test_explicit_backend_runs_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(dtype=torch.float32)
    decision = portattn.explain(q, k, v, backend="reference")
    assert decision.backend == "reference" and decision.forced
    with pytest.raises(NoBackendError, match="softcap is not supported"):
        portattn.attention(q, k, v, softcap=2.0, backend="torch_sdpa")
    monkeypatch.setenv("PORTATTN_BACKEND", "torch_sdpa")
    with pytest.raises(NoBackendError, match="softcap is not supported"):
        portattn.attention(q, k, v, softcap=2.0)
    monkeypatch.setenv("PORTATTN_BACKEND", "reference")
    assert portattn.explain(q, k, v).backend == "reference"


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from portattn.dispatch import registry, select

    entry = registry.Entry("cpu", "portattn.backends.absent", "Absent", "")
    monkeypatch.setattr(registry, "ENTRIES", (entry, registry.ENTRIES[-1]))
    registry.load.cache_clear()
    select.forget()
    try:
        with pytest.raises(BackendUnavailableError, match=r"absent"):
            registry.load("cpu")
        with pytest.raises(NoBackendError, match=r"absent"):
            portattn.attention(*qkv(), backend="cpu")
    finally:
        registry.load.cache_clear()
        select.forget()


def test_a_failed_probe_is_announced_and_the_next_candidate_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from portattn.dispatch import registry, select

    def broken(device: object) -> None:
        raise ValueError("wrong answer")

    q, k, v = qkv(dtype=torch.float32)
    first, second, *_ = portattn.explain(q, k, v).candidates
    select.forget()
    monkeypatch.setattr(registry.load(first), "probe", broken)
    with caplog.at_level("INFO", "portattn"):
        decision = portattn.explain(q, k, v)
    select.forget()
    assert decision.backend == second
    assert decision.rejected[0].reasons == ("its probe failed: ValueError: wrong answer",)
    assert f"{second} runs this problem instead of {first}" in caplog.text


def test_sixteen_threads_get_right_answers() -> None:
    inputs = [qkv(1, 3 + i, 5 + i) for i in range(16)]
    expected = [portattn.attention(*args, causal=True) for args in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(portattn.attention(*inputs[index], causal=True), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_decisions_are_bounded() -> None:
    from portattn.dispatch import select

    q, k, v = qkv(1, 1, 9)
    for index in range(select._CACHE_LIMIT + 10):
        portattn.explain(q, k, v, softmax_scale=1.0 + index)
    assert len(select._CACHE) <= select._CACHE_LIMIT


def test_the_log_level_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    from portattn.dispatch import select

    log = logging.getLogger("portattn")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    monkeypatch.setenv("PORTATTN_LOG", "loud")
    with pytest.raises(ArgumentError, match="PORTATTN_LOG: must be debug, info"):
        select._set_log_level()
    monkeypatch.setenv("PORTATTN_LOG", "info")
    select._set_log_level()
    select._set_log_level()
    assert log.level == logging.INFO and len(log.handlers) == 1


def test_autocast_does_not_reach_into_kernels() -> None:
    from portattn.dispatch import select

    q, k, v = qkv(dtype=torch.float32, requires_grad=True)
    for backend in ("torch_sdpa", "cpu", "reference"):
        want = portattn.attention(q, k, v, causal=True, backend=backend)
        select.forget()
        with torch.autocast("cpu", torch.bfloat16):
            got = portattn.attention(q, k, v, causal=True, backend=backend)
        assert torch.equal(got, want)
        for mine, theirs in zip(
            torch.autograd.grad(got.sum(), (q, k, v)),
            torch.autograd.grad(want.sum(), (q, k, v)),
            strict=True,
        ):
            assert torch.equal(mine, theirs)
