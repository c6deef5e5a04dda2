"""The cuDNN, flash and memory-efficient kernels for NVIDIA GPUs, with their aten conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.common.packed import cleared, cleared_lse
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

_FLASH_FAMILIES = frozenset(
    {"sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a"}
)
_EFFICIENT_FAMILIES = _FLASH_FAMILIES | {"sm_70", "sm_72", "sm_75"}
# Where it was measured to be faster than flash; elsewhere flash is.
_CUDNN_FAMILIES = frozenset({"sm_90a"})
_CUDNN_SHORTEST = 64
_HALF = (torch.float16, torch.bfloat16)

# custom_mask_type of aten::_efficient_attention_forward.
_NO_MASK, _CAUSAL_BOTTOM_RIGHT = 0, 2


class CudaCudnn:
    """aten::_scaled_dot_product_cudnn_attention: the fastest of the three where it applies.

    Takes [B, H, S, D] views, aligns causal top-left, reads grouped heads in place.
    """

    name = "cuDNN"
    device_type = "cuda"

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = []
        if device.family not in _CUDNN_FAMILIES:
            reasons.append(f"not used on {device.family}")
        if problem.dtype not in _HALF:
            reasons.append("float16 and bfloat16 only")
        if problem.layout != "dense":
            reasons.append(f"its {problem.layout} layout is not used")
        if problem.head_dim != problem.head_dim_v:
            reasons.append("head_dim and head_dim_v differ")
        if problem.head_dim % 8 or problem.head_dim > 128:
            reasons.append("head_dim must be a multiple of 8 up to 128")
        if problem.mask or problem.bias:
            reasons.append("no mask or bias")
        if "window" in problem.features:
            reasons.append("no windows")
        if problem.causal and problem.seqlen_q != problem.seqlen_k:
            reasons.append("its causal mask is aligned to the top left")
        if min(problem.seqlen_q, problem.seqlen_k) < _CUDNN_SHORTEST:
            reasons.append(f"shorter than {_CUDNN_SHORTEST} it is not used")
        if problem.softmax_scale <= 0:
            reasons.append("its maxima assume a positive softmax_scale")
        if problem.operation == "backward" and problem.deterministic:
            reasons.append("its backward is not deterministic")
        return reasons

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (t.transpose(1, 2) for t in _unit_strides(tensors))
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, problem.causal, False, scale=problem.softmax_scale
        )
        return out.transpose(1, 2), lse.view(q.shape[:3])

    def backward(
        self,
        grad_out: Tensor,
        out: Tensor,
        lse: Tensor,
        tensors: AttentionTensors,
        problem: AttentionProblem,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (t.transpose(1, 2) for t in _unit_strides(tensors))
        none = torch.empty((), dtype=torch.int64, device=q.device)
        grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            _last_unit(grad_out).transpose(1, 2),
            q,
            k,
            v,
            out.transpose(1, 2),
            lse.unsqueeze(-1),
            none,
            none,
            None,
            None,
            None,
            problem.seqlen_q,
            problem.seqlen_k,
            0.0,
            problem.causal,
            scale=problem.softmax_scale,
        )
        dq, dk, dv = (grad.transpose(1, 2) for grad in grads)
        return dq, dk, dv


class CudaFlash:
    """aten::_flash_attention_forward: FlashAttention-2 as PyTorch builds it.

    Takes [B, S, H, D] and packed [T, H, D], aligns causal and windows bottom-right, reads grouped
    heads in place, and writes +inf as the lse of rows that see nothing.
    """

    name = "flash for CUDA"
    device_type = "cuda"

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = []
        if device.family not in _FLASH_FAMILIES:
            reasons.append(f"not built for {device.family}")
        if problem.dtype not in _HALF:
            reasons.append("float16 and bfloat16 only")
        if problem.head_dim != problem.head_dim_v:
            reasons.append("head_dim and head_dim_v differ")
        if problem.head_dim % 8 or problem.head_dim > 256:
            reasons.append("head_dim must be a multiple of 8 up to 256")
        if problem.mask or problem.bias:
            reasons.append("no mask or bias")
        if problem.page_size or problem.layout == "cache":
            reasons.append("no paged or cached keys")
        if problem.softmax_scale <= 0:
            reasons.append("its maxima assume a positive softmax_scale")
        left, right = problem.window
        more_keys = problem.layout == "dense" and problem.seqlen_q <= problem.seqlen_k
        if left >= 0 and right < 0 and not more_keys:
            # It takes an unbounded right side for seqlen_k keys, which ends before the last key
            # for the first of many queries.
            reasons.append("a window without a right side needs as many keys as queries")
        if problem.operation == "backward" and problem.deterministic:
            reasons.append("its backward is not deterministic")
        return reasons

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem
    ) -> tuple[Tensor, Tensor]:
        q, k, v = _unit_strides(tensors)
        left, right = _window(problem)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            tensors.cu_seqlens_q,
            tensors.cu_seqlens_k,
            problem.seqlen_q,
            problem.seqlen_k,
            0.0,
            problem.causal,
            False,
            scale=problem.softmax_scale,
            window_size_left=left,
            window_size_right=right,
        )
        lse = lse.masked_fill(lse == float("inf"), float("-inf"))
        if tensors.cu_seqlens_q is not None:
            return cleared(out, tensors.cu_seqlens_q), cleared_lse(lse, tensors.cu_seqlens_q)
        return out, lse

    def backward(
        self,
        grad_out: Tensor,
        out: Tensor,
        lse: Tensor,
        tensors: AttentionTensors,
        problem: AttentionProblem,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _unit_strides(tensors)
        left, right = _window(problem)
        unused = torch.empty(2, dtype=torch.uint64, device=q.device)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            _last_unit(grad_out),
            q,
            k,
            v,
            out,
            lse.masked_fill(lse == float("-inf"), float("inf")),
            tensors.cu_seqlens_q,
            tensors.cu_seqlens_k,
            problem.seqlen_q,
            problem.seqlen_k,
            0.0,
            problem.causal,
            unused,
            unused,
            scale=problem.softmax_scale,
            window_size_left=left,
            window_size_right=right,
        )
        if tensors.cu_seqlens_q is not None and tensors.cu_seqlens_k is not None:
            dq = cleared(dq, tensors.cu_seqlens_q)
            dk, dv = (cleared(grad, tensors.cu_seqlens_k) for grad in (dk, dv))
        return dq, dk, dv


class CudaEfficient:
    """aten::_efficient_attention_forward: the memory-efficient kernel, also on Volta and Turing."""

    name = "memory-efficient for CUDA"
    device_type = "cuda"

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = []
        if device.vendor != "nvidia" or device.family not in _EFFICIENT_FAMILIES:
            reasons.append(f"not built for {device.family}")
        if problem.dtype == torch.float64:
            reasons.append("no float64")
        if problem.dtype == torch.bfloat16 and device.family in ("sm_70", "sm_72", "sm_75"):
            reasons.append(f"no bfloat16 on {device.family}")
        if problem.heads != problem.kv_heads:
            reasons.append("grouped heads would have to be repeated in memory")
        if problem.layout != "dense":
            reasons.append(f"its {problem.layout} layout is not used")
        if problem.head_dim % 8 or problem.head_dim_v % 8 or problem.head_dim > 512:
            reasons.append("head dims must be multiples of 8 up to 512")
        if problem.mask or problem.bias:
            reasons.append("no mask or bias without a copy of full size")
        if "window" in problem.features:
            reasons.append("windows are not used")
        if problem.softmax_scale <= 0:
            reasons.append("its maxima assume a positive softmax_scale")
        if problem.causal and problem.seqlen_q > problem.seqlen_k:
            reasons.append("rows that see no key are undefined")
        if problem.operation == "backward" and problem.deterministic:
            reasons.append("its backward is not deterministic")
        return reasons

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem
    ) -> tuple[Tensor, Tensor]:
        q, k, v = _unit_strides(tensors)
        out, lse, *_ = torch.ops.aten._efficient_attention_forward(
            q,
            k,
            v,
            None,
            None,
            None,
            None,
            None,
            0.0,
            _CAUSAL_BOTTOM_RIGHT if problem.causal else _NO_MASK,
            True,
            scale=problem.softmax_scale,
        )
        # The kernel pads the rows of lse to its tile.
        return out, lse[..., : problem.seqlen_q].contiguous()

    def backward(
        self,
        grad_out: Tensor,
        out: Tensor,
        lse: Tensor,
        tensors: AttentionTensors,
        problem: AttentionProblem,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _unit_strides(tensors)
        padded = torch.nn.functional.pad(lse, (0, -problem.seqlen_q % 32), value=float("inf"))
        none = torch.empty((), dtype=torch.int64, device=q.device)
        dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
            _last_unit(grad_out),
            q,
            k,
            v,
            None,
            out,
            None,
            None,
            problem.seqlen_q,
            problem.seqlen_k,
            padded,
            0.0,
            none,
            none,
            _CAUSAL_BOTTOM_RIGHT if problem.causal else _NO_MASK,
            False,
            scale=problem.softmax_scale,
        )
        return dq, dk, dv


def _window(problem: AttentionProblem) -> tuple[int | None, int | None]:
    """The window as aten takes it: None is unbounded, and causal ends it at the diagonal."""
    left, right = problem.window
    return (left if left >= 0 else None), (right if right >= 0 else None)


def _unit_strides(tensors: AttentionTensors) -> tuple[Tensor, Tensor, Tensor]:
    return _last_unit(tensors.q), _last_unit(tensors.k), _last_unit(tensors.v)


def _last_unit(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
