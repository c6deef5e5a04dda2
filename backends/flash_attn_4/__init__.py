"""flash-attn-4: FlashAttention's CuTe DSL kernels for Hopper and datacenter Blackwell.

Its conventions (4.0.0b36): causal and windows are aligned bottom-right, a side of None is
unbounded; the lse is a natural logarithm, [B, H, Sq] or [H, T], and -inf for rows that see nothing.
Its running maxima are taken before the scale, which must be positive. A kernel is compiled when
its shape class is first called. On Hopper it doesn't split the keys: decode of few sequences
leaves most of the device idle.
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

_MODULE = "flash_attn.cute.interface"
_PACKAGE = "flash-attn-4"
_HOPPER = "sm_90a"
_BLACKWELL_RANGE = 128  # its head dims up to here, and 256


class FlashAttn4Backend:
    """The flash-attn-4 package: dense, packed and cached keys."""

    name = "flash_attn_4"
    capability = Capability(
        devices=frozenset({"cuda"}),
        families=frozenset({_HOPPER, "sm_100a", "sm_103a"}),
        dtypes=frozenset({torch.bfloat16, torch.float16}),
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
            "decode": frozenset({"cache"}),
        },
        features=frozenset({"causal", "window", "softcap", "gqa", "paged"}),
        max_head_dim=256,
        head_dim_multiple=8,
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if problem.softmax_scale <= 0:
            reasons.append("its maxima assume a positive softmax_scale")
        if device.family != _HOPPER and not (
            problem.head_dim <= _BLACKWELL_RANGE or problem.head_dim == 256
        ):
            reasons.append(f"on {device.family} head_dim is at most {_BLACKWELL_RANGE}, or 256")
        if device.family != _HOPPER and problem.head_dim == 256 and problem.softcap:
            reasons.append(f"on {device.family} no softcap at head_dim 256")
        if problem.page_size and problem.operation == "forward":
            reasons.append("pages only in decode")
        if device.type == "cuda":
            cause = missing(_PACKAGE)
            reasons += [] if cause is None else [cause]
        return reasons

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return "flash_attn_func" if problem.layout == "dense" else "flash_attn_varlen_func"

    def probe(self, device: Device) -> None:
        """Compare a small problem of each operation with the definition."""
        try_out(self, device)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        if not (problem.rows and problem.keys):
            return definition.forward(tensors, problem)
        q, k, v = tensors.q, tensors.k, tensors.v
        options = {**_options(problem), "return_lse": True}
        out: Tensor
        lse: Tensor
        if problem.layout == "dense":
            out, lse = _library().flash_attn_func(q, k, v, **options)
            return out, lse
        out, lse = _library().flash_attn_varlen_func(
            q, k, v, **_lengths(tensors, problem), **options
        )
        ends = tensors.cu_seqlens_q
        assert ends is not None  # the layout is varlen
        return cleared(out, ends), cleared_lse(lse, ends)

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        if not (problem.rows and problem.keys):
            return definition.forward(tensors, problem)
        k, v = tensors.k, tensors.v
        if tensors.cache_batch_idx is not None:
            # It has no index of rows: they are copied into the sequences' order.
            k, v = (cache.index_select(0, tensors.cache_batch_idx) for cache in (k, v))
        out: Tensor
        lse: Tensor
        out, lse = _library().flash_attn_varlen_func(
            tensors.q,
            k,
            v,
            seqused_k=tensors.seqused_k,
            page_table=tensors.block_table,
            return_lse=True,
            **_options(problem),
        )
        return out, lse

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
        options = _options(problem)
        left, right = options.pop("window_size")
        lengths = _lengths(tensors, problem) if problem.layout == "varlen" else {}
        dq, dk, dv, *_ = _library()._flash_attn_bwd(
            tensors.q,
            tensors.k,
            tensors.v,
            out,
            grad_out,
            lse,
            window_size_left=left,
            window_size_right=right,
            **options,
            **lengths,
        )
        ends_q, ends_k = tensors.cu_seqlens_q, tensors.cu_seqlens_k
        if ends_q is None or ends_k is None:
            return Gradients(dq, dk, dv)
        return Gradients(cleared(dq, ends_q), cleared(dk, ends_k), cleared(dv, ends_k))


def _options(problem: AttentionProblem) -> dict[str, Any]:
    left, right = (None if side < 0 else side for side in problem.window)
    return {
        "softmax_scale": problem.softmax_scale,
        "causal": problem.causal,
        "window_size": (left, right),
        "softcap": problem.softcap,
    }


def _lengths(tensors: AttentionTensors, problem: AttentionProblem) -> dict[str, Any]:
    return {
        "cu_seqlens_q": tensors.cu_seqlens_q,
        "cu_seqlens_k": tensors.cu_seqlens_k,
        "max_seqlen_q": problem.seqlen_q,
        "max_seqlen_k": problem.seqlen_k,
    }


def _library() -> Any:
    return load("flash_attn_4", _MODULE, _PACKAGE)
