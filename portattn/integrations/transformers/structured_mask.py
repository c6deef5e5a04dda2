"""A mask that knows its structure: what transformers carries to the attention function.

Most masks are one rule: query i, at position p = i + first_query, sees key j iff

    p - left <= j <= p + right     (-1: unbounded)    and key j is no padding
                                                      and both belong to the same packed sequence

Written out that is B * Sq * Sk bytes which no kernel needs. StructuredMask holds the rule and looks
like the bool tensor [B, 1, Sq, Sk] that it stands for: any torch operation on it sees that tensor,
so models that slice or combine masks get what they expect. Only the attention function reads the
rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class Band:
    """The keys a query sees by position; -1 is unbounded."""

    first_query: int
    left: int = -1
    right: int = -1


class Region(NamedTuple):
    """A band in portattn's own terms: keys start to stop, causal and window as `attention` has."""

    start: int
    stop: int
    causal: bool
    window: tuple[int, int]


class Packing(NamedTuple):
    """Sequences packed into rows: an id per token [B, S], and where they start, flattened."""

    sequence_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


def region(band: Band, seqlen_q: int, seqlen_k: int) -> Region | None:
    """Crop the keys that no query sees and express the rest, or None where that isn't possible.

    `attention` counts positions from the end of the keys. Its diagonal lies
    stop - seqlen_q - first_query keys beyond the band's, so left grows by that and right shrinks.
    """
    start = max(0, band.first_query - band.left) if band.left >= 0 else 0
    stop = seqlen_k
    if band.right >= 0:
        stop = min(stop, band.first_query + seqlen_q + band.right)
    if stop <= start:
        return None
    shift = stop - seqlen_q - band.first_query
    left = band.left + shift if band.left >= 0 else seqlen_k
    right = band.right - shift if band.right >= 0 else seqlen_q
    if left < 0 or right < 0:
        return None
    binds_left, binds_right = left < stop - start - 1, right < seqlen_q - 1
    causal = binds_right and right == 0
    return Region(
        start,
        stop,
        causal,
        (left if binds_left else -1, right if binds_right and not causal else -1),
    )


class StructuredMask(Tensor):
    """A bool mask [B, 1, Sq, Sk], True takes part, kept as its rule until an operation needs it.

    band: visible keys by position. keys: bool [B, Sk], False is padding, or [1, 1] where there is
    none (`padded` is False). packing: rows of several sequences.
    """

    band: Band
    keys: Tensor
    padded: bool
    packing: Packing | None

    # Operations go straight to __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        band: Band,
        keys: Tensor,
        padded: bool,
        packing: Packing | None = None,
    ) -> StructuredMask:
        mask: StructuredMask = Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=torch.bool, device=keys.device
        )
        mask.band, mask.keys, mask.padded, mask.packing = band, keys, padded, packing
        return mask

    def region(self) -> Region | None:
        """The keys to attend to and how, or None when only the written-out mask will do."""
        return region(self.band, self.shape[2], self.shape[3])

    def dense(self) -> Tensor:
        """The mask written out."""
        seqlen_q, seqlen_k = self.shape[2:]
        query = torch.arange(seqlen_q, device=self.device)[:, None] + self.band.first_query
        key = torch.arange(seqlen_k, device=self.device)
        visible = self.keys[:, None, None, :]
        if self.band.right >= 0:
            visible = visible & (key <= query + self.band.right)
        if self.band.left >= 0:
            visible = visible & (key >= query - self.band.left)
        if self.packing is not None:
            ids = self.packing.sequence_ids[:, None]
            visible = visible & (ids[..., :, None] == ids[..., None, :])
        return visible.expand(self.shape)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"StructuredMask({tuple(self.shape)}, {self.band}, padded={self.padded})"

    # What torch.compile needs to know of a tensor that is made of others.
    def __tensor_flatten__(self) -> tuple[list[str], tuple[Band, bool, int]]:
        names = ["keys"] if self.packing is None else ["keys", "_sequence_ids", "_cu_seqlens"]
        longest = 0 if self.packing is None else self.packing.max_seqlen
        return names, (self.band, self.padded, longest)

    @staticmethod
    def __tensor_unflatten__(
        inner: Mapping[str, Tensor],
        context: tuple[Band, bool, int],
        outer_size: Sequence[int],
        outer_stride: Sequence[int],
    ) -> StructuredMask:
        band, padded, longest = context
        packing = None
        if "_cu_seqlens" in inner:
            packing = Packing(inner["_sequence_ids"], inner["_cu_seqlens"], longest)
        return StructuredMask(outer_size, band, inner["keys"], padded, packing)

    def _stable_hash_for_caching(self) -> str:
        return repr(self.__tensor_flatten__())

    @property
    def _sequence_ids(self) -> Tensor | None:
        return None if self.packing is None else self.packing.sequence_ids

    @property
    def _cu_seqlens(self) -> Tensor | None:
        return None if self.packing is None else self.packing.cu_seqlens

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _KEEPING_STRUCTURE and kwargs.get("dtype") in (None, torch.bool):
            return args[0]._map(lambda tensor: func(tensor, *args[1:], **kwargs))
        args, kwargs = tree_map_only(StructuredMask, StructuredMask.dense, (args, kwargs))
        return func(*args, **kwargs)

    def _map(self, change: Callable[[Tensor], Tensor]) -> StructuredMask:
        packing = self.packing
        if packing is not None:
            ids, starts = change(packing.sequence_ids), change(packing.cu_seqlens)
            packing = Packing(ids, starts, packing.max_seqlen)
        return StructuredMask(self.shape, self.band, change(self.keys), self.padded, packing)


# Checkpointing detaches its inputs, and a model spread over devices moves them.
_KEEPING_STRUCTURE = (
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.clone.default,
    torch.ops.aten._to_copy.default,
)
