"""The attention function that transformers calls, layer by layer, in place of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import portattn
from portattn import ops
from portattn.errors import IntegrationError
from portattn.integrations.transformers import arguments, offloaded
from portattn.integrations.transformers.arguments import Arguments
from portattn.integrations.transformers.host_cache import HostKV
from portattn.integrations.transformers.spread import SpreadKV
from portattn.integrations.transformers.structured_mask import StructuredMask

QKV = tuple[Tensor, Tensor, Tensor]


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' interface has it; called by models, not by users.

    query [B, H, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]. attention_mask: what
    `masks.attention_mask` returned, or a mask of the model's own: bool (True takes part) or float
    (added). Returns out [B, Sq, H, Dv], contiguous, and None for the weights.

    A mask says everything about which keys are seen. Without one, `is_causal` or the module's
    attribute of that name decides, and `sliding_window`.

    Raises IntegrationError for arguments that portattn can't honour.
    """
    paged = kwargs.pop("cache", None)
    if paged is not None:
        # Writes this layer's k and v, and narrows the lengths in kwargs to this layer's.
        layer = module.layer_idx
        key, value = paged.update(
            key_states=key, value_states=value, layer_idx=layer, kwargs=kwargs
        )
    given = arguments.parse(kwargs)
    if isinstance(scaling, Tensor):  # learned, so it needs its gradient
        query, scaling = query * scaling, 1.0
    if isinstance(key, HostKV):
        return _offloaded(module, query, key, value, attention_mask, dropout, scaling, is_causal,
                          given), None  # fmt: skip
    if isinstance(key, SpreadKV):
        causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
        return key.attend(query, attention_mask, causal, given, scaling).contiguous(), None
    query, key, value = _alike(query, key, value)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    drops = dropout if module.training else 0.0
    if attention_mask is None and given is arguments.NOTHING and paged is None and not drops:
        causal = _checked_causal(causal, query.size(2), key.size(2))
        return ops.heads_first(query, key, value, scaling, causal), None
    qkv = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    common = {
        "softmax_scale": scaling,
        "softcap": given.softcap,
        "sinks": given.sinks,
        "dropout_p": drops,
        "deterministic": given.deterministic,
    }
    if paged is not None:
        # The mask that comes along writes out what the lengths say.
        return _varlen(qkv, given, True, given.window, common), None
    out = _by_mask(qkv, attention_mask, causal, given, common)
    return out.contiguous(), None


def _offloaded(
    module: nn.Module,
    query: Tensor,
    key: HostKV,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    is_causal: bool | None,
    given: Arguments,
) -> Tensor:
    """Attention over keys that lie partly in host memory, put together only where it must be."""
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    common = {
        "softmax_scale": scaling,
        "softcap": given.softcap,
        "sinks": given.sinks,
        "dropout_p": dropout if module.training else 0.0,
    }
    out = None
    if isinstance(value, HostKV) and not torch._C._is_any_autocast_enabled():
        out = offloaded.attend(query, key, mask, causal, given, common)
    if out is None:
        whole = value.whole() if isinstance(value, HostKV) else value
        query, keys, values = _alike(query, key.whole(), whole)
        qkv = query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        common["deterministic"] = given.deterministic
        out = _by_mask(qkv, mask, causal, given, common)
    return out.contiguous()


def _alike(query: Tensor, key: Tensor, value: Tensor) -> QKV:
    """The tensors with one batch and, under autocast, in its dtype."""
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if not query.size(0) == key.size(0) == value.size(0):
        # Learned queries come with a batch of 1.
        batch = max(query.shape[0], key.shape[0])
        query, key, value = (
            tensor if tensor.shape[0] == batch else tensor.expand(batch, -1, -1, -1)
            for tensor in (query, key, value)
        )
    return query, key, value


def _by_mask(
    qkv: QKV, mask: Tensor | None, causal: bool, given: Arguments, common: dict[str, Any]
) -> Tensor:
    q, k, _ = qkv
    structured = isinstance(mask, StructuredMask) and not torch.compiler.is_compiling()
    if isinstance(mask, StructuredMask) and structured and given.chosen_keys is None:
        if given.cu_seqlens_q is None:
            if mask.packing is not None or mask.shape[2:] == (q.shape[1], k.shape[1]):
                return _by_structure(qkv, mask, given, common)
        elif not mask.padded:
            window = mask.band.left + 1 if mask.band.left >= 0 else None
            return _varlen(qkv, given, mask.band.right == 0, window, common)
    if mask is not None or given.chosen_keys is not None:
        return _by_dense_mask(qkv, mask, given, common)
    if given.cu_seqlens_q is not None:
        return _varlen(qkv, given, causal, given.window, common)
    return _without_mask(qkv, causal, given, common)


def _by_structure(
    qkv: QKV, mask: StructuredMask, given: Arguments, common: dict[str, Any]
) -> Tensor:
    """Only the keys that are seen, and the rule instead of a mask where it suffices."""
    if mask.packing is not None:
        return _packed(qkv, mask, given, common)
    area = mask.region()
    if area is None:
        return _by_dense_mask(qkv, mask, given, common)
    q, k, v = qkv
    seen = slice(area.start, area.stop)
    bias = given.bias
    if bias is not None and bias.shape[-1] != 1:
        bias = bias[..., seen]
    return _attend(
        q,
        k[:, seen],
        v[:, seen],
        causal=area.causal,
        window_size=area.window,
        bias=bias,
        mask=mask.keys[:, None, None, seen] if mask.padded else None,
        **common,
    )


def _packed(qkv: QKV, mask: StructuredMask, given: Arguments, common: dict[str, Any]) -> Tensor:
    """Several sequences per row: each attends within itself."""
    assert mask.packing is not None
    if given.bias is not None:
        return _by_dense_mask(qkv, mask, given, common)
    _, starts, longest = mask.packing
    causal = mask.band.right == 0
    window = (mask.band.left, -1 if causal else mask.band.right)
    lengths = (starts, starts, longest, longest)
    return _attend_varlen(qkv, lengths, causal=causal, window_size=window, **common)


def _varlen(
    qkv: QKV, given: Arguments, causal: bool, window: int | None, common: dict[str, Any]
) -> Tensor:
    """Sequences whose lengths the caller states."""
    if given.bias is not None:
        raise IntegrationError("position_bias can't be combined with cu_seq_lens_q")
    assert given.cu_seqlens_q is not None and given.cu_seqlens_k is not None
    lengths = (given.cu_seqlens_q, given.cu_seqlens_k, given.max_seqlen_q, given.max_seqlen_k)
    return _attend_varlen(
        qkv, lengths, causal=causal, window_size=_window(window, causal), **common
    )


def _by_dense_mask(
    qkv: QKV, mask: Tensor | None, given: Arguments, common: dict[str, Any]
) -> Tensor:
    """A mask written out: bool selects, float is added. Further limits are added to it."""
    q, k, v = qkv
    bias, visible = given.bias, None
    if isinstance(mask, StructuredMask) and not torch.compiler.is_compiling():
        mask = mask.dense()
    if mask is not None and mask.dtype == torch.bool:
        visible = mask
    elif mask is not None and mask.is_floating_point():
        bias = mask if bias is None else bias + mask
    elif mask is not None:
        raise IntegrationError(f"attention_mask: must be bool or float, got {mask.dtype}")
    for limit in _limits(q.shape[0], q.shape[1], k.shape[1], given):
        visible = limit if visible is None else visible & limit
    return _attend(q, k, v, bias=bias, mask=visible, **common)


def _limits(batch: int, seqlen_q: int, seqlen_k: int, given: Arguments) -> list[Tensor]:
    """Bool masks, broadcastable to [B, H, Sq, Sk], of what the arguments add to a mask."""
    limits = []
    if given.chosen_keys is not None:
        chosen = given.chosen_keys.long()
        # One more column takes the indices that stand for no key.
        chosen = torch.where((chosen < 0) | (chosen > seqlen_k), seqlen_k, chosen)
        seen = chosen.new_zeros((*chosen.shape[:2], seqlen_k + 1), dtype=torch.bool)
        limits.append(seen.scatter(-1, chosen, True)[:, None, :, :seqlen_k])
    if given.cu_seqlens_q is not None and given.cu_seqlens_k is not None:
        if batch != 1:
            raise IntegrationError(f"cu_seq_lens_q with a mask needs a batch of 1, got {batch}")
        ids = [
            torch.searchsorted(
                starts, torch.arange(length, device=starts.device, dtype=torch.int32), right=True
            )
            for starts, length in ((given.cu_seqlens_q, seqlen_q), (given.cu_seqlens_k, seqlen_k))
        ]
        limits.append(ids[0][None, None, :, None] == ids[1][None, None, None, :])
    return limits


def _without_mask(qkv: QKV, causal: bool, given: Arguments, common: dict[str, Any]) -> Tensor:
    q, k, v = qkv
    causal = _checked_causal(causal, q.shape[1], k.shape[1])
    return _attend(
        q,
        k,
        v,
        causal=causal,
        window_size=_window(given.window, causal or q.shape[1] == 1),
        bias=given.bias,
        **common,
    )


def _checked_causal(causal: bool, seqlen_q: int, seqlen_k: int) -> bool:
    """Whether a call without a mask is causal; a single query sees every key."""
    if not causal or seqlen_q <= 1:
        return False
    if seqlen_q != seqlen_k:
        raise IntegrationError(
            f"causal attention of {seqlen_q} queries over {seqlen_k} keys needs a mask: "
            "without one it isn't known which keys the first query sees"
        )
    return True


def _window(size: int | None, causal: bool) -> tuple[int, int]:
    """transformers counts the token itself, portattn's window is what lies beyond it."""
    if size is None:
        return (-1, -1)
    return (size - 1, -1 if causal else size - 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    out = portattn.attention(q, k, v, **options)
    assert isinstance(out, Tensor)
    return out


def _attend_varlen(qkv: QKV, lengths: tuple[Tensor, Tensor, int, int], **options: Any) -> Tensor:
    """The rows' sequences one after another, and the result in rows again."""
    q, k, v = (tensor.flatten(0, 1) for tensor in qkv)
    out = portattn.attention_varlen(q, k, v, *lengths, **options)
    assert isinstance(out, Tensor)
    return out.reshape(*qkv[0].shape[:3], out.shape[-1])
