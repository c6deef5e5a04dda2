"""From a problem to a call of one of the vendor's operators: its name, arguments and lengths.

Their conventions: masks are 1 where a key is hidden; `sparse_mode` 3 is causal and 4 a band, both
aligned bottom-right and given the one 2048 x 2048 triangle; lengths lie on the host, those of
packed sequences cumulative without the leading 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from portattn.backends.ascend.tiling_mask import VENDOR_SIDE, tiling_mask
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

_UNBOUNDED = 2**31 - 1
_NO_MASK, _CAUSAL, _BAND = 0, 3, 4


@dataclass(frozen=True)
class VendorCall:
    """`operator` of torch.ops.npu, called as operator(*args, **keywords)."""

    operator: str
    args: tuple[Any, ...]
    keywords: dict[str, Any]


def host_lengths(cu_seqlens: Tensor | None) -> list[int]:
    """Cumulative lengths without the leading 0; one copy to the host."""
    assert cu_seqlens is not None  # the layout is varlen
    ends: list[int] = cu_seqlens[1:].tolist()
    return ends


def training(t: AttentionTensors, problem: AttentionProblem) -> VendorCall:
    """npu_fusion_attention of dense (BSND) or packed (TND) tensors."""
    keywords = {"scale": problem.softmax_scale, **_mask(problem, t.q.device), **_packed(t, problem)}
    args = (t.q, t.k, t.v, problem.heads, _layout(problem))
    return VendorCall("npu_fusion_attention", args, keywords)


def gradient(
    grad_out: Tensor, out: Tensor, lse: Tensor, t: AttentionTensors, problem: AttentionProblem
) -> VendorCall:
    """npu_fusion_attention_grad from any forward's out and lse.

    It computes p = exp(s - softmax_max) / softmax_sum: with the lse for the maximum and 1 for the
    sum these are the probabilities, whoever computed them, sinks included.
    """
    rows = lse.transpose(0, 1) if problem.layout == "varlen" else lse
    maxima = rows[..., None].expand(*rows.shape, 8).contiguous()
    keywords = {
        "softmax_max": maxima,
        "softmax_sum": torch.ones_like(maxima),
        "attention_in": out,
        "scale_value": problem.softmax_scale,
        **_mask(problem, t.q.device),
        **_packed(t, problem),
    }
    args = (t.q, t.k, t.v, grad_out, problem.heads, _layout(problem))
    return VendorCall("npu_fusion_attention_grad", args, keywords)


def infer(
    t: AttentionTensors, problem: AttentionProblem, lengths: list[int], second: bool
) -> VendorCall:
    """npu_fused_infer_attention_score over a cache; `second` for v2, which renames arguments."""
    k, v = t.k, t.v
    pages: dict[str, Any] = {}
    if t.block_table is not None:
        k, v = k.flatten(2), v.flatten(2)
        pages = {"block_table": t.block_table, "block_size": problem.page_size}
    elif t.cache_batch_idx is not None:
        rows = t.cache_batch_idx.long()
        k, v = k.index_select(0, rows), v.index_select(0, rows)
    mask = _mask(problem, t.q.device) if problem.seqlen_q > 1 else {}
    for training_name, name in (("pre_tockens", "pre_tokens"), ("next_tockens", "next_tokens")):
        if training_name in mask:
            mask[name] = mask.pop(training_name)
    keywords = {
        _V2.get(name, name) if second else name: value
        for name, value in {
            "num_heads": problem.heads,
            "num_key_value_heads": problem.kv_heads,
            "input_layout": "BSND",
            "scale": problem.softmax_scale,
            "actual_seq_lengths_kv": lengths,
            "softmax_lse_flag": True,
            **pages,
            **mask,
        }.items()
    }
    name = "npu_fused_infer_attention_score" + ("_v2" if second else "")
    return VendorCall(name, (t.q, k, v), keywords)


_V2 = {
    "num_heads": "num_query_heads",
    "scale": "softmax_scale",
    "actual_seq_lengths_kv": "actual_seq_kvlen",
    "softmax_lse_flag": "return_softmax_lse",
}


def _layout(problem: AttentionProblem) -> str:
    return "TND" if problem.layout == "varlen" else "BSND"


def _packed(t: AttentionTensors, problem: AttentionProblem) -> dict[str, Any]:
    if problem.layout != "varlen":
        return {}
    return {
        "actual_seq_qlen": host_lengths(t.cu_seqlens_q),
        "actual_seq_kvlen": host_lengths(t.cu_seqlens_k),
    }


def _mask(problem: AttentionProblem, device: torch.device) -> dict[str, Any]:
    left, right = problem.window
    if left < 0 and right < 0:
        return {"sparse_mode": _NO_MASK}
    mask = tiling_mask(VENDOR_SIDE, torch.bool, device)
    if left < 0 and right == 0:
        return {"sparse_mode": _CAUSAL, "atten_mask": mask}
    return {
        "sparse_mode": _BAND,
        "atten_mask": mask,
        "pre_tockens": left if left >= 0 else _UNBOUNDED,
        "next_tockens": right if right >= 0 else _UNBOUNDED,
    }
