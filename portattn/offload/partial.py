"""Attention over some of a layer's keys, and the merge of such parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from portattn import ops
from portattn.arguments import Options
from portattn.attention import merge_states
from portattn.dispatch.backend import AttentionTensors

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """The arguments of one attention beside the keys; scores are [B, H, T, length] or broadcast."""

    q: Tensor
    causal: bool
    softmax_scale: float
    softcap: float
    bias: Tensor | None
    mask: Tensor | None
    leftpad: Tensor | None


def part(
    call: Call,
    k: Tensor,
    v: Tensor,
    scores: Sequence[Tensor | None],
    pads: Tensor | None,
    *,
    causal: bool = False,
    table: Tensor | None = None,
    keys: int | None = None,
    dense: bool = False,
    scales: tuple[Tensor, Tensor] | None = None,
) -> State:
    """(out, lse) over some of the keys, by whatever kernel dispatch chooses where they lie."""
    q = call.q if k.device.type != "cpu" or dense else exact(call.q)
    count = k.shape[1] if keys is None else keys
    bias, mask = scores
    # A bound that stays the same for many steps, so that their decision is made once.
    bound = count if bias is not None or mask is not None else 1 << max(count - 1, 0).bit_length()
    used = None
    if not dense:
        used = torch.full((q.shape[0],), count, dtype=torch.int32, device=k.device)
    k_scale, v_scale = scales or (None, None)
    tensors = AttentionTensors(
        q, k, v, bias, mask, seqused_k=used, block_table=table, leftpad_k=pads,
        k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip
    window = (-1, 0 if causal else -1)
    options = Options(
        call.softmax_scale, causal, window, call.softcap, max_seqlen_k=0 if dense else bound
    )
    return ops.forward(tensors, options)


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Partial results aren't rounded to half types: the CPU takes float32 queries over any keys."""
    return dtype if dtype == torch.float64 else torch.float32


def exact(q: Tensor) -> Tensor:
    return q.to(exact_dtype(q.dtype))


def scores_of(call: Call) -> tuple[Tensor | None, Tensor | None]:
    return call.bias, call.mask


def columns(scores: Tensor | None, length: int, spans: Sequence[tuple[int, int]]) -> Tensor | None:
    """The columns of a bias or mask for some of the keys."""
    if scores is None or scores.shape[-1] == 1 != length:
        return scores
    pieces = [scores[..., start:stop] for start, stop in spans if stop > start]
    if not pieces:
        return scores[..., :0]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def part_pads(pads: Tensor | None, start: int, stop: int, device: torch.device) -> Tensor | None:
    if pads is None:
        return None
    return (pads - start).clamp(0, stop - start).to(torch.int32).to(device, non_blocking=True)


def merged(a: State, b: State) -> State:
    dtype = exact_dtype(a[0].dtype)
    return merge_states(a[0].to(dtype), a[1], b[0].to(dtype), b[1])


def with_sinks(state: State, sinks: Tensor) -> State:
    """A sink is a key without a value: a state of its own, with an output of 0."""
    out, lse = state
    own = sinks.detach().to(lse.dtype)[None, :, None].expand_as(lse)
    return merged(state, (torch.zeros_like(out), own))
