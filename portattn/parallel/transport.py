"""What passes between the ranks of a group: tensors round a ring, and checks that all agree."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import P2POp, ProcessGroup, Work

from portattn.errors import ArgumentError

_WORD = 2**63
# Facts that were found to be the same, before they are asked again.
_REMEMBERED = 4096


class Transfer:
    """Tensors on their way; `wait` gives those that arrive, once they may be read."""

    def __init__(self, works: Sequence[Work], arriving: tuple[Tensor, ...]) -> None:
        self._works, self._arriving = works, arriving

    def wait(self) -> tuple[Tensor, ...]:
        """Until all is sent and received; on an accelerator its stream waits, not the host."""
        for work in self._works:
            work.wait()
        return self._arriving


class Peers:
    """A group seen from this rank; None is a group of one."""

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.size = 1 if group is None else group.size()
        self.rank = 0 if group is None else group.rank()
        self._agreed: set[Hashable] = set()

    def exchange(
        self, sent: Sequence[Tensor], arriving: tuple[Tensor, ...], *, to: int, tag: int = 0
    ) -> Transfer:
        """Send contiguous tensors `to` ranks further and receive from as many ranks before.

        Tensors without elements are left out: their receiver knows that they are empty.
        """
        group, operations = self.group, []
        assert group is not None
        target = dist.get_global_rank(group, (self.rank + to) % self.size)
        source = dist.get_global_rank(group, (self.rank - to) % self.size)
        for place, tensor in enumerate(sent):
            if tensor.numel():
                operations.append(P2POp(dist.isend, tensor, target, group, tag + place))
        for place, tensor in enumerate(arriving):
            if tensor.numel():
                operations.append(P2POp(dist.irecv, tensor, source, group, tag + place))
        works = dist.batch_isend_irecv(operations) if operations else []
        return Transfer(works, arriving)

    def agree(self, device: torch.device, **facts: Hashable) -> None:
        """Raise ArgumentError on every rank unless all were given the same; once per facts.

        Ranks that disagree would wait for each other, or exchange what doesn't belong together.
        """
        key = tuple(facts.values())
        if self.group is None or key in self._agreed:
            return
        mine = torch.tensor([_digest(str(v)) for v in key], dtype=torch.int64, device=device)
        # Two collectives that every backend has; each rank finds the same answer.
        least, most = mine.clone(), mine.clone()
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        same = (least == most).tolist()
        for (name, value), agreed in zip(facts.items(), same, strict=True):
            if not agreed:
                expected = f"must be the same on all {self.size} ranks"
                raise ArgumentError(name, expected, f"{value} on rank {self.rank}")
        if len(self._agreed) >= _REMEMBERED:
            self._agreed.clear()  # at the same call on every rank
        self._agreed.add(key)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _WORD
