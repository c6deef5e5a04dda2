"""What is measured: portattn and the libraries it is compared with, one small adapter each."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

from portattn.attention import attention, attention_with_kvcache
from portattn.cache import ContiguousKVCache
from portattn.cli.bench.grid import Case, PeerLayout
from portattn.dispatch import device as devices

Step = Callable[[Tensor], Tensor]


class Peer(Protocol):
    """One library's attention."""

    name: str
    layout: PeerLayout

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """Why the library can't run here, or None."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Attention over tensors in `layout`; the result has that layout too."""
        ...

    def decoder(self, k: Tensor, v: Tensor) -> Step:
        """What attends with q to a cache that holds k and v, prepared once for many steps."""
        ...


class Portattn:
    """What this library chooses by itself, or one backend of it."""

    layout: PeerLayout = "bshd"

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend
        self.name = "portattn" if backend is None else f"portattn:{backend}"

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """Always tried: a refusal is a result too."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """portattn.attention."""
        out = attention(q, k, v, causal=causal, backend=self.backend)
        assert isinstance(out, Tensor)  # no lse was asked for
        return out

    def decoder(self, k: Tensor, v: Tensor) -> Step:
        """portattn.attention_with_kvcache over a contiguous cache."""
        cache = ContiguousKVCache.from_tensors(k, v, _lengths(k))

        def step(q: Tensor) -> Tensor:
            out = attention_with_kvcache(q, cache, backend=self.backend)
            assert isinstance(out, Tensor)  # no lse was asked for
            return out

        return step


class TorchSdpa:
    """torch.nn.functional.scaled_dot_product_attention, free to choose its kernel."""

    name = "torch_sdpa"
    layout: PeerLayout = "bhsd"

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """It runs everywhere."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """scaled_dot_product_attention."""
        grouped = q.shape[1] != k.shape[1]
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=grouped
        )

    def decoder(self, k: Tensor, v: Tensor) -> Step:
        """scaled_dot_product_attention: it knows no caches."""
        return lambda q: self.attend(q, k, v, False)


class FlashAttention:
    """The flash-attn package."""

    name = "flash_attn"
    layout: PeerLayout = "bshd"

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """It needs a GPU of Ampere or newer and half precision."""
        return _library_reason("flash_attn", device) or _half_reason(case)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """flash_attn_func."""
        library: Any = importlib.import_module("flash_attn")
        result: Tensor = library.flash_attn_func(q, k, v, causal=causal)
        return result

    def decoder(self, k: Tensor, v: Tensor) -> Step:
        """flash_attn_with_kvcache."""
        library: Any = importlib.import_module("flash_attn")
        lengths = _lengths(k)

        def step(q: Tensor) -> Tensor:
            result: Tensor = library.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
            return result

        return step


class Xformers:
    """xformers.ops.memory_efficient_attention."""

    name = "xformers"
    layout: PeerLayout = "bshd"

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """It needs a GPU; grouped heads would have to be expanded first."""
        reason = _library_reason("xformers", device)
        if reason is None and case.heads != case.kv_heads:
            reason = "takes grouped heads only as an expanded copy"
        return reason

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """memory_efficient_attention."""
        ops: Any = importlib.import_module("xformers.ops")
        bias = ops.LowerTriangularMask() if causal else None
        result: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=bias)
        return result

    def decoder(self, k: Tensor, v: Tensor) -> Step:
        """memory_efficient_attention of one query."""
        return lambda q: self.attend(q, k, v, False)


PEERS: tuple[Peer, ...] = (TorchSdpa(), FlashAttention(), Xformers())


def _lengths(k: Tensor) -> Tensor:
    """A cache that is full to its last token: [B] int32."""
    return torch.full((k.shape[0],), k.shape[1], dtype=torch.int32, device=k.device)


def _library_reason(module: str, device: torch.device) -> str | None:
    if importlib.util.find_spec(module) is None:
        return "is not installed"
    if device.type != "cuda":
        return f"doesn't run on {device.type}"
    if devices.of(device).family in {"sm_70", "sm_75"} and module == "flash_attn":
        return "needs an Ampere GPU or newer"
    return None


def _half_reason(case: Case) -> str | None:
    return None if case.dtype in {"float16", "bfloat16"} else f"has no {case.dtype}"
