"""A stand-in for torch.ops.npu: the fused operators' documented conventions, by the definition.

Rows without a visible key hold rubbish, as the operators' documentation promises nothing for them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from portattn.backends.common import definition
from portattn.dispatch.backend import AttentionTensors
from tests.backends.stand_ins import Recorder, _problem

UNBOUNDED = 2**31 - 1


def _window(keywords: dict[str, Any]) -> tuple[int, int]:
    """What sparse_mode means; its mask must be the one compressed triangle."""
    mode, mask = keywords.get("sparse_mode", 0), keywords.get("atten_mask")
    if mode == 0:
        assert mask is None
        return -1, -1
    triangle = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    assert mask is not None and torch.equal(mask, triangle)
    if mode == 3:
        return -1, 0
    assert mode == 4
    before = keywords.get("pre_tockens", keywords.get("pre_tokens"))
    after = keywords.get("next_tockens", keywords.get("next_tokens"))
    return tuple(-1 if side == UNBOUNDED else side for side in (before, after))  # type: ignore


def _packed(keywords: dict[str, Any]) -> dict[str, Tensor]:
    """Cumulative lengths come without the leading 0."""
    names = {"actual_seq_qlen": "cu_seqlens_q", "actual_seq_kvlen": "cu_seqlens_k"}
    given = {mine: keywords[name] for name, mine in names.items() if name in keywords}
    return {name: torch.tensor([0, *ends], dtype=torch.int32) for name, ends in given.items()}


def _spoil(out: Tensor, lse: Tensor) -> None:
    blind = lse == -math.inf
    out.masked_fill_(blind.transpose(-1, -2)[..., None], 7.0)
    lse.masked_fill_(blind, 3.0)


class FusedOperators(Recorder):
    def npu_fusion_attention(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, layout: str, **keywords: Any
    ) -> tuple[Any, ...]:
        t = AttentionTensors(q, k, v, **_packed(keywords))
        assert heads == q.shape[-2] and layout == ("TND" if q.dim() == 3 else "BSND")
        problem = _problem(t, softmax_scale=keywords["scale"], window=_window(keywords))
        out, lse = definition.forward(t, problem)
        _spoil(out, lse)
        rows = lse.transpose(0, 1) if layout == "TND" else lse
        sums = torch.full((*rows.shape, 8), 2.0)
        return out, rows[..., None] - sums.log(), sums, None, 0, 0, 0

    def npu_fusion_attention_grad(
        self, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, heads: int, layout: str, **keywords: Any
    ) -> tuple[Any, ...]:
        t = AttentionTensors(q, k, v, **_packed(keywords))
        problem = _problem(t, softmax_scale=keywords["scale_value"], window=_window(keywords))
        rows = keywords["softmax_max"][..., 0] + keywords["softmax_sum"][..., 0].log()
        lse = rows.transpose(0, 1) if layout == "TND" else rows
        assert bool(lse.isfinite().all())
        return (*definition.backward(dy, None, keywords["attention_in"], lse, t, problem)[:3], None)

    def npu_fused_infer_attention_score(
        self, q: Tensor, k: Tensor, v: Tensor, **keywords: Any
    ) -> tuple[Tensor, Tensor]:
        table = keywords.get("block_table")
        if table is not None:
            assert k.shape[1] == keywords["block_size"]
            heads = keywords["num_key_value_heads"]
            k, v = k.unflatten(2, (heads, -1)), v.unflatten(2, (heads, -1))
        used = torch.tensor(keywords["actual_seq_lengths_kv"], dtype=torch.int32)
        t = AttentionTensors(q, k, v, seqused_k=used, block_table=table)
        problem = _problem(t, softmax_scale=keywords["scale"], window=_window(keywords))
        out, lse = definition.forward(t, problem)
        _spoil(out, lse)
        return out, lse[..., None]


class FusedOperatorsV2(FusedOperators):
    """v2 renames four arguments of the inference operator."""

    def npu_fused_infer_attention_score_v2(
        self, q: Tensor, k: Tensor, v: Tensor, **keywords: Any
    ) -> tuple[Tensor, Tensor]:
        names = {
            "num_query_heads": "num_heads",
            "softmax_scale": "scale",
            "actual_seq_kvlen": "actual_seq_lengths_kv",
            "return_softmax_lse": "softmax_lse_flag",
        }
        assert not set(names.values()) & set(keywords)
        renamed = {names.get(name, name): value for name, value in keywords.items()}
        return FusedOperators().npu_fused_infer_attention_score(q, k, v, **renamed)
