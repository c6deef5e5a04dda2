"""Packed sequences whose tensors have room past the last one, where kernels write nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def cleared(rows: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Packed rows [T, H, D] with zeros past the last sequence."""
    return rows.masked_fill(_past_the_end(rows.shape[0], cu_seqlens)[:, None, None], 0.0)


def cleared_lse(lse: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[H, T] with -inf past the last sequence."""
    return lse.masked_fill(_past_the_end(lse.shape[1], cu_seqlens), float("-inf"))


def _past_the_end(rows: int, cu_seqlens: Tensor) -> Tensor:
    return torch.arange(rows, device=cu_seqlens.device) >= cu_seqlens[-1]
