"""Between padded batches and packed tokens, as flash_attn.bert_padding 2.8."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.errors import ShapeError

__all__ = ["index_first_axis", "index_put_first_axis", "pad_input", "unpad_input"]


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` [T] of x [N, ...]: [T, ...], differentiable."""
    return x[indices]


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """values [T, ...] as rows `indices` of zeros [first_axis_dim, ...], differentiable."""
    if tuple(indices.shape) != (values.shape[0],):
        raise ShapeError("indices", f"must be [{values.shape[0]}]", tuple(indices.shape))
    rows = values.new_zeros(first_axis_dim, *values.shape[1:])
    return rows.index_copy(0, indices, values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The tokens that a mask keeps, packed; waits for an accelerator to count them.

    hidden_states [B, S, ...]; attention_mask [B, S], 1 for tokens; unused_mask [B, S], 1 for slots
    that are kept too but not attended to. Returns packed [T, ...], indices [T] into the flattened
    [B * S], cu_seqlens [B + 1] int32, the longest length, and the attended lengths [B] int32.

    Raises ShapeError when a mask doesn't have the first two dimensions of hidden_states.
    """
    for name, mask in (("attention_mask", attention_mask), ("unused_mask", unused_mask)):
        if mask is not None and mask.shape != hidden_states.shape[:2]:
            wanted = tuple(hidden_states.shape[:2])
            raise ShapeError(name, f"must be {wanted}", tuple(mask.shape))
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(-1, dtype=torch.int32)
    used = attention_mask.sum(-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    longest = int(lengths.max()) if lengths.numel() else 0
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    packed = index_first_axis(hidden_states.flatten(0, 1), indices)
    return packed, indices, cu_seqlens, longest, used


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Packed [T, ...] back to [batch, seqlen, ...], zeros where there is no token."""
    rows = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return rows.view(batch, seqlen, *hidden_states.shape[1:])
