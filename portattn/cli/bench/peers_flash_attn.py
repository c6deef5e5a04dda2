"""The flash-attn package (FlashAttention-2) and flash-attn-4 (its CuTe DSL kernels)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from portattn.cli.bench.check import Attend
from portattn.cli.bench.grid import Case
from portattn.cli.bench.libraries import Library, only
from portattn.cli.bench.pages import Pages, cumulative
from portattn.cli.bench.peers import Step, full_lengths

_AMPERE_ON = frozenset({"sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_120a"})
_PAGE_OF_FA2 = 256


class _FlashAttention(Library):
    """Dense and packed calls, which both packages name alike."""

    kinds = frozenset(
        {"forward", "backward", "packed forward", "packed backward", "decode", "paged"}
    )
    entry: str

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """flash_attn_func."""
        return only(self._library().flash_attn_func(q, k, v, causal=causal))

    def packed(self, case: Case, device: torch.device) -> Attend:
        """flash_attn_varlen_func."""
        ends, longest = cumulative(case.lengths, device), max(case.lengths)
        call: Callable[..., Any] = self._library().flash_attn_varlen_func

        def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
            out = call(
                q[0],
                k[0],
                v[0],
                cu_seqlens_q=ends,
                cu_seqlens_k=ends,
                max_seqlen_q=longest,
                max_seqlen_k=longest,
                causal=causal,
            )
            return only(out)[None]

        return attend

    def _library(self) -> Any:
        return importlib.import_module(self.entry)


class FlashAttention(_FlashAttention):
    """The flash-attn package."""

    name = "flash_attn"
    # flash-attn-4 shares the namespace: only this module tells the packages apart.
    module = "flash_attn.flash_attn_interface"
    entry = "flash_attn"
    families = _AMPERE_ON

    def reason_against(self, case: Case, device: torch.device) -> str | None:
        """Ampere or newer, half precision; its pages hold multiples of 256 tokens."""
        reason = super().reason_against(case, device)
        if reason is None and case.page_size % _PAGE_OF_FA2:
            reason = f"pages must be multiples of {_PAGE_OF_FA2}"
        return reason

    def decoder(self, k: Tensor, v: Tensor, causal: bool) -> Step:
        """flash_attn_with_kvcache."""
        call, lengths = self._library().flash_attn_with_kvcache, full_lengths(k)
        return lambda q: only(call(q, k, v, cache_seqlens=lengths, causal=causal))

    def pager(self, pages: Pages, case: Case) -> Step:
        """flash_attn_with_kvcache with a block table."""
        call, causal = self._library().flash_attn_with_kvcache, case.masked
        return lambda q: only(
            call(
                q,
                pages.k,
                pages.v,
                cache_seqlens=pages.lengths,
                block_table=pages.table,
                causal=causal,
            )
        )


class FlashAttention4(_FlashAttention):
    """The flash-attn-4 package, on Hopper and Blackwell."""

    name = "flash_attn_4"
    module = "flash_attn.cute"
    entry = "flash_attn.cute"
    families = frozenset({"sm_90a", "sm_100a", "sm_103a", "sm_120a"})

    def decoder(self, k: Tensor, v: Tensor, causal: bool) -> Step:
        """flash_attn_func of the new queries: it has no call for caches."""
        call = self._library().flash_attn_func
        return lambda q: only(call(q, k, v, causal=causal))

    def pager(self, pages: Pages, case: Case) -> Step:
        """flash_attn_varlen_func with a page table."""
        call, causal = self._library().flash_attn_varlen_func, case.masked
        longest = max(pages.counts)
        return lambda q: only(
            call(
                q,
                pages.k,
                pages.v,
                seqused_k=pages.lengths,
                page_table=pages.table,
                max_seqlen_q=case.queries,
                max_seqlen_k=longest,
                causal=causal,
            )
        )
