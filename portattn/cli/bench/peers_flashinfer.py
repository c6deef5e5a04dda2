"""FlashInfer: attention for serving, over pages."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from portattn.cli.bench.check import Attend
from portattn.cli.bench.grid import Case
from portattn.cli.bench.libraries import Library
from portattn.cli.bench.pages import Pages
from portattn.cli.bench.peers import Step

_WORKSPACE_BYTES = 256 * 2**20
# A contiguous cache is pages in order; the size its kernels are fastest with divides most lengths.
_CONTIGUOUS_PAGE = 64


class FlashInfer(Library):
    """flashinfer's batch wrappers, planned once per case as serving plans once per step."""

    name = "flashinfer"
    module = "flashinfer"
    kinds = frozenset({"packed forward", "decode", "paged"})
    families = frozenset(
        {"sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a"}
    )

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """A contiguous cache is given to it as pages, which must divide it."""
        reason = super().reason_against(case, device)
        contiguous = case.operation == "decode" and not case.page_size
        if reason is None and contiguous and case.seqlen % _CONTIGUOUS_PAGE:
            reason = f"a contiguous cache must be a multiple of {_CONTIGUOUS_PAGE} long"
        return reason

    def packed(self, case: Case, device: torch.device) -> Attend:
        """BatchPrefillWithRaggedKVCacheWrapper."""
        wrapper = _library().BatchPrefillWithRaggedKVCacheWrapper(_workspace(device), "NHD")
        ends = _ends(case.lengths)
        dtype = getattr(torch, case.dtype)
        wrapper.plan(
            ends,
            ends,
            case.heads,
            case.kv_heads,
            case.head_dim,
            causal=case.masked,
            q_data_type=dtype,
            kv_data_type=dtype,
        )

        def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
            out: Tensor = wrapper.run(q[0], k[0], v[0])
            return out[None]

        return attend

    def decoder(self, k: Tensor, v: Tensor, causal: bool) -> Step:
        """The paged wrapper over the cache seen as pages in order."""
        batch, seqlen = k.shape[:2]
        count = seqlen // _CONTIGUOUS_PAGE
        table = torch.arange(batch * count, dtype=torch.int32, device=k.device).view(batch, count)
        lengths = torch.full((batch,), seqlen, dtype=torch.int32, device=k.device)
        k_pages, v_pages = (
            cache.reshape(batch * count, _CONTIGUOUS_PAGE, *cache.shape[2:]) for cache in (k, v)
        )
        pages = Pages(k_pages, v_pages, table, lengths, (seqlen,) * batch)
        return _Planned(pages, causal)

    def pager(self, pages: Pages, case: Case) -> Step:
        """The paged wrapper."""
        return _Planned(pages, case.masked)


class _Planned:
    """A step planned for the first q it sees: decode for one query a sequence, else prefill."""

    def __init__(self, pages: Pages, causal: bool) -> None:
        self._pages = pages
        self._causal = causal
        self._wrapper: Any = None

    def __call__(self, q: Tensor) -> Tensor:
        if self._wrapper is None:
            self._wrapper = self._decode(q) if q.shape[1] == 1 else self._prefill(q)
        out: Tensor = self._wrapper.run(q.flatten(0, 1), (self._pages.k, self._pages.v))
        return out.view(q.shape)

    def _decode(self, q: Tensor) -> Any:
        wrapper = _library().BatchDecodeWithPagedKVCacheWrapper(
            _workspace(q.device), "NHD", use_tensor_cores=True
        )
        wrapper.plan(*self._layout(), *self._sizes(q), q_data_type=q.dtype, kv_data_type=q.dtype)
        return wrapper

    def _prefill(self, q: Tensor) -> Any:
        wrapper = _library().BatchPrefillWithPagedKVCacheWrapper(_workspace(q.device), "NHD")
        wrapper.plan(
            _ends([q.shape[1]] * q.shape[0]),
            *self._layout(),
            *self._sizes(q),
            causal=self._causal,
            q_data_type=q.dtype,
            kv_data_type=q.dtype,
        )
        return wrapper

    def _sizes(self, q: Tensor) -> tuple[int, int, int, int]:
        return q.shape[2], self._pages.k.shape[2], q.shape[3], self._pages.page_size

    def _layout(self) -> tuple[Tensor, Tensor, Tensor]:
        """First page of each sequence, all pages in order, tokens in each last page."""
        pages = self._pages
        device = pages.k.device
        used = pages.used
        indices = torch.cat([row[:count] for row, count in zip(pages.table, used, strict=True)])
        last = [(count - 1) % pages.page_size + 1 for count in pages.counts]
        return (
            _ends(used).to(device),
            indices,
            torch.tensor(last, dtype=torch.int32, device=device),
        )


def _ends(counts: Sequence[int]) -> Tensor:
    """[0, n0, n0 + n1, ...] int32 on the host: planning reads it there."""
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)


def _workspace(device: torch.device) -> Tensor:
    return torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _library() -> Any:
    return importlib.import_module("flashinfer")
