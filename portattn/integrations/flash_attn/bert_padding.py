"""Between padded batches and packed tokens, as flash_attn.bert_padding 2.8."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.errors import ShapeError


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` of x, differentiable."""
    return x[indices]


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The tokens that a mask keeps, packed.

    hidden_states [B, S, ...]; attention_mask [B, S], 1 for tokens; unused_mask [B, S], 1 for slots
    that are kept too but not attended to. Returns packed [T, ...], indices [T] into the flattened
    [B * S], cu_seqlens [B + 1] int32, the longest length, and the attended lengths [B] int32.
    """
    if attention_mask.shape != hidden_states.shape[:2]:
        raise ShapeError(
            "attention_mask",
            f"must be {tuple(hidden_states.shape[:2])}",
            tuple(attention_mask.shape),
        )
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(-1, dtype=torch.int32)
    used = attention_mask.sum(-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    longest = int(lengths.max()) if lengths.numel() else 0
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return hidden_states.flatten(0, 1)[indices], indices, cu_seqlens, longest, used


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Packed [T, ...] back to [batch, seqlen, ...], zeros where there is no token."""
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    batched: Tensor = padded.index_copy(0, indices, hidden_states).unflatten(0, (batch, seqlen))
    return batched
