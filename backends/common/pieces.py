"""Every layout as a sequence of dense pieces, so that a numeric core sees one problem only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem


@dataclass(frozen=True)
class Piece:
    """Sequences of one length: views that share storage with the call's tensors where they can.

    q [B, Hkv, G, Sq, D] with G query heads per kv head, k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv];
    keys and values that were stored with scales are copies.
    bias and mask broadcast to [B, Hkv, G, Sq, Sk]; slopes [B or 1, Hkv, G], sinks [Hkv, G];
    heads [B, Hkv, G] is b * H + h. The last two say where the piece's rows and keys lie.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    mask: Tensor | None
    slopes: Tensor | None
    sinks: Tensor | None
    heads: Tensor
    query_index: tuple[slice, slice]
    key_index: tuple[slice, slice]

    @property
    def seqlen_q(self) -> int:
        return self.q.shape[3]

    @property
    def seqlen_k(self) -> int:
        return self.k.shape[2]

    def queries_of(self, tensor: Tensor) -> Tensor:
        """The rows of this piece in a tensor shaped like q or out, as [B, Hkv, G, Sq, D]."""
        return _split_heads(_rows(tensor, self.query_index), self.k.shape[1])

    def row_values_of(self, lse: Tensor) -> Tensor:
        """The rows of this piece in a tensor shaped like lse, as [B, Hkv, G, Sq]."""
        batch, rows = self.query_index
        part = lse[None, :, rows] if lse.dim() == 2 else lse[batch, :, rows]
        heads: Tensor = part.unflatten(1, (self.k.shape[1], -1))
        return heads

    def keys_of(self, tensor: Tensor) -> Tensor:
        """The keys of this piece in a tensor shaped like k or v, as [B, Hkv, Sk, D]."""
        return _rows(tensor, self.key_index).transpose(1, 2)


def pieces(tensors: AttentionTensors, problem: AttentionProblem) -> Iterator[Piece]:
    """The call as dense pieces: the whole batch, or one piece per sequence where lengths differ."""
    everything = slice(None)
    if problem.layout == "dense":
        index = (everything, everything)
        yield _piece(tensors, problem, tensors.k, tensors.v, index, index, everything)
        return
    for b in range(problem.batch):
        one = slice(b, b + 1)
        if problem.layout == "varlen":
            start, stop = _span(tensors.cu_seqlens_q, b)
            query_index = (one, slice(start, stop))
        else:
            query_index = (one, everything)
        k, v, key_index = _keys(tensors, b)
        yield _piece(tensors, problem, k, v, query_index, key_index, one)


def _span(cu_seqlens: Tensor | None, b: int) -> tuple[int, int]:
    assert cu_seqlens is not None
    start, stop = cu_seqlens[b : b + 2].tolist()
    return start, stop


def _keys(tensors: AttentionTensors, b: int) -> tuple[Tensor, Tensor, tuple[slice, slice]]:
    """K and V as [1, S, Hkv, D] tensors of sequence b, and the index of its keys in them."""
    first = 0
    if tensors.seqused_k is not None:
        first = 0 if tensors.leftpad_k is None else int(tensors.leftpad_k[b])
        last = int(tensors.seqused_k[b])
    else:
        start, stop = _span(tensors.cu_seqlens_k, b)
        if tensors.block_table is None:
            return tensors.k, tensors.v, (slice(b, b + 1), slice(start, stop))
        last = stop - start
    if tensors.block_table is None:
        row = b if tensors.cache_batch_idx is None else int(tensors.cache_batch_idx[b])
        return tensors.k, tensors.v, (slice(row, row + 1), slice(first, last))
    used = tensors.block_table[b, : -(-last // tensors.k.shape[1])].long()
    k, v = (pages[used].flatten(0, 1)[None] for pages in (tensors.k, tensors.v))
    return k, v, (slice(0, 1), slice(first, last))


def _piece(
    tensors: AttentionTensors,
    problem: AttentionProblem,
    k: Tensor,
    v: Tensor,
    query_index: tuple[slice, slice],
    key_index: tuple[slice, slice],
    batch: slice,
) -> Piece:
    kv_heads = problem.kv_heads
    q = _split_heads(_rows(tensors.q, query_index), kv_heads)
    keys, values = (_rows(t, key_index).transpose(1, 2) for t in (k, v))
    if tensors.k_scale is not None and tensors.v_scale is not None:
        keys, values = (
            _scaled(keys, tensors.k_scale[batch]),
            _scaled(values, tensors.v_scale[batch]),
        )
    size = (q.shape[3], keys.shape[2])
    slopes, sinks = tensors.alibi_slopes, tensors.sinks
    if slopes is not None:
        slopes = slopes[None] if slopes.dim() == 1 else slopes[batch]
        slopes = slopes.unflatten(1, (kv_heads, -1))
    first = batch.start or 0
    heads = torch.arange(q.shape[0] * problem.heads, device=q.device) + first * problem.heads
    return Piece(
        q,
        keys,
        values,
        _scores_view(tensors.bias, batch, kv_heads, size),
        _scores_view(tensors.mask, batch, kv_heads, size),
        slopes,
        None if sinks is None else sinks.unflatten(0, (kv_heads, -1)),
        heads.view(q.shape[:3]),
        query_index,
        key_index,
    )


def _scaled(stored: Tensor, scale: Tensor) -> Tensor:
    """[B, Hkv, Sk, D] real numbers of a cache that stores them divided by scale [B, Hkv]."""
    wide = torch.float32 if stored.device.type == "mps" else torch.float64
    return stored.to(wide) * scale[..., None, None].to(wide)


def _rows(tensor: Tensor, index: tuple[slice, slice]) -> Tensor:
    """[1, n, H, D] rows of a packed tensor, or [b, n, H, D] of a batched one."""
    return tensor[None, index[1]] if tensor.dim() == 3 else tensor[index]


def _split_heads(tensor: Tensor, kv_heads: int) -> Tensor:
    groups: Tensor = tensor.unflatten(2, (kv_heads, -1))
    return groups.permute(0, 2, 3, 1, 4)


def _scores_view(
    tensor: Tensor | None, batch: slice, kv_heads: int, size: tuple[int, int]
) -> Tensor | None:
    """A bias or mask of the batch's sequences, cut to their lengths, heads split in two."""
    if tensor is None:
        return None
    part = tensor if tensor.shape[0] == 1 else tensor[batch]
    for dim, length in zip((2, 3), size, strict=True):
        if part.shape[dim] != 1:
            part = part.narrow(dim, 0, length)
    return part[:, :, None] if part.shape[1] == 1 else part.unflatten(1, (kv_heads, -1))
