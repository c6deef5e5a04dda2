"""PyTorch's own fused kernels, each used only for what it is known to compute exactly."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from portattn.backends.common import definition
from portattn.backends.torch_sdpa.cpu import CpuFlash
from portattn.backends.torch_sdpa.cuda import CudaCudnn, CudaEfficient, CudaFlash
from portattn.backends.torch_sdpa.kernel import Kernel
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

# In the order they are tried on a device that has several.
KERNELS: tuple[Kernel, ...] = (CpuFlash(), CudaCudnn(), CudaFlash(), CudaEfficient())


class TorchSdpaBackend:
    """The fused kernels behind torch's scaled_dot_product_attention, never its unfused one."""

    name = "torch_sdpa"
    capability = Capability(
        devices=frozenset({"cpu", "cuda"}),
        dtypes=frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}),
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
            "decode": frozenset({"cache"}),
        },
        features=frozenset(
            {
                "causal",
                "window",
                "mask",
                "bias",
                "sinks",
                "gqa",
                "deterministic",
                "strided",
                "paged",
                "leftpad",
            }
        ),
        max_head_dim=65536,
        promises=frozenset({"repeatable"}),
        # Elsewhere, looking for NaN in the result would make the host wait for the device.
        more_promises={"cpu": frozenset({"poison"})},
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if reasons:
            return reasons
        for kernel in KERNELS:
            if kernel.device_type == device.type:
                found = kernel.reasons_against(problem, device)
                if not found:
                    return []
                reasons += [f"{kernel.name}: {reason}" for reason in found]
        return reasons

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return _kernel(problem, device).name

    def probe(self, device: Device) -> None:
        """The kernels are private: each must agree with the definition on a small problem."""
        for kernel in KERNELS:
            if kernel.device_type == device.type:
                _probe_kernel(kernel, device)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        if not (problem.rows and problem.keys):
            # The CPU kernel divides by the number of keys: it must never see none.
            return definition.forward(tensors, problem)
        out, lse = self._kernel_for(tensors, problem).forward(tensors, problem)
        if tensors.sinks is not None:
            sinks = tensors.sinks.to(lse.dtype)
            sinks = sinks[:, None]
            weight = torch.sigmoid(lse - sinks).transpose(-1, -2)[..., None]
            out = (out * weight).to(out.dtype)
            lse = torch.logaddexp(lse, sinks)
        if tensors.q.device.type == "cpu" and not _finite(out):
            # 0 * NaN of a masked-out key inside the kernel: only the definition keeps it out.
            return definition.forward(tensors, problem)
        return out, lse

    decode = forward

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
        kernel = self._kernel_for(tensors, problem)
        # With sinks, out and lse include them, and so do the probabilities exp(s - lse) that the
        # kernel recomputes: its gradients are already right.
        grads = kernel.backward(grad_out, out, lse, tensors, problem)
        if tensors.q.device.type == "cpu" and not all(_finite(grad) for grad in grads):
            return definition.backward(grad_out, grad_lse, out, lse, tensors, problem)
        dsinks = None
        if tensors.sinks is not None:
            delta = (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1).transpose(-1, -2)
            p_sink = (tensors.sinks.to(lse.dtype)[:, None] - lse).exp()
            total = -(p_sink * delta).sum(-1)
            dsinks = (total.sum(0) if total.dim() == 2 else total).to(tensors.sinks.dtype)
        return Gradients(*grads, dsinks=dsinks)

    def _kernel_for(self, tensors: AttentionTensors, problem: AttentionProblem) -> Kernel:
        from portattn.dispatch import device

        return _kernel(problem, device.of(tensors.q.device))


@lru_cache(maxsize=4096)
def _kernel(problem: AttentionProblem, device: Device) -> Kernel:
    """The first kernel that can run a problem that `reasons_against` found none against."""
    return next(
        kernel
        for kernel in KERNELS
        if kernel.device_type == device.type and not kernel.reasons_against(problem, device)
    )


def _finite(tensor: Tensor) -> bool:
    """Whether all entries are finite, in one pass: NaN and inf survive a sum."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return bool(tensor.sum(dtype=wide).isfinite())


def _probe_kernel(kernel: Kernel, device: Device) -> None:
    """Value, lse, causal alignment and GQA of one kernel on the device."""
    problem = AttentionProblem(
        "forward", "dense", torch.float16, 1, 8, 8, 2, 1, 16, 16, 0.25, causal=True, window=(-1, 0)
    )
    if kernel.reasons_against(problem, device):
        problem = AttentionProblem(
            "forward",
            "dense",
            torch.float16,
            1,
            8,
            8,
            2,
            2,
            16,
            16,
            0.25,
            causal=True,
            window=(-1, 0),
        )
        if kernel.reasons_against(problem, device):
            return
    where = torch.device("cpu" if device.type == "cpu" else f"{device.type}:{device.index}")
    shape = (1, 8, problem.heads, 16)
    q = torch.linspace(-1, 1, 8 * problem.heads * 16, device=where).half().view(shape)
    k = q[:, :, : problem.kv_heads].cos()
    tensors = AttentionTensors(q, k, k)
    out, lse = kernel.forward(tensors, problem)
    right, right_lse = definition.forward(tensors, problem)
    worst = max(float((out - right).abs().max()), float((lse - right_lse).abs().max()))
    if not worst < 5e-3:
        raise ArithmeticError(f"{kernel.name} is off by {worst:.2g} on a small problem")
