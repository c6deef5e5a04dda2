"""Attention divided between engines is attention over the whole, whatever the division."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import portattn
from portattn.errors import ShapeError
from portattn.offload import HostKVStore, OffloadEngine, Share, coop_decode

FRACTIONS = st.sampled_from((0.0, 0.3, 0.5, 1.0))


def shares(streamed: float) -> Share:
    return Share(0.0, 1.0 - streamed, streamed)


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.sampled_from((1, 2, 3, 7, 20)), min_size=1, max_size=8),
    streamed=FRACTIONS,
    device_tokens=st.sampled_from((0, 3, 10, 1000)),
    page=st.sampled_from((1, 4, 16)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float64)),
    extra=st.sampled_from(("nothing", "sinks", "softcap", "mask", "bias", "leftpad", "masked out")),
    seed=st.integers(0, 2**31),
)
def test_any_division_gives_the_attention_of_the_whole(
    chunks: list[int],
    streamed: float,
    device_tokens: int,
    page: int,
    dtype: torch.dtype,
    extra: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    store = HostKVStore(
        2, 2, 2, 16, head_dim_v=8, dtype=dtype, device_tokens=device_tokens, page_size=page,
        flush_tokens=page, limit_bytes=2**20,
    )  # fmt: skip
    engine = OffloadEngine(store, shares(streamed), timeout=20)
    held: dict[int, list[list[torch.Tensor]]] = {layer: [[], []] for layer in (0, 1)}
    length = 0
    for rows in chunks:
        length += rows
        for layer in (0, 1):
            q = torch.randn(2, rows, 4, 16).to(dtype)
            new = torch.randn(2, rows, 2, 16).to(dtype), torch.randn(2, rows, 2, 8).to(dtype)
            for kept, tensor in zip(held[layer], new, strict=True):
                kept.append(tensor)
            k, v = (torch.cat(kept, dim=1) for kept in held[layer])
            plain, ours = options(extra, rows, length)
            out, lse = coop_decode(
                q, store, *new, layer=layer, engine=engine, return_lse=True, **ours
            )
            want, want_lse = portattn.attention(
                q.double(), k.double(), v.double(), causal=True, return_lse=True,
                backend="reference", **plain,
            )  # fmt: skip
            assert out.dtype == dtype and lse.shape == want_lse.shape
            exact = dtype != torch.bfloat16
            tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 2e-2, "atol": 2e-2}
            torch.testing.assert_close(out.double(), want, **tolerance)
            torch.testing.assert_close(lse.double(), want_lse.double(), rtol=1e-4, atol=1e-4)
    k, v = store.ordered(1)
    assert torch.equal(k, torch.cat(held[1][0], dim=1))
    assert torch.equal(v, torch.cat(held[1][1], dim=1))
    engine.close()


def options(extra: str, rows: int, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same wish for the reference and for the engine."""
    if extra == "sinks":
        both = {"sinks": torch.randn(4)}
        return {"sinks": both["sinks"].double()}, both
    if extra == "softcap":
        return {"softcap": 2.0}, {"softcap": 2.0}
    if extra == "mask":
        mask = torch.rand(2, 1, rows, length) < 0.6
        return {"mask": mask}, {"mask": mask}
    if extra == "masked out":
        mask = torch.zeros(2, 1, 1, length, dtype=torch.bool)
        return {"mask": mask}, {"mask": mask}
    if extra == "bias":
        bias = torch.randn(1, 4, rows, length)
        return {"bias": bias.double()}, {"bias": bias}
    if extra == "leftpad":
        pads = torch.tensor([min(5, length), 0], dtype=torch.int32)
        mask = torch.arange(length)[None, :] >= pads[:, None]
        return {"mask": mask[:, None, None]}, {"leftpad": pads}
    return {}, {}


def test_more_rows_than_new_keys_are_refused() -> None:
    store = HostKVStore(1, 1, 1, 8, dtype=torch.float32, page_size=2, limit_bytes=2**16)
    with OffloadEngine(store) as engine:
        new = torch.randn(1, 9, 1, 8)
        coop_decode(new, store, new, new, engine=engine)
        coop_decode(new[:, :1], store, new[:, :1], new[:, :1], engine=engine)
        assert store.parts(0)[1]
        with pytest.raises(ShapeError, match="newest"):
            coop_decode(new, store, engine=engine)
