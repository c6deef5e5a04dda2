"""Caches that hold int8 or float8 numbers times scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import portattn
from portattn import ContiguousKVCache, PagedKVCache
from portattn.cache.view import SCALED
from portattn.errors import ArgumentError, DtypeError, ShapeError

DTYPES = tuple(SCALED)
KINDS = pytest.mark.parametrize("kind", ["contiguous", "paged"])
STORED = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def cache_of(kind: str, dtype: torch.dtype, k_scale: object, v_scale: object) -> object:
    scales = {"k_scale": k_scale, "v_scale": v_scale, "dtype": dtype}
    if kind == "paged":
        return PagedKVCache(12, 4, 2, 16, max_batch=2, **scales)  # type: ignore[arg-type]
    return ContiguousKVCache(2, 20, 2, 16, **scales)  # type: ignore[arg-type]


@KINDS
@STORED
def test_attention_over_it_is_attention_over_what_it_stands_for(
    kind: str, dtype: torch.dtype
) -> None:
    k, v, q = (torch.randn(2, n, h, 16) for n, h in ((9, 2), (9, 2), (3, 4)))
    k_scale, v_scale = torch.tensor([0.03, 0.02]), torch.tensor([[0.04, 0.01], [0.02, 0.03]])
    cache = cache_of(kind, dtype, k_scale, v_scale)
    for start in (0, 4):
        cache.append(k[:, start : start + 4], v[:, start : start + 4])  # type: ignore[attr-defined]
    out = portattn.attention_with_kvcache(q, cache, k[:, 8:], v[:, 8:], causal=True)  # type: ignore[arg-type]
    real_k = rounded(k, dtype, k_scale.expand(2, 2))
    real_v = rounded(v, dtype, v_scale)
    want = portattn.attention(q, real_k, real_v, causal=True, backend="reference")
    torch.testing.assert_close(out, want, atol=2e-6, rtol=2e-6)


def rounded(real: Tensor, dtype: torch.dtype, scale: Tensor) -> Tensor:
    """The nearest number that the dtype holds, times the scale, found by trying every one."""
    held = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    held = held[held.isfinite() & (held.abs() <= SCALED[dtype])]
    wanted = real / scale[:, None, :, None]
    nearest = held[(wanted[..., None] - held).abs().argmin(-1)]
    return nearest * scale[:, None, :, None]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=40), st.sampled_from(DTYPES))
def test_what_is_held_is_the_nearest_that_fits(values: list[float], dtype: torch.dtype) -> None:
    new = torch.tensor(values).view(1, -1, 1, 1)
    cache = ContiguousKVCache(1, len(values), 1, 1, dtype=dtype, k_scale=2.0, v_scale=2.0)
    cache.append(new, new)
    real = cache.k.float() * 2.0
    best = rounded(new, dtype, torch.full((1, 1), 2.0))
    assert torch.all((real - new).abs() <= (best - new).abs() * (1 + 1e-6) + 1e-6)


@STORED
def test_reorder_takes_the_scales_along(dtype: torch.dtype) -> None:
    new = torch.randn(2, 5, 2, 16)
    scale = torch.tensor([[0.02, 0.03], [0.04, 0.05]])
    cache = cache_of("contiguous", dtype, scale, scale)
    cache.append(new, new)  # type: ignore[attr-defined]
    q = torch.randn(1, 1, 4, 16).expand(2, -1, -1, -1)
    before = portattn.attention_with_kvcache(q, cache)  # type: ignore[arg-type]
    cache.reorder(torch.tensor([1, 0]))  # type: ignore[attr-defined]
    after = portattn.attention_with_kvcache(q, cache)  # type: ignore[arg-type]
    assert torch.equal(after, before.flip(0))


@KINDS
def test_refusals_name_the_argument(kind: str) -> None:
    with pytest.raises(ArgumentError, match="k_scale: must be given for a cache of"):
        cache_of(kind, torch.int8, None, 1.0)
    with pytest.raises(ArgumentError, match="v_scale: needs a cache of int8 or"):
        cache_of(kind, torch.float32, None, 1.0)
    with pytest.raises(ShapeError, match=r"k_scale: must be a number, \[2\] or \[2, 2\]"):
        cache_of(kind, torch.int8, torch.ones(3), 1.0)
    cache = cache_of(kind, torch.int8, 1.0, 1.0)
    whole = torch.ones(2, 1, 2, 16, dtype=torch.int32)
    with pytest.raises(DtypeError, match="k: must be floats"):
        cache.append(whole, whole)  # type: ignore[attr-defined]


def test_a_backend_without_scales_says_so() -> None:
    cache = cache_of("contiguous", torch.int8, 1.0, 1.0)
    q = torch.randn(2, 1, 4, 16)
    with pytest.raises(portattn.errors.PortattnError, match=r"(?s)torch_sdpa.*int8"):
        portattn.attention_with_kvcache(q, cache, backend="torch_sdpa")  # type: ignore[arg-type]
