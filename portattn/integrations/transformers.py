"""attn_implementation="portattn" for transformers 5: attention and mask registered together.

Registering the attention without the mask would leave attention_mask None, and padded or packed
batches would be computed wrongly without a word.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from portattn.attention import attention, attention_varlen
from portattn.errors import ArgumentError, IntegrationError

NAME = "portattn"

# Keyword arguments that reach an attention function of some model and don't change its result.
_IRRELEVANT = frozenset(
    {
        "cache_position",
        "deterministic",
        "inputs_embeds",
        "labels",
        "layer_idx",
        "logits_to_keep",
        "mm_token_type_ids",
        "next_sequence_label",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_value",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "return_loss",
        "seq_idx",
        "shared_kv_states",
        "token_type_ids",
        "use_cache",
        # Set up by continuous batching for cache.update(), which reads them itself.
        "block_table",
        "read_index",
        "write_index",
        "logits_indices",
    }
)
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class Registration:
    """What `register` changed; `undo()` or leaving a with block puts it back."""

    def __init__(self, changes: list[tuple[dict[str, Any], str, Any]]) -> None:
        self._changes = changes

    def undo(self) -> None:
        """Restore the entries that were there before; a second call does nothing."""
        while self._changes:
            mapping, name, previous = self._changes.pop()
            if previous is None:
                mapping.pop(name, None)
            else:
                mapping[name] = previous

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


def register(override: str | None = None) -> Registration:
    """Make attn_implementation="portattn" available; returns a handle that can undo it.

    override="sdpa" also replaces transformers' own "sdpa" attention until undone: continuous
    batching accepts no other name. Raises IntegrationError for an unsupported transformers.
    """
    _check_version()
    utils = importlib.import_module("transformers.modeling_utils")
    masking = importlib.import_module("transformers.masking_utils")
    functions = utils.AttentionInterface._global_mapping
    masks = masking.AttentionMaskInterface._global_mapping
    entries = [(functions, NAME, attention_forward), (masks, NAME, masking.sdpa_mask)]
    if override is not None:
        if override not in functions or override == NAME:
            legal = ", ".join(sorted(set(functions) - {NAME}))
            raise ArgumentError("override", f"must be one of {legal}", repr(override))
        if masks.get(override) is not masking.sdpa_mask:
            raise ArgumentError("override", "must use transformers' sdpa masks", repr(override))
        entries.append((functions, override, attention_forward))
    changes = []
    for mapping, name, value in entries:
        changes.append((mapping, name, mapping.get(name)))
        mapping[name] = value
    return Registration(changes)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls.

    query [B, H, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv], heads not repeated;
    attention_mask bool (True takes part) or additive float, 4-D, or None. Returns
    out [B, Sq, H, Dv] and no weights. Raises IntegrationError for arguments that would change the
    result and that portattn doesn't know.
    """
    features = _features(kwargs)
    cache = features.pop("cache", None)
    if cache is not None:
        key, value = cache.update(
            key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs
        )
    elif all(features.get(name) is not None for name in _PACKED):
        return _packed(module, query, key, value, dropout, scaling, is_causal, features)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    # Without a mask, several queries are either a prompt as long as its keys, or a prompt before
    # the empty rest of a static cache; a single query sees everything.
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    bias = features["position_bias"]
    if causal and key.shape[2] > query.shape[2]:
        length = query.shape[2]
        key, value = key[:, :, :length], value[:, :, :length]
        if bias is not None and bias.shape[-1] != 1:
            bias = bias[..., :length]
    mask = attention_mask
    if mask is not None:
        mask = mask[..., : key.shape[2]]
        if mask.dtype != torch.bool:
            bias, mask = mask if bias is None else mask + bias, None
    out = attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        causal=causal,
        softmax_scale=scaling,
        window_size=_window(features["sliding_window"]) if causal else (-1, -1),
        softcap=features["softcap"] or 0.0,
        bias=bias,
        mask=mask,
        sinks=features["s_aux"],
        dropout_p=dropout,
    )
    assert isinstance(out, Tensor)
    return out.contiguous(), None


def _packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    is_causal: bool | None,
    features: dict[str, Any],
) -> tuple[Tensor, None]:
    """Sequences packed into one row: their lengths say all that a mask would."""
    if query.shape[0] != 1 or features["position_bias"] is not None:
        raise IntegrationError("cu_seq_lens_q needs a batch of 1 and no position_bias")
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    out = attention_varlen(
        q,
        k,
        v,
        features["cu_seq_lens_q"].to(torch.int32),
        features["cu_seq_lens_k"].to(torch.int32),
        int(features["max_length_q"]),
        int(features["max_length_k"]),
        causal=bool(causal),
        softmax_scale=scaling,
        window_size=_window(features["sliding_window"]) if causal else (-1, -1),
        softcap=features["softcap"] or 0.0,
        sinks=features["s_aux"],
        dropout_p=dropout,
    )
    assert isinstance(out, Tensor)
    return out[None].contiguous(), None


def _window(sliding_window: int | None) -> tuple[int, int]:
    """transformers counts the token itself among its window; window_size doesn't."""
    return (-1, -1) if sliding_window is None else (sliding_window - 1, -1)


def _features(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that change the result; unknown ones that are set raise."""
    known = {name: kwargs.get(name) for name in ("sliding_window", "softcap", "s_aux", "cache")}
    known["position_bias"] = kwargs.get("position_bias")
    known |= {name: kwargs.get(name) for name in _PACKED}
    if kwargs.get("output_attentions"):
        raise IntegrationError(
            "output_attentions=True: fused attention never has the weights; "
            'load the model with attn_implementation="eager" to get them'
        )
    for name, given in kwargs.items():
        if name in known or name in _IRRELEVANT or name == "output_attentions":
            continue
        if given is not None and given is not False:
            raise IntegrationError(
                f"the attention argument {name!r} is not known to portattn and could change the "
                'result; load the model with attn_implementation="sdpa" or "eager"'
            )
    return known


def _check_version() -> None:
    try:
        installed = version("transformers")
    except PackageNotFoundError as error:
        raise IntegrationError(
            "transformers is not installed: pip install 'portattn[transformers]'"
        ) from error
    if installed.split(".")[0] != "5":
        raise IntegrationError(
            f"transformers {installed} is not supported: install transformers>=5,<6"
        )
