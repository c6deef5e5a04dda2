"""Rows that see no key: the vendor's operators don't say what they give them."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem


def blind_rows(t: AttentionTensors, problem: AttentionProblem) -> Tensor:
    """Which rows see no key: bool [B, Sq], or [T] of packed tensors."""
    device = t.q.device
    if problem.layout == "varlen":
        assert t.cu_seqlens_q is not None and t.cu_seqlens_k is not None
        positions = torch.arange(t.q.shape[0], device=device)
        sequence = torch.searchsorted(t.cu_seqlens_q[1:].long(), positions, right=True)
        sequence = sequence.clamp(max=problem.batch - 1)
        rows = positions - t.cu_seqlens_q[sequence]
        queries, keys = t.cu_seqlens_q.diff()[sequence], t.cu_seqlens_k.diff()[sequence]
        return _blind(rows, queries, keys, problem.window)
    rows = torch.arange(problem.seqlen_q, device=device)[None].expand(problem.batch, -1)
    queries = torch.full_like(rows, problem.seqlen_q)
    keys = torch.full_like(rows, problem.seqlen_k)
    if t.seqused_k is not None:
        keys = t.seqused_k.to(rows)[:, None].expand_as(rows)
    return _blind(rows, queries, keys, problem.window)


def _blind(rows: Tensor, queries: Tensor, keys: Tensor, window: tuple[int, int]) -> Tensor:
    """From each row's place in its sequence, and that sequence's queries and keys."""
    left, right = window
    diagonal = rows + keys - queries
    last = keys - 1 if right < 0 else torch.minimum(keys - 1, diagonal + right)
    first = torch.zeros_like(keys) if left < 0 else (diagonal - left).clamp(min=0)
    return first > last


def without_rows(out: Tensor, lse: Tensor, blind: Tensor) -> tuple[Tensor, Tensor]:
    """out 0 and lse -inf in blind rows; [B, Sq, H, D] and [B, H, Sq], or [T, H, D] and [H, T]."""
    out = out.masked_fill(blind[..., None, None], 0.0)
    per_head = blind if blind.dim() == 1 else blind[:, None]
    return out, lse.masked_fill(per_head, float("-inf"))
