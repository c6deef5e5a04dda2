"""Stand-ins for libraries that need a GPU: their calls and conventions, computed by the definition.

They test what an adapter passes and how it reads what comes back; the libraries themselves are
tried by each backend's probe and by the conformance suite, where they and a GPU are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from portattn.backends.common import definition
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

INF = float("inf")


def _problem(t: AttentionTensors, **options: Any) -> AttentionProblem:
    varlen, cache = t.cu_seqlens_q is not None, t.seqused_k is not None
    longest = 0
    if varlen:
        assert t.cu_seqlens_q is not None
        longest = int(t.cu_seqlens_q.diff().max())
    batch = len(t.cu_seqlens_q) - 1 if t.cu_seqlens_q is not None else t.q.shape[0]
    pages = t.block_table is not None
    keys = t.k.shape[1] if not pages else t.block_table.shape[1] * t.k.shape[1]  # type: ignore[union-attr]
    return AttentionProblem(
        "decode" if cache else "forward",
        "varlen" if varlen else "cache" if cache else "dense",
        t.q.dtype,
        batch,
        longest if varlen else t.q.shape[1],
        t.k.shape[0] if varlen and not pages else keys,
        t.q.shape[-2],
        t.k.shape[-2],
        t.q.shape[-1],
        t.v.shape[-1],
        page_size=t.k.shape[1] if pages else 0,
        **options,
    )


def _window(left: int | None, right: int | None, causal: bool) -> tuple[int, int]:
    sides = (-1 if left is None else left), (-1 if right is None else right)
    return (sides[0], 0) if causal else sides


# What isn't the library's own.
_OWN = frozenset({"calls", "_run", "_write_gradients", "_wrapper_class"})


class Recorder:
    """A library whose calls are noted as (name, arguments, keywords)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name in _OWN or not callable(found) or isinstance(found, type):
            return found

        def noted(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append((name, arguments, keywords))
            return found(*arguments, **keywords)

        return noted


class FlashAttn2(Recorder):
    """+inf as the lse of rows that see nothing, in results and in the backward's input."""

    def flash_attn_func(
        self, q: Tensor, k: Tensor, v: Tensor, *, return_attn_probs: bool, **options: Any
    ) -> tuple[Tensor, Tensor, None]:
        return (*_forward2(AttentionTensors(q, k, v), **options), None)

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        block_table: Tensor | None,
        return_attn_probs: bool,
        **options: Any,
    ) -> tuple[Tensor, Tensor, None]:
        t = AttentionTensors(
            q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, block_table=block_table
        )
        return (*_forward2(t, **options), None)

    def flash_attn_with_kvcache(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cache_seqlens: Tensor,
        cache_batch_idx: Tensor | None,
        cache_leftpad: Tensor | None,
        block_table: Tensor | None,
        return_softmax_lse: bool,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        t = AttentionTensors(
            q,
            k,
            v,
            seqused_k=cache_seqlens,
            cache_batch_idx=cache_batch_idx,
            leftpad_k=cache_leftpad,
            block_table=block_table,
        )
        return _forward2(t, **options)

    def _flash_attn_backward(self, *arguments: Any, **options: Any) -> None:
        self._write_gradients(None, *arguments, **options)

    def _flash_attn_varlen_backward(self, *arguments: Any, **options: Any) -> None:
        ends = [options.pop(f"cu_seqlens_{side}") for side in "qk"]
        for side in "qk":
            options.pop(f"max_seqlen_{side}")
        self._write_gradients(ends, *arguments, **options)

    def _write_gradients(
        self,
        ends: list[Tensor] | None,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        *grads: Tensor,
        dropout_p: float,
        alibi_slopes: None,
        deterministic: bool,
        window_size_left: int,
        window_size_right: int,
        causal: bool,
        **options: Any,
    ) -> None:
        assert not (lse == -INF).any()
        t = AttentionTensors(q, k, v)
        if ends is not None:
            t.cu_seqlens_q, t.cu_seqlens_k = ends
        window = _window(window_size_left, window_size_right, causal)
        problem = _problem(t, causal=causal, window=window, **options)
        lse = lse.masked_fill(lse == INF, -INF)
        found = definition.backward(grad_out, None, out, lse, t, problem)
        for target, gradient in zip(grads, found[:3], strict=True):
            target.copy_(gradient)  # type: ignore[arg-type]


def _forward2(
    t: AttentionTensors, causal: bool, window_size: tuple[int, int], **options: Any
) -> tuple[Tensor, Tensor]:
    window = _window(*window_size, causal)
    out, lse = definition.forward(t, _problem(t, causal=causal, window=window, **options))
    return out, lse.masked_fill(lse == -INF, INF)


class FlashAttn4(Recorder):
    """None as an unbounded side of a window; -inf as the lse of rows that see nothing."""

    def flash_attn_func(
        self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, **options: Any
    ) -> tuple[Tensor, Tensor]:
        return self._run(AttentionTensors(q, k, v), **options)

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        max_seqlen_q: int = 0,
        max_seqlen_k: int = 0,
        seqused_k: Tensor | None = None,
        page_table: Tensor | None = None,
        return_lse: bool,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        t = AttentionTensors(
            q,
            k,
            v,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            seqused_k=seqused_k,
            block_table=page_table,
        )
        return self._run(t, **options)

    def _run(
        self,
        t: AttentionTensors,
        causal: bool,
        window_size: tuple[int | None, int | None],
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        assert -1 not in window_size
        window = _window(*window_size, causal)
        return definition.forward(t, _problem(t, causal=causal, window=window, **options))

    def _flash_attn_bwd(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        grad_out: Tensor,
        lse: Tensor,
        *,
        window_size_left: int | None,
        window_size_right: int | None,
        causal: bool,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        max_seqlen_q: int = 0,
        max_seqlen_k: int = 0,
        **options: Any,
    ) -> tuple[Any, ...]:
        t = AttentionTensors(q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
        window = _window(window_size_left, window_size_right, causal)
        problem = _problem(t, causal=causal, window=window, **options)
        return (*definition.backward(grad_out, None, out, lse, t, problem)[:3], None)


class FlashInfer(Recorder):
    """Lists of pages on the host, one query a sequence, lse in base 2."""

    def __init__(self) -> None:
        super().__init__()
        self.BatchDecodeWithPagedKVCacheWrapper = self._wrapper_class(self.calls.append)

    def _wrapper_class(self, note: Callable[[Any], None]) -> type:
        class Wrapper:
            def __init__(self, workspace: Tensor, layout: str, *, use_tensor_cores: bool) -> None:
                assert layout == "NHD"
                note(("__init__", (workspace, layout), {"use_tensor_cores": use_tensor_cores}))

            def plan(self, *arguments: Any, **keywords: Any) -> None:
                note(("plan", arguments, keywords))
                self.arguments, self.keywords = arguments, keywords

            def run(
                self, q: Tensor, pages: tuple[Tensor, Tensor], *, return_lse: bool
            ) -> tuple[Tensor, Tensor]:
                note(("run", (q, pages), {"return_lse": return_lse}))
                ends, indices, last, *sizes = self.arguments
                k, v = pages
                assert sizes == [q.shape[1], k.shape[2], q.shape[2], k.shape[1]]
                assert (last >= 1).all() and (last <= k.shape[1]).all()
                assert len(indices) == ends[-1]
                parts = [
                    self._one(q[b : b + 1], k, v, indices[ends[b] : ends[b + 1]], int(last[b]))
                    for b in range(len(q))
                ]
                outs, lses = zip(*parts, strict=True)
                return torch.cat(outs), torch.cat(lses) / math.log(2)

            def _one(
                self, q: Tensor, k: Tensor, v: Tensor, pages: Tensor, last: int
            ) -> tuple[Tensor, Tensor]:
                count = (len(pages) - 1) * k.shape[1] + last if len(pages) else 0
                keys, values = (x[pages.long()].flatten(0, 1)[None, :count] for x in (k, v))
                t = AttentionTensors(q[:, None], keys, values)
                problem = _problem(
                    t,
                    window=(self.keywords["window_left"], -1),
                    softcap=self.keywords["logits_soft_cap"] or 0.0,
                    softmax_scale=self.keywords["sm_scale"],
                )
                out, lse = definition.forward(t, problem)
                return out[:, 0], lse[..., 0]

        return Wrapper
