"""diffusers computes with portattn what it computes with its native backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="pip install 'portattn[diffusers]'")

import diffusers
from diffusers.models import attention_dispatch as dispatching

from portattn.errors import IntegrationError
from portattn.explain import record
from portattn.integrations import versions
from portattn.integrations.diffusers import attention_backend, register

# diffusers leaves much of itself untyped.
dispatch: Any = dispatching
flux_model: Any = diffusers.FluxTransformer2DModel

QUERY, KEY, VALUE = torch.randn(2, 5, 4, 8), torch.randn(2, 9, 4, 8), torch.randn(2, 9, 4, 8)


@pytest.fixture(scope="module")
def flux() -> tuple[Any, dict[str, Tensor]]:
    """A tiny Flux transformer and its inputs."""
    model = flux_model(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    return model, {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 8, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([1.0]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }


@torch.no_grad()
def test_a_model(flux: tuple[Any, dict[str, Tensor]]) -> None:
    model, inputs = flux
    native = model(**inputs).sample
    with register(), record() as ran:
        model.set_attention_backend("portattn")
        torch.testing.assert_close(model(**inputs).sample, native)
        assert sum(ran.values()) == 2
        model.reset_attention_backend()
        with dispatch.attention_backend("portattn"):
            torch.testing.assert_close(model(**inputs).sample, native)
        assert sum(ran.values()) == 4
    torch.testing.assert_close(model(**inputs).sample, native)
    assert sum(ran.values()) == 4


@torch.no_grad()
def test_undoing_leaves_diffusers_as_it_was(flux: tuple[Any, dict[str, Tensor]]) -> None:
    model, _ = flux
    members = list(dispatch.AttentionBackendName)
    active = dispatch._AttentionBackendRegistry.get_active_backend()
    first, second = register(), register()
    second.undo()
    model.set_attention_backend("portattn")
    first.undo()
    first.undo()
    assert list(dispatch.AttentionBackendName) == members
    assert dispatch._AttentionBackendRegistry.get_active_backend() == active
    with pytest.raises(ValueError, match="portattn"):
        model.set_attention_backend("portattn")
    model.reset_attention_backend()


PADDING = torch.ones(2, 9, dtype=torch.bool)
PADDING[0, 6:] = False


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": PADDING},
        {"attn_mask": torch.randn(2, 9)},
        {"attn_mask": torch.randn(5, 9)},
        {"attn_mask": torch.randn(2, 4, 5, 9)},
        {"attn_mask": torch.rand(2, 1, 5, 9) < 0.8},
    ],
)
def test_arguments(arguments: dict[str, Any]) -> None:
    with register():
        found, native = (
            dispatch.dispatch_attention_fn(QUERY, KEY, VALUE, **arguments, backend=name)
            for name in ("portattn", "native")
        )
    torch.testing.assert_close(found, native)


def test_fewer_key_heads() -> None:
    with register():
        found, native = (
            dispatch.dispatch_attention_fn(
                QUERY, KEY[:, :, :2], VALUE[:, :, :2], enable_gqa=True, backend=name
            )
            for name in ("portattn", "native")
        )
    torch.testing.assert_close(found, native)


@pytest.mark.parametrize("name", ["return_lse", "softcap"])
def test_nothing_is_dropped(name: str) -> None:
    with register(), pytest.raises(IntegrationError):
        dispatch.dispatch_attention_fn(
            QUERY, KEY, VALUE, attention_kwargs={name: 1}, backend="portattn"
        )
    with pytest.raises(IntegrationError, match="parallel"):
        attention_backend(QUERY, KEY, VALUE, _parallel_config=object())
    with pytest.raises(IntegrationError, match="attn_mask"):
        attention_backend(QUERY, KEY, VALUE, attn_mask=torch.ones(2, 9, dtype=torch.int64))


def test_other_releases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for release in ("0.35.2", "0.43.0"):
        monkeypatch.setattr(versions, "version", lambda name, release=release: release)
        with pytest.raises(IntegrationError, match=rf"diffusers {release} .*>=0\.36,<0\.43"):
            register()
