"""Context parallel: one attention over sequences whose tokens are spread over devices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from portattn import arguments, ops
from portattn.arguments import Options, as_scores_shape
from portattn.attention import Result
from portattn.dispatch.backend import AttentionTensors
from portattn.errors import ArgumentError, DeviceError, ShapeError
from portattn.parallel.layout import Layout, Pattern, Share, Which, held
from portattn.parallel.ring import Ring, ring_attention
from portattn.parallel.transport import Peers
from portattn.parallel.ulysses import Heads, to_heads, to_tokens

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Lengths = int | tuple[int, ...] | list[int]


class ContextParallel:
    """Attention over the tokens of ring x ulysses ranks, each of which holds a part of them.

    `ring` passes keys and values round while ranks compute, for any number of heads; `ulysses`
    exchanges tokens for heads before and after. Either may be None, a group of one. With both, the
    ranks of a ulysses group hold neighbouring tokens, and should be the closely linked ones.
    """

    def __init__(
        self, ring: ProcessGroup | None = None, ulysses: ProcessGroup | None = None
    ) -> None:
        self.ring, self.ulysses = Peers(ring), Peers(ulysses)

    @classmethod
    def from_mesh(cls, mesh: DeviceMesh) -> ContextParallel:
        """Of a DeviceMesh with dimensions "ring", "ulysses" or both; an unnamed one is a ring."""
        names = mesh.mesh_dim_names or ("ring",) * mesh.ndim
        if not set(names) <= {"ring", "ulysses"} or len(set(names)) != len(names):
            expected = 'must have dimensions named "ring" and "ulysses", or one of them'
            raise ArgumentError("mesh", expected, names)
        groups = {name: mesh.get_group(dim) for dim, name in enumerate(names)}
        return cls(groups.get("ring"), groups.get("ulysses"))

    def layout(
        self, queries: Lengths, keys: Lengths | None = None, *, pattern: Pattern = "zigzag"
    ) -> Layout:
        """How sequences are spread: one length for dense tensors, one per sequence for packed."""
        rows = (queries,) if isinstance(queries, int) else tuple(queries)
        columns = rows if keys is None else (keys,) if isinstance(keys, int) else tuple(keys)
        return Layout(rows, columns, self.ring.size, self.ulysses.size, pattern)

    def shard(
        self, tensor: Tensor, layout: Layout, which: Which = "queries", *, dim: int = 1
    ) -> Tensor:
        """This rank's tokens along a dimension (0 of packed tensors); differentiable."""
        lengths = getattr(layout, which)
        if tensor.shape[dim] != sum(lengths):
            expected = f"must hold {sum(lengths)} tokens in dimension {dim}"
            raise ShapeError("tensor", expected, tuple(tensor.shape))
        shares = layout.shares(which, self.ring.rank, self.ulysses.rank)
        parts, first = [tensor.narrow(dim, 0, 0)], 0
        for share, length in zip(shares, lengths, strict=True):
            parts += [tensor.narrow(dim, first + start, stop - start) for start, stop in share]
            first += length
        return torch.cat(parts, dim)

    def gather(
        self, tensor: Tensor, layout: Layout, which: Which = "queries", *, dim: int = 1
    ) -> Tensor:
        """All tokens from every rank's, the inverse of `shard`; without gradient."""
        tensor, ring_rank = tensor.detach(), self.ring.rank
        near = [layout.shares(which, ring_rank, rank) for rank in range(self.ulysses.size)]
        far = [layout.ring_shares(which, rank) for rank in range(self.ring.size)]
        for peers, shares in ((self.ulysses, near), (self.ring, far)):
            tensor = _gathered(peers, tensor, shares, getattr(layout, which), dim)
        return tensor

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        *,
        causal: bool = False,
        softmax_scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        sinks: Tensor | None = None,
        dropout_p: float = 0.0,
        deterministic: bool = False,
        return_lse: bool = False,
        backend: str | None = None,
    ) -> Result:
        """Attention of this rank's queries over all ranks' keys, differentiable; on every rank.

        q [B, Sq, H, D], k [B, Sk, Hkv, D], v [B, Sk, Hkv, Dv] for a layout of one length, or packed
        [T, H, D] and [T, Hkv, D(v)]: the tokens that `layout` gives this rank, as `shard` cuts
        them. Returns out [B, Sq, H, Dv] or [T, H, Dv], with return_lse also lse [B, H, Sq] or
        [H, T], float32. The other arguments as in `portattn.attention`, the same on every rank;
        alibi_slopes [H] or [B, H], bias and mask only without a ring, and then for all tokens.

        The gradients of sinks, bias and everything else that every rank has are of this rank's
        rows, or heads, alone: their sum over the ranks is the whole.

        Raises ArgumentError and its kinds: on every rank where arguments differ between ranks.
        """
        self._check(q, k, v, layout)
        self._refuse(alibi_slopes=alibi_slopes, bias=bias, mask=mask, dropout_p=dropout_p)
        options = arguments.options(
            q,
            causal=causal,
            softmax_scale=softmax_scale,
            window_size=window_size,
            softcap=softcap,
            deterministic=deterministic,
            backend=backend,
        )
        self._agree(q, k, v, layout, options, sinks)
        extras = {"alibi_slopes": alibi_slopes, "bias": bias, "mask": mask, "sinks": sinks}
        if self.ulysses.size > 1:
            heads = Heads(q.shape[-2], k.shape[-2], self.ulysses.size)
            q, k, v = to_heads(self.ulysses, layout, self.ring.rank, q, k, v, heads)
            extras = _heads_of(extras, heads, self.ulysses.rank)
        out, lse = self._with_my_heads(q, k, v, layout, options, extras)
        if self.ulysses.size > 1:
            out, lse = to_tokens(self.ulysses, layout, self.ring.rank, out, lse)
        return (out, lse) if return_lse else out

    def _with_my_heads(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        options: Options,
        extras: dict[str, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """Over the ring, or as a call of the library where there is none."""
        if self.ring.size > 1:
            ring = Ring(self.ring, layout, options)
            return ring_attention(ring, q, k, v, extras["sinks"])
        tensors = AttentionTensors(
            q,
            k,
            v,
            as_scores_shape("bias", extras["bias"]),
            as_scores_shape("mask", extras["mask"]),
            extras["alibi_slopes"],
            extras["sinks"],
        )
        if q.dim() == 3:
            tensors.cu_seqlens_q = _cumulative(layout.queries, q.device)
            tensors.cu_seqlens_k = _cumulative(layout.keys, q.device)
            options = options._replace(
                max_seqlen_q=max(layout.queries, default=0),
                max_seqlen_k=max(layout.keys, default=0),
            )
        return ops.forward(tensors, options)

    def _check(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> None:
        sizes = (self.ring.size, self.ulysses.size)
        if (layout.ring, layout.ulysses) != sizes:
            given = f"{layout.ring} x {layout.ulysses}"
            expected = f"must be for {sizes[0]} x {sizes[1]} ranks, as this object's `layout` makes"
            raise ArgumentError("layout", expected, given)
        if q.dim() not in (3, 4):
            raise ShapeError("q", "must be [B, S, H, D] or packed [T, H, D]", tuple(q.shape))
        if q.dim() == 4 and len(layout.queries) != 1:
            raise ArgumentError(
                "layout", "must have one length for dense tensors", len(layout.queries)
            )
        for name, tensor, which in (("q", q, "queries"), ("k", k, "keys"), ("v", v, "keys")):
            if tensor.dim() != q.dim():
                raise ShapeError(name, f"must have {q.dim()} dimensions, as q", tensor.dim())
            counts = layout.counts(which, self.ring.rank, self.ulysses.rank)  # type: ignore[arg-type]
            if tensor.shape[-3] != sum(counts):
                expected = f"must hold the {sum(counts)} tokens that the layout gives this rank"
                raise ShapeError(name, expected, tuple(tensor.shape))
            if tensor.device != q.device:
                raise DeviceError(name, f"must be on the device of q, {q.device}", tensor.device)
        if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2] or q.shape[-2] == 0:
            expected = f"must have a head count that divides that of q, {q.shape[-2]}"
            raise ShapeError("k", expected, k.shape[-2])

    def _refuse(self, *, dropout_p: float, **beside_a_ring: Tensor | None) -> None:
        if dropout_p:
            expected = "must be 0: ranks that number their own rows and heads can't draw one mask"
            raise ArgumentError("dropout_p", expected, dropout_p)
        for name, tensor in beside_a_ring.items():
            if tensor is not None and self.ring.size > 1:
                raise ArgumentError(name, "isn't supported by a ring; ulysses ranks take it")

    def _agree(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        options: Options,
        sinks: Tensor | None,
    ) -> None:
        batch = q.shape[0] if q.dim() == 4 else None
        facts = {
            "layout": layout,
            "q": (q.dim(), batch, *q.shape[-2:], q.dtype),
            "k": (k.dim(), *k.shape[-2:], k.dtype),
            "v": (v.dim(), *v.shape[-2:], v.dtype),
            # What runs on a rank is its own affair.
            **options._replace(backend=None)._asdict(),
            "sinks": sinks is not None,
        }
        for peers in (self.ring, self.ulysses):
            peers.agree(q.device, **facts)


def _heads_of(
    extras: dict[str, Tensor | None], heads: Heads, rank: int
) -> dict[str, Tensor | None]:
    """Of what has a head dimension, a rank's heads."""
    dims = {"alibi_slopes": -1, "sinks": -1, "bias": -3, "mask": -3}

    def cut(name: str, tensor: Tensor | None) -> Tensor | None:
        dim = dims[name]
        if tensor is None or tensor.dim() < -dim or tensor.shape[dim] == 1:
            return tensor
        return tensor.narrow(dim, rank * heads.each, heads.each)

    return {name: cut(name, tensor) for name, tensor in extras.items()}


def _cumulative(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)


def _gathered(
    peers: Peers, tensor: Tensor, shares: list[tuple[Share, ...]], lengths: Sequence[int], dim: int
) -> Tensor:
    """The tokens of a group's ranks in ascending order."""
    if peers.size == 1:
        return tensor
    counts = [sum(held(share) for share in of) for of in shares]
    shape = list(tensor.shape)
    shape[dim] = max(counts)
    padded = tensor.new_zeros(shape)
    padded.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=peers.group)
    together = torch.cat([p.narrow(dim, 0, n) for p, n in zip(parts, counts, strict=True)], dim)
    starts = [0, *accumulate(lengths)]
    places = [
        torch.arange(first + start, first + stop)
        for of in shares
        for first, share in zip(starts, of, strict=False)
        for start, stop in share
    ]
    order = torch.cat([torch.arange(0), *places]).argsort()
    return together.index_select(dim, order.to(tensor.device))
