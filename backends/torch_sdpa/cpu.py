"""The flash kernel for CPUs. Its conventions differ from ours, and are mended here:

- causal is top-left aligned. With fewer queries than keys, the keys before the diagonal block are
  attended to apart and merged by lse; with more, the first rows see nothing.
- a fully masked row has lse 0 instead of -inf.
- masks are additive floats of the full [Sq, Sk] size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.common.definition import empty_result
from portattn.backends.common.pieces import pieces
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

# Up to this many packed rows a kv head is read once for all the query heads of its group.
_PACKED_ROWS = 64


class CpuFlash:
    """aten::_scaled_dot_product_flash_attention_for_cpu and its backward."""

    name = "flash for CPU"
    device_type = "cpu"

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = []
        if problem.layout == "varlen":
            reasons.append("no varlen layout")
        if problem.layout == "cache" and (problem.mask or problem.bias):
            reasons.append("no mask or bias over a cache")
        if problem.head_dim != problem.head_dim_v:
            reasons.append("head_dim and head_dim_v differ")
        if "window" in problem.features:
            reasons.append("no windows")
        masked = problem.mask or problem.bias
        if masked and problem.full_size_mask is False:
            reasons.append("a mask or bias broadcast over queries or keys would be copied whole")
        return reasons

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem
    ) -> tuple[Tensor, Tensor]:
        if problem.layout == "cache":
            return _cached(tensors, problem)
        q, k, v = _widened(*(_rows_last(t) for t in (tensors.q, tensors.k, tensors.v)))
        mask = _additive_mask(tensors, problem)
        if mask is not None:
            out, lse = _call(q, k, v, problem.softmax_scale, mask=mask)
            blind = (mask == float("-inf")).all(-1)
            out, lse = out.masked_fill(blind[..., None], 0), lse.masked_fill(blind, float("-inf"))
        elif not problem.causal or problem.seqlen_q == 1:
            out, lse = _packed(q, k, v, problem)
        else:
            out, lse = _causal(q, k, v, problem.softmax_scale)
        return out.transpose(1, 2).to(tensors.q.dtype), lse

    def backward(
        self,
        grad_out: Tensor,
        out: Tensor,
        lse: Tensor,
        tensors: AttentionTensors,
        problem: AttentionProblem,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _widened(*(_rows_last(t) for t in (tensors.q, tensors.k, tensors.v)))
        g, o = (_rows_last(t).to(q.dtype) for t in (grad_out, out))
        # exp(-inf - 0) = 0 for the scores of rows that see nothing.
        stats = lse.masked_fill(lse == float("-inf"), 0.0)
        stats = stats.transpose(1, 2).contiguous().transpose(1, 2)
        scale, mask = problem.softmax_scale, _additive_mask(tensors, problem)
        if mask is not None or not problem.causal or problem.seqlen_q == 1:
            grads = _call_backward(g, q, k, v, o, stats, scale, mask=mask)
        else:
            grads = _causal_backward(g, q, k, v, o, stats, scale)
        dq, dk, dv = (t.transpose(1, 2).to(tensors.q.dtype) for t in grads)
        return dq, dk, dv


def _cached(tensors: AttentionTensors, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """One call per sequence over the keys that it holds; pages are gathered first."""
    out, lse = empty_result(tensors)
    for piece in pieces(tensors, problem):
        if not (piece.seqlen_q and piece.seqlen_k):
            continue
        parts = (piece.q.flatten(1, 2), piece.k, piece.v)
        q, k, v = _widened(*(t if t.stride(-1) == 1 else t.contiguous() for t in parts))
        if problem.causal and problem.seqlen_q > 1:
            rows, row_lse = _causal(q, k, v, problem.softmax_scale)
        else:
            rows, row_lse = _packed(q, k, v, problem)
        split = (problem.kv_heads, -1)
        piece.queries_of(out).copy_(rows.unflatten(1, split))
        piece.row_values_of(lse).copy_(row_lse.unflatten(1, split))
    return out, lse


def _widened(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in the dtype that computes fastest.

    Without AMX, torch's half-precision products run at half the rate of its float32 ones, so
    widening first is faster (1.55 times at 2048 tokens); with AMX it is slower (1.6 times).
    """
    if q.dtype in (torch.bfloat16, torch.float16) and not torch.cpu._is_amx_tile_supported():
        return q.float(), k.float(), v.float()
    return q, k, v


def _rows_last(tensor: Tensor) -> Tensor:
    tensor = tensor.transpose(1, 2)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _additive_mask(tensors: AttentionTensors, problem: AttentionProblem) -> Tensor | None:
    """bias, mask and causal as one float tensor [B or 1, H or 1, Sq, Sk]."""
    if tensors.bias is None and tensors.mask is None:
        return None
    size = (problem.seqlen_q, problem.seqlen_k)
    hidden = torch.zeros((), dtype=torch.bool) if tensors.mask is None else ~tensors.mask
    if problem.causal:
        offset = problem.seqlen_k - problem.seqlen_q
        hidden = hidden | torch.ones(size, dtype=torch.bool).triu(1 + offset)
    dtype = torch.float64 if problem.dtype == torch.float64 else torch.float32
    base = (
        torch.zeros((1, 1, 1, 1), dtype=dtype) if tensors.bias is None else tensors.bias.to(dtype)
    )
    mask = base.masked_fill(hidden, float("-inf"))
    return mask.expand(*mask.shape[:2], *size).contiguous()


def _call(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out, lse


def _call_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        g, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scale
    )
    return dq, dk, dv


def _packed(q: Tensor, k: Tensor, v: Tensor, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """Every row sees every key: few rows of a group's heads are better one head with more rows."""
    group = problem.heads // problem.kv_heads
    if group == 1 or group * problem.seqlen_q > _PACKED_ROWS:
        return _call(q, k, v, problem.softmax_scale)
    split = (problem.kv_heads, group)
    rows = q.unflatten(1, split).flatten(2, 3)
    out, lse = _call(rows, k, v, problem.softmax_scale)
    inner = (group, problem.seqlen_q)
    return out.unflatten(2, inner).flatten(1, 2), lse.unflatten(2, inner).flatten(1, 2)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Bottom-right causal from a top-left kernel."""
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    blind = max(0, seqlen_q - seqlen_k)
    before = max(0, seqlen_k - seqlen_q)
    out, lse = _call(q[:, :, blind:], k[:, :, before:], v[:, :, before:], scale, causal=True)
    if before:
        earlier, earlier_lse = _call(q, k[:, :, :before], v[:, :, :before], scale)
        total = torch.logaddexp(lse, earlier_lse)
        weights = ((part - total).exp()[..., None] for part in (lse, earlier_lse))
        merged = out * next(weights) + earlier * next(weights)
        return merged, total
    if blind:
        out = torch.cat((out.new_zeros(*out.shape[:2], blind, out.shape[3]), out), 2)
        lse = torch.cat((lse.new_full((*lse.shape[:2], blind), float("-inf")), lse), 2)
    return out, lse


def _causal_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of _causal, each with the results of the whole: their gradients add up."""
    blind, before = max(0, q.shape[2] - k.shape[2]), max(0, k.shape[2] - q.shape[2])
    rows = tuple(t[:, :, blind:] for t in (g, q, out, lse))
    g_rows, q_rows, out_rows, lse_rows = rows
    dq, dk, dv = _call_backward(
        g_rows, q_rows, k[:, :, before:], v[:, :, before:], out_rows, lse_rows, scale, causal=True
    )
    if before:
        more_q, dk_before, dv_before = _call_backward(
            g, q, k[:, :, :before], v[:, :, :before], out, lse, scale
        )
        return dq + more_q, torch.cat((dk_before, dk), 2), torch.cat((dv_before, dv), 2)
    if blind:
        dq = torch.cat((dq.new_zeros(*dq.shape[:2], blind, dq.shape[3]), dq), 2)
    return dq, dk, dv
