"""set_attention_backend("portattn") on a tiny Flux transformer."""

from __future__ import annotations

import pytest
import torch

from portattn.errors import IntegrationError
from portattn.explain import record
from portattn.integrations import diffusers as integration
from portattn.integrations import versions

pytest.importorskip("diffusers", reason="pip install 'portattn[diffusers]' runs these")


def test_flux_equals_the_native_backend() -> None:
    from diffusers import FluxTransformer2DModel
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    model = FluxTransformer2DModel(
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
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 8, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([1.0]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }
    with torch.no_grad():
        native = model(**inputs).sample
        with pytest.raises(ValueError, match="portattn"):
            model.set_attention_backend("portattn")
        with integration.register():
            integration.register()
            model.set_attention_backend("portattn")
            with record() as counts:
                torch.testing.assert_close(model(**inputs).sample, native)
            assert counts
            model.reset_attention_backend()
            with attention_backend("portattn"), record() as counts:
                torch.testing.assert_close(model(**inputs).sample, native)
            assert counts
    assert "portattn" not in AttentionBackendName._value2member_map_
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).sample, native)


def test_masks_and_causal_are_torchs() -> None:
    q, k = torch.randn(2, 5, 2, 8), torch.randn(2, 9, 2, 8)
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[0, 6:] = False

    def native(**kwargs: object) -> torch.Tensor:
        moved = (t.transpose(1, 2) for t in (q, k, k))
        out = torch.nn.functional.scaled_dot_product_attention(*moved, **kwargs)  # type: ignore[arg-type]
        return out.transpose(1, 2)

    torch.testing.assert_close(
        integration.attention_backend(q, k, k, attn_mask=padding),
        native(attn_mask=padding[:, None, None]),
    )
    torch.testing.assert_close(
        integration.attention_backend(q, k, k, is_causal=True), native(is_causal=True)
    )
    with pytest.raises(IntegrationError, match="context parallelism"):
        integration.attention_backend(q, k, k, _parallel_config=object())


def test_unknown_releases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "0.99.1")
    with pytest.raises(IntegrationError, match=r"diffusers 0\.99\.1 is not known to work"):
        integration.register()
