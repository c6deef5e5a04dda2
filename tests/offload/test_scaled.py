"""Rounded host pages: attention is exact over what they hold, and what was lost is known."""

from __future__ import annotations

import pytest
import torch

import portattn
from portattn.errors import ArgumentError
from portattn.offload import HostKVStore, OffloadEngine, Share, coop_decode
from portattn.offload.scaled import floats, quantized
from tests.offload.links import DelayedLink
from tests.offload.test_engine import options

INT8, FLOAT8 = torch.int8, torch.float8_e4m3fn


def make_store(dtype: torch.dtype, **more: object) -> HostKVStore:
    return HostKVStore(
        2, 2, 2, 16, head_dim_v=8, dtype=torch.float32, device_tokens=3, page_size=4,
        flush_tokens=4, limit_bytes=2**20, host_dtype=dtype, **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("extra", ["nothing", "mask", "bias", "leftpad", "masked out", "softcap"])
@pytest.mark.parametrize("share", [(0, 1, 0), (0, 0, 1), (0, 0.5, 0.5)], ids=str)
@pytest.mark.parametrize("dtype", [INT8, FLOAT8], ids=["int8", "float8"])
def test_attention_is_exact_over_what_pages_hold(
    dtype: torch.dtype, share: tuple[float, float, float], extra: str
) -> None:
    store = make_store(dtype, link=DelayedLink(0.001))
    with OffloadEngine(store, Share(*share), timeout=20) as engine:
        for rows in (13, 1, 5, 20, 1, 1):
            for layer in range(2):
                # Scales differ from page to page, up to tenfold.
                k, v = (torch.randn(2, rows, 2, dim) * 10 ** (torch.rand(1) - 0.7)
                        for dim in (16, 8))  # fmt: skip
                q = torch.randn(2, rows, 4, 16)
                plain, ours = options(extra, rows, store.length(layer) + rows)
                out, lse = coop_decode(
                    q, store, k, v, layer=layer, engine=engine, return_lse=True, **ours
                )
                whole = store.ordered(layer)
                want, want_lse = portattn.attention(
                    q.double(), *(t.double() for t in whole), causal=True, return_lse=True,
                    backend="reference", **plain,
                )  # fmt: skip
                torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(lse.double(), want_lse.double(), rtol=1e-5, atol=1e-5)
    assert store.parts(0)[1] > 0


@pytest.mark.parametrize(("dtype", "most"), [(INT8, 0.5 / 127), (FLOAT8, 2.0**-4)])
def test_nothing_is_lost_but_half_a_step(dtype: torch.dtype, most: float) -> None:
    pages = torch.randn(5, 2, 8, 16) * torch.tensor([1e-6, 1, 1e6, 0, 3])[:, None, None, None]
    kept, scale, lost = quantized(pages, dtype)
    back = floats(kept, scale, torch.float32)
    largest = pages.abs().amax((2, 3), keepdim=True)
    assert bool(((back - pages).abs() <= 1.001 * most * largest).all())
    assert float(lost[0]) == pytest.approx(float((back - pages).square().sum()), rel=1e-4)


def test_bytes_and_error_are_said() -> None:
    rounded = make_store(INT8)
    new = torch.randn(2, 99, 2, 16), torch.randn(2, 99, 2, 8)
    for _ in range(2):
        for layer in range(2):
            rounded.append(layer, *new)
    assert all(1e-3 < error < 2e-2 for error in rounded.rounding_error)
    assert rounded.host_token_bytes * 4 == rounded.token_bytes
    layers, heads = 2, 2
    assert rounded.page_bytes == layers * (4 * rounded.host_token_bytes + 2 * 4 * heads)
    with pytest.raises(ArgumentError, match="float8_e4m3fn"):
        make_store(torch.float16)
