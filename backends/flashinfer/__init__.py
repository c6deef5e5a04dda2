"""FlashInfer's batch decode: one new query a sequence over contiguous or paged caches.

Its conventions (0.7): the cache is a list of pages for each sequence, a contiguous one is pages in
order; the lse is in base 2, [B, H]. Each call is planned on the host, which reads the lengths
there: it waits for the device, and can't be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from portattn.backends.common import definition
from portattn.backends.common.library import load, missing
from portattn.backends.common.trial import try_out
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import BackendUnavailableError

_MODULE = "flashinfer"
_PACKAGE = "flashinfer-python"
_WORKSPACE_BYTES = 128 * 2**20
_HEAD_DIMS = (64, 128, 256)
_LARGEST_PAGE = 64  # of a contiguous cache seen as pages


class FlashInferBackend:
    """The flashinfer package's BatchDecodeWithPagedKVCacheWrapper, on its tensor-core path."""

    name = "flashinfer"
    capability = Capability(
        devices=frozenset({"cuda"}),
        families=frozenset(
            {"sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a"}
        ),
        dtypes=frozenset({torch.bfloat16, torch.float16}),
        operations={"decode": frozenset({"cache"})},
        features=frozenset({"causal", "window", "softcap", "gqa", "paged"}),
        max_head_dim=max(_HEAD_DIMS),
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if problem.softmax_scale <= 0:
            reasons.append("its maxima assume a positive softmax_scale")
        if problem.head_dim not in _HEAD_DIMS:
            reasons.append(f"head_dim {problem.head_dim} is not one of 64, 128, 256")
        if problem.operation == "decode" and problem.seqlen_q != 1:
            reasons.append("one query a sequence only")
        if device.type == "cuda":
            cause = missing(_PACKAGE)
            reasons += [] if cause is None else [cause]
        return reasons

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        return "BatchDecodeWithPagedKVCacheWrapper, planned in each call"

    def probe(self, device: Device) -> None:
        """Compare a small problem with the definition; the first run compiles its kernels."""
        try_out(self, device)

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        if not (problem.rows and problem.keys):
            return definition.forward(tensors, problem)
        q = tensors.q[:, 0]  # [B, H, D]
        k, v, table = _pages(tensors)
        assert tensors.seqused_k is not None  # the layout is cache
        workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
        wrapper = _library().BatchDecodeWithPagedKVCacheWrapper(
            workspace, "NHD", use_tensor_cores=True
        )
        wrapper.plan(
            *_page_lists(table, tensors.seqused_k, k.shape[1]),
            problem.heads,
            problem.kv_heads,
            problem.head_dim,
            k.shape[1],
            window_left=problem.window[0],
            logits_soft_cap=problem.softcap or None,
            q_data_type=q.dtype,
            kv_data_type=k.dtype,
            sm_scale=problem.softmax_scale,
        )
        out, lse = wrapper.run(q, (k, v), return_lse=True)
        return out[:, None], lse[..., None] * math.log(2)

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        raise BackendUnavailableError(self.name, "it has no forward")

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
        raise BackendUnavailableError(self.name, "it has no backward")


def _pages(tensors: AttentionTensors) -> tuple[Tensor, Tensor, Tensor]:
    """k and v as pages [P, page, Hkv, D], and the table [B, pages] of each sequence's."""
    if tensors.block_table is not None:
        return tensors.k, tensors.v, tensors.block_table
    rows, capacity = tensors.k.shape[:2]
    size = math.gcd(capacity, _LARGEST_PAGE)
    count = capacity // size
    # Views, unless the cache's strides don't allow them: then it is copied.
    k, v = (cache.reshape(rows * count, size, *cache.shape[2:]) for cache in (tensors.k, tensors.v))
    table = torch.arange(rows * count, dtype=torch.int32, device=k.device).view(rows, count)
    if tensors.cache_batch_idx is not None:
        table = table[tensors.cache_batch_idx.long()]
    return k, v, table[: tensors.q.shape[0]]


def _page_lists(table: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each sequence's pages begin [B + 1], all pages in order, tokens in each last page."""
    counts = lengths.cpu()
    used = (counts + size - 1) // size
    ends = torch.zeros(len(used) + 1, dtype=torch.int32)
    ends[1:] = used.cumsum(0)
    columns = torch.arange(table.shape[1])
    places = (columns < used[:, None]).flatten().nonzero().flatten()
    indices = table.flatten()[places.to(table.device)]
    return ends, indices, (counts - 1) % size + 1


def _library() -> Any:
    return load("flashinfer", _MODULE, _PACKAGE)
