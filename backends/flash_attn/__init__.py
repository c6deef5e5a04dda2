"""FlashAttention-2 of the flash-attn package, for what it computes exactly as it is defined here.

Its conventions (flash-attn 2.7 to 2.8): causal and windows are aligned bottom-right; the lse is a
natural logarithm, [B, H, Sq] or [H, T], and +inf for rows that see nothing, here and in its
backward's input. Its running maxima are taken before the scale, which must be positive. With alibi
under a causal mask its lse lacks a term of the row, and its dropout draws other numbers: neither
is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from portattn.backends.common import definition
from portattn.backends.common.library import load, missing
from portattn.backends.common.packed import cleared, cleared_lse
from portattn.backends.common.trial import try_out
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

_MODULE = "flash_attn.flash_attn_interface"
_PACKAGE = "flash-attn"
_OLDEST = (2, 7)  # packed lse, and the window's sides as two arguments of the backward
_PAGE_MULTIPLE = 256


class FlashAttnBackend:
    """The flash-attn package: dense, packed and cached keys on Ampere and newer."""

    name = "flash_attn"
    capability = Capability(
        devices=frozenset({"cuda"}),
        families=frozenset(
            {"sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a"}
        ),
        dtypes=frozenset({torch.bfloat16, torch.float16}),
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
            "decode": frozenset({"cache"}),
        },
        features=frozenset(
            {"causal", "window", "softcap", "gqa", "deterministic", "paged", "leftpad"}
        ),
        max_head_dim=256,
        head_dim_multiple=8,
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if problem.softmax_scale <= 0:
            reasons.append("its maxima assume a positive softmax_scale")
        if problem.page_size % _PAGE_MULTIPLE:
            reasons.append(f"pages must hold a multiple of {_PAGE_MULTIPLE} tokens")
        if problem.page_size and problem.leftpad:
            reasons.append("no leftpad with pages")
        if problem.page_size and problem.operation == "backward":
            reasons.append("no gradient of pages")
        left, right = problem.window
        more_keys = problem.layout == "dense" and problem.seqlen_q <= problem.seqlen_k
        if left >= 0 and right < 0 and problem.seqlen_q > 1 and not more_keys:
            # An unbounded right side stands for seqlen_k keys, which ends before the last key for
            # the first of many queries.
            reasons.append("a window without a right side needs as many keys as queries")
        if device.type == "cuda":
            cause = missing(_PACKAGE, _OLDEST)
            reasons += [] if cause is None else [cause]
        return reasons

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        if problem.operation == "decode":
            return "flash_attn_with_kvcache"
        return "flash_attn_varlen_func" if problem.layout == "varlen" else "flash_attn_func"

    def probe(self, device: Device) -> None:
        """Compare a small problem of each operation with the definition."""
        try_out(self, device)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        if not (problem.rows and problem.keys):
            return definition.forward(tensors, problem)
        q, k, v = tensors.q, tensors.k, tensors.v
        options = {**_options(problem), "return_attn_probs": True}
        if problem.layout == "dense":
            out, lse, _ = _library().flash_attn_func(q, k, v, **options)
            return out, _without_inf(lse)
        out, lse, _ = _library().flash_attn_varlen_func(
            q, k, v, **_lengths(tensors, problem), block_table=tensors.block_table, **options
        )
        ends = tensors.cu_seqlens_q
        assert ends is not None  # the layout is varlen
        return cleared(out, ends), cleared_lse(_without_inf(lse), ends)

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        if not (problem.rows and problem.keys):
            return definition.forward(tensors, problem)
        out, lse = _library().flash_attn_with_kvcache(
            tensors.q,
            tensors.k,
            tensors.v,
            cache_seqlens=tensors.seqused_k,
            cache_batch_idx=tensors.cache_batch_idx,
            cache_leftpad=tensors.leftpad_k,
            block_table=tensors.block_table,
            return_softmax_lse=True,
            **_options(problem),
        )
        return out, _without_inf(lse)

    def backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        tensors: AttentionTensors,
        problem: AttentionProblem,
        config: Config,
    ) -> Gradients:
        if not (problem.rows and problem.keys):
            return definition.backward(grad_out, grad_lse, out, lse, tensors, problem)
        q, k, v = tensors.q, tensors.k, tensors.v
        grads = [torch.empty_like(tensor) for tensor in (q, k, v)]
        infinite = lse.masked_fill(lse == float("-inf"), float("inf"))
        options = _options(problem)
        left, right = options.pop("window_size")
        options |= {
            "dropout_p": 0.0,
            "window_size_left": left,
            "window_size_right": right,
            "alibi_slopes": None,
            "deterministic": problem.deterministic,
        }
        if problem.layout == "dense":
            _library()._flash_attn_backward(grad_out, q, k, v, out, infinite, *grads, **options)
            return Gradients(*grads)
        _library()._flash_attn_varlen_backward(
            grad_out, q, k, v, out, infinite, *grads, **_lengths(tensors, problem), **options
        )
        ends_q, ends_k = tensors.cu_seqlens_q, tensors.cu_seqlens_k
        assert ends_q is not None and ends_k is not None  # the layout is varlen
        dq, dk, dv = grads
        return Gradients(cleared(dq, ends_q), cleared(dk, ends_k), cleared(dv, ends_k))


def _options(problem: AttentionProblem) -> dict[str, Any]:
    return {
        "softmax_scale": problem.softmax_scale,
        "causal": problem.causal,
        "window_size": problem.window,
        "softcap": problem.softcap,
    }


def _lengths(tensors: AttentionTensors, problem: AttentionProblem) -> dict[str, Any]:
    return {
        "cu_seqlens_q": tensors.cu_seqlens_q,
        "cu_seqlens_k": tensors.cu_seqlens_k,
        "max_seqlen_q": problem.seqlen_q,
        "max_seqlen_k": problem.seqlen_k,
    }


def _without_inf(lse: Tensor) -> Tensor:
    return lse.masked_fill(lse == float("inf"), float("-inf"))


def _library() -> Any:
    return load("flash_attn", _MODULE, _PACKAGE, _OLDEST)
