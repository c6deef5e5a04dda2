"""Attention over the handles of a HostOffloadCache: the engine where it can, else the whole."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from portattn.errors import IntegrationError
from portattn.integrations.transformers.arguments import Arguments
from portattn.integrations.transformers.host_cache import HostKV
from portattn.integrations.transformers.structured_mask import StructuredMask


def attend(
    query: Tensor,
    key: HostKV,
    mask: Tensor | None,
    causal: bool,
    given: Arguments,
    options: dict[str, Any],
) -> Tensor | None:
    """out [B, T, H, Dv] of query [B, H, T, D], or None where only the whole keys will do.

    options: softmax_scale, softcap, sinks, dropout_p, as for `portattn.attention`.
    """
    rows, length = query.shape[2], key.shape[2]
    store = key.cache.store
    if length != store.length(key.place) or query.shape[0] != store.batch:
        raise IntegrationError(f"{key!r} is read after the cache has changed")
    wants = options["dropout_p"] or given.chosen_keys is not None or given.cu_seqlens_q is not None
    windowed = mask is None and given.window is not None and given.window < length
    if wants or windowed or query.requires_grad:
        return None
    visible, bias = None, given.bias
    if isinstance(mask, StructuredMask):
        area = mask.region()
        if mask.shape[2:] != (rows, length) or mask.packing is not None:
            return None
        plain = area is not None and area[:2] == (0, length) and area.window == (-1, -1)
        if plain and area is not None:
            causal = area.causal
            visible = mask.keys[:, None, None, :] if mask.padded else None
        else:
            causal, visible = False, mask.dense()
    elif mask is not None:
        if mask.shape[-1] != length:
            return None
        causal = False
        if mask.is_floating_point():
            bias = mask if bias is None else bias + mask
        else:
            visible = mask
    elif causal and 1 < rows != length:
        return None
    out, _ = key.cache.engine.attend(
        key.place,
        query.transpose(1, 2),
        causal=causal,
        softmax_scale=options["softmax_scale"],
        softcap=options["softcap"],
        sinks=options["sinks"],
        bias=bias,
        mask=visible,
    )
    return out
