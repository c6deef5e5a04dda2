"""Decode over keys and values that are spread over ranks by length: exact, merged by lse."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from portattn.attention import attention_with_kvcache
from portattn.cache import KVCache
from portattn.errors import ArgumentError, DtypeError, ShapeError
from portattn.parallel.merge import merge_all
from portattn.parallel.transport import Peers


class ShardedKVCache:
    """One rank's part of a KV cache whose tokens are spread over the ranks of a group.

    `local` is any cache of the library, holding this rank's tokens; which those are is free, and
    may differ between sequences and ranks, down to none. Every rank attends with the same queries
    and gets the same bits.

    Appended tokens go to one rank at a time, `block` of them before the next rank's turn, so that
    all caches grow alike. Where a window, or a causal mask over several queries, makes positions
    matter, `positions` [B, S] int32 says which position each place of `local` holds; `append`
    continues it.
    """

    def __init__(
        self,
        local: KVCache,
        group: ProcessGroup | None = None,
        *,
        block: int = 256,
        positions: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        """`positions` comes with `lengths` [B] int32, the tokens of each sequence on all ranks."""
        if block < 1:
            raise ArgumentError("block", "must be at least 1", block)
        if (positions is None) != (lengths is None):
            name = "positions" if positions is None else "lengths"
            raise ArgumentError(name, "positions and lengths must be given together")
        for name, tensor, rank in (("positions", positions, 2), ("lengths", lengths, 1)):
            if tensor is not None and tensor.dtype != torch.int32:
                raise DtypeError(name, "must be int32", tensor.dtype)
            if tensor is not None and tensor.dim() != rank:
                raise ShapeError(name, f"must have {rank} dimensions", tuple(tensor.shape))
        self.local, self.block = local, block
        # A copy: appended tokens are written into it.
        self.positions = None if positions is None else positions.clone()
        self.lengths = lengths
        self._peers, self._appended = Peers(group), 0

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv], given alike on every rank.

        Raises CacheFullError on the rank whose turn it is, with nothing written there.
        """
        done, count = 0, k.shape[1]
        while done < count:
            at = self._appended + done
            take = min(count - done, self.block - at % self.block)
            if at // self.block % self._peers.size == self._peers.rank:
                self._keep(k[:, done : done + take], v[:, done : done + take], done)
            done += take
        self._appended += count
        if self.lengths is not None:
            self.lengths = self.lengths + count

    def _keep(self, k: Tensor, v: Tensor, after: int) -> None:
        used = self.local.view().seqused_k
        self.local.append(k, v)
        if self.positions is None or self.lengths is None:
            return
        steps = torch.arange(k.shape[1], device=used.device)
        slots = used.long()[:, None] + steps
        more = self.local.view().max_seqlen_k - self.positions.shape[1]
        if more > 0:
            self.positions = torch.nn.functional.pad(self.positions, (0, more + self.block))
        self.positions.scatter_(1, slots, (self.lengths[:, None] + after + steps).int())

    def attention(
        self,
        q: Tensor,
        *,
        causal: bool = False,
        softmax_scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        deterministic: bool = False,
        return_lse: bool = False,
        backend: str | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of q [B, Sq, H, D], the same on every rank, over the keys of all ranks.

        Queries are the newest positions of their sequences. Returns out [B, Sq, H, Dv], with
        return_lse also lse [B, H, Sq]; the same bits on every rank. The arguments as in
        `attention_with_kvcache`, the same on every rank; no gradient.
        """
        scalars = (causal, softmax_scale, tuple(window_size), softcap)
        self._peers.agree(
            q.device, q=(tuple(q.shape), q.dtype), options=scalars, sinks=sinks is not None
        )
        result = attention_with_kvcache(
            q,
            self.local,
            softmax_scale=softmax_scale,
            softcap=softcap,
            mask=self._visible(q, causal, window_size),
            deterministic=deterministic,
            return_lse=True,
            backend=backend,
        )
        assert isinstance(result, tuple)
        out, lse = self._merged(*result, sinks)
        return (out, lse) if return_lse else out

    def _merged(self, out: Tensor, lse: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
        mine = torch.empty((*out.shape[:-1], out.shape[-1] + 1), dtype=lse.dtype, device=lse.device)
        mine[..., :-1] = out
        mine[..., -1] = lse.transpose(1, 2)
        if self._peers.size == 1:
            return merge_all(mine[None], sinks, out.dtype)
        parts = mine.new_empty((self._peers.size * mine.shape[0], *mine.shape[1:]))
        dist.all_gather_into_tensor(parts, mine, group=self._peers.group)
        return merge_all(parts.view(self._peers.size, *mine.shape), sinks, out.dtype)

    def _visible(self, q: Tensor, causal: bool, window: tuple[int, int]) -> Tensor | None:
        """Which keys here each query sees, [B, 1, Sq, longest]; None where it is all of them."""
        left, right = window
        right = 0 if causal and right >= -1 else right
        # The newest query sees no key past itself, whatever the right side is.
        if left < 0 and (right < 0 or q.shape[1] == 1):
            return None
        if self.positions is None or self.lengths is None:
            expected = "must be given where a window or causal queries depend on them"
            raise ArgumentError("positions", expected)
        if self.local.view().leftpad_k is not None:
            raise ArgumentError("local", "can't have left padding where positions matter")
        longest = self.local.view().max_seqlen_k
        keys = self.positions[:, None, :longest]
        steps = torch.arange(q.shape[1], device=q.device)
        rows = (self.lengths[:, None] - q.shape[1] + steps)[:, :, None]
        seen = torch.ones((), dtype=torch.bool, device=q.device)
        if left >= 0:
            seen = seen & (keys >= rows - left)
        if right >= 0:
            seen = seen & (keys <= rows + right)
        return seen[:, None]
