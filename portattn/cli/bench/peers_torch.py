"""PyTorch's scaled_dot_product_attention, free to choose or held to one kernel; and xformers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from portattn.cli.bench.check import Attend
from portattn.cli.bench.grid import Case, PeerLayout
from portattn.cli.bench.libraries import Library, kind
from portattn.cli.bench.pages import cumulative
from portattn.cli.bench.peers import Step

_DENSE = frozenset({"forward", "backward", "decode"})


class TorchSdpa(Library):
    """torch.nn.functional.scaled_dot_product_attention, free to choose its kernel."""

    name = "torch_sdpa"
    layout: PeerLayout = "bhsd"
    module = "torch"
    kinds = _DENSE

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """It runs everywhere, and knows neither pages nor packed sequences."""
        if kind(case) not in self.kinds:
            return f"has no call for {kind(case)}"
        if case.masked and case.operation == "decode":
            return "aligns causal to the top left"
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """scaled_dot_product_attention."""
        grouped = q.shape[1] != k.shape[1]
        with self._held():
            return functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, enable_gqa=grouped
            )

    def decoder(self, k: Tensor, v: Tensor, causal: bool) -> Step:
        """scaled_dot_product_attention: it knows no caches."""
        return lambda q: self.attend(q, k, v, False)

    def _held(self) -> AbstractContextManager[Any]:
        return nullcontext()


class HeldSdpa(TorchSdpa):
    """scaled_dot_product_attention with one kernel allowed: another never steps in for it."""

    def __init__(self, name: str, kernel: SDPBackend) -> None:
        self.name = name
        self._kernel = kernel

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """Kernels for NVIDIA GPUs; the memory-efficient one would have to repeat grouped heads."""
        if device.type != "cuda":
            return f"doesn't run on {device.type}"
        if self._kernel == SDPBackend.EFFICIENT_ATTENTION and case.heads != case.kv_heads:
            return "takes grouped heads only as an expanded copy"
        return super().reason_against(case, device)

    def _held(self) -> AbstractContextManager[Any]:
        held: AbstractContextManager[Any] = sdpa_kernel(self._kernel)
        return held


class TorchVarlen(Library):
    """torch.nn.attention.varlen.varlen_attn: FlashAttention-2 over packed sequences."""

    name = "torch_varlen"
    module = "torch.nn.attention.varlen"
    kinds = frozenset({"packed forward", "packed backward"})

    def packed(self, case: Case, device: torch.device) -> Attend:
        """varlen_attn."""
        call: Callable[..., Tensor] = importlib.import_module(self.module).varlen_attn
        known = inspect.signature(call).parameters
        ends, longest = cumulative(case.lengths, device), max(case.lengths)
        options: dict[str, object] = {}
        if case.heads != case.kv_heads and "enable_gqa" in known:
            options["enable_gqa"] = True
        if case.masked:
            # Releases differ: a flag, or a window that ends at the diagonal.
            options |= {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}

        def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
            return call(q[0], k[0], v[0], ends, ends, longest, longest, **options)[None]

        return attend


class Xformers(Library):
    """xformers.ops.memory_efficient_attention."""

    name = "xformers"
    module = "xformers"
    kinds = _DENSE

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """It needs a GPU; grouped heads would have to be expanded first."""
        reason = super().reason_against(case, device)
        if reason is None and case.heads != case.kv_heads:
            reason = "takes grouped heads only as an expanded copy"
        if reason is None and case.masked and case.operation == "decode":
            reason = "aligns causal to the top left"
        return reason

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """memory_efficient_attention."""
        ops: Any = importlib.import_module("xformers.ops")
        bias = ops.LowerTriangularMask() if causal else None
        result: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=bias)
        return result

    def decoder(self, k: Tensor, v: Tensor, causal: bool) -> Step:
        """memory_efficient_attention of one query."""
        return lambda q: self.attend(q, k, v, False)
