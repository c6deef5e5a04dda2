"""Ulysses: all tokens of some heads instead of some tokens of all heads, by one all-to-all.

Source: DeepSpeed Ulysses (arXiv 2309.14509). Kv heads that don't divide among the ranks are sent to
every rank whose queries read them.
"""

from __future__ import annotations

from math import gcd, prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from portattn.errors import ArgumentError
from portattn.parallel.layout import Layout, Which
from portattn.parallel.transport import Peers

Shape = tuple[int, ...]


class Heads:
    """Which heads each rank of a group attends with."""

    def __init__(self, heads: int, kv_heads: int, ranks: int) -> None:
        if heads % ranks:
            expected = f"must have a head count that {ranks} ulysses ranks divide; a ring takes any"
            raise ArgumentError("q", expected, f"{heads} heads")
        self.each = heads // ranks
        group = heads // kv_heads
        # As many query heads as read one kv head on every rank alike.
        unit = gcd(self.each, group)
        self._kv = [
            [first // group for first in range(rank * self.each, (rank + 1) * self.each, unit)]
            for rank in range(ranks)
        ]
        self._contiguous = all(of == list(range(of[0], of[-1] + 1)) for of in self._kv)

    def kv_count(self, rank: int) -> int:
        """Kv heads that a rank gets."""
        return len(self._kv[rank])

    def queries(self, tensor: Tensor, rank: int) -> Tensor:
        """A rank's heads of [..., H, D]."""
        return tensor.narrow(-2, rank * self.each, self.each)

    def kv(self, tensor: Tensor, rank: int) -> Tensor:
        """The kv heads [..., Hkv, D] that a rank's queries read."""
        chosen = self._kv[rank]
        if self._contiguous:
            return tensor.narrow(-2, chosen[0], len(chosen))
        return tensor.index_select(-2, torch.tensor(chosen, device=tensor.device))


def to_heads(
    peers: Peers, layout: Layout, ring_rank: int, q: Tensor, k: Tensor, v: Tensor, heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's heads of all tokens that its ring rank holds, in their order; differentiable."""
    pieces, shapes = [], []
    for peer in range(peers.size):
        pieces += [heads.queries(q, peer), heads.kv(k, peer), heads.kv(v, peer)]
    kv_heads = heads.kv_count(peers.rank)
    for peer in range(peers.size):
        rows = sum(layout.counts("queries", ring_rank, peer))
        keys = sum(layout.counts("keys", ring_rank, peer))
        shapes += [
            (*q.shape[:-3], rows, heads.each, q.shape[-1]),
            (*k.shape[:-3], keys, kv_heads, k.shape[-1]),
            (*v.shape[:-3], keys, kv_heads, v.shape[-1]),
        ]
    got = all_to_all(peers, pieces, shapes)
    return (
        _in_order(layout, "queries", ring_rank, got[0::3]),
        _in_order(layout, "keys", ring_rank, got[1::3]),
        _in_order(layout, "keys", ring_rank, got[2::3]),
    )


def to_tokens(peers: Peers, layout: Layout, ring_rank: int, out: Tensor, lse: Tensor) -> Any:
    """(out, lse) of this rank's tokens and all heads, from some heads of all; differentiable."""
    rows = lse.transpose(-1, -2)[..., None]
    dim, mine = out.shape[-1], sum(layout.counts("queries", ring_rank, peers.rank))
    found = []
    for tensor, width in ((out, dim), (rows, 1)):
        pieces = _apart(layout, ring_rank, tensor, peers.size)
        shape = (*tensor.shape[:-3], mine, tensor.shape[-2], width)
        found.append(torch.cat(all_to_all(peers, pieces, [shape] * peers.size), -2))
    return found[0], found[1][..., 0].transpose(-1, -2)


def all_to_all(peers: Peers, pieces: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
    """An equal number of pieces for every rank, in its order; those of `shapes` come back."""
    each = len(pieces) // peers.size
    sizes = [prod(shape) for shape in shapes]
    sent = [sum(p.numel() for p in pieces[i : i + each]) for i in range(0, len(pieces), each)]
    arriving = [sum(sizes[i : i + each]) for i in range(0, len(sizes), each)]
    flat = torch.cat([piece.reshape(-1) for piece in pieces])
    got = _AllToAll.apply(peers, sent, arriving, flat)  # type: ignore[no-untyped-call]
    return [part.view(shape) for part, shape in zip(got.split(sizes), shapes, strict=True)]


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, peers: Peers, sent: list[int], arriving: list[int], flat: Tensor
    ) -> Tensor:
        ctx.call = peers, sent, arriving
        got = flat.new_empty(sum(arriving))
        dist.all_to_all_single(got, flat.contiguous(), arriving, sent, group=peers.group)
        return got

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        peers, sent, arriving = ctx.call
        back = _AllToAll.apply(peers, arriving, sent, grads[0])  # type: ignore[no-untyped-call]
        return None, None, None, back


def _in_order(layout: Layout, which: Which, ring_rank: int, pieces: list[Tensor]) -> Tensor:
    """Every peer's part of every sequence as one: sequences outside, peers inside."""
    if len(getattr(layout, which)) == 1:
        return torch.cat(pieces, -3)
    counts = [layout.counts(which, ring_rank, peer) for peer in range(len(pieces))]
    split = [piece.split(of, -3) for piece, of in zip(pieces, counts, strict=True)]
    return torch.cat([part for sequence in zip(*split, strict=True) for part in sequence], -3)


def _apart(layout: Layout, ring_rank: int, tensor: Tensor, ranks: int) -> list[Tensor]:
    """The inverse of _in_order, for queries."""
    counts = [layout.counts("queries", ring_rank, peer) for peer in range(ranks)]
    sizes = [size for sequence in zip(*counts, strict=True) for size in sequence]
    parts = tensor.split(sizes, -3)
    return [torch.cat(parts[peer::ranks], -3) for peer in range(ranks)]
