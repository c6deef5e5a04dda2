"""Host pages: memory taken in slabs within a budget, counted by how many sequences use each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from portattn.cache.view import SCALED
from portattn.offload import memory
from portattn.offload.link import Link

_SLAB_BYTES = 2**30


class HostPages:
    """Pages that exist in every layer: page i of `planes[layer][0]` holds keys, of [1] values.

    For dtypes with a scale, `scales[layer]` holds [pages, Hkv] float32 of both; they move when
    memory is taken. shapes: (Hkv, page_size, D) of keys and of values. Memory is taken when pages
    are asked for, in slabs that grow with what there is, never past `limit_bytes` or what machine
    and cgroup leave.
    """

    def __init__(
        self,
        layers: int,
        shapes: Sequence[tuple[int, int, int]],
        dtype: torch.dtype,
        limit_bytes: int | None,
        link: Link,
    ) -> None:
        self._layers = layers
        self._sizes = [heads * size * dim * dtype.itemsize for heads, size, dim in shapes]
        self.page_bytes = layers * sum(self._sizes)
        self.scaled = dtype in SCALED
        if self.scaled:
            self.page_bytes += layers * sum(4 * heads for heads, _, _ in shapes)
        self._link = link
        room, name = memory.available_bytes()
        self._limit = (room, name) if limit_bytes is None else (limit_bytes, "the limit given")
        self._most = self._limit[0] // self.page_bytes
        region = max(1, self._most) * max(self._sizes)
        self._arena = memory.Arena(
            2 * layers, region, link.register if link.pins else None, link.unregister
        )
        self.planes = [
            [self._plane(2 * layer + which, shapes[which], dtype) for which in (0, 1)]
            for layer in range(layers)
        ]
        self.scales = [
            [link.host_buffer((0, shape[0]), torch.float32) for shape in shapes]
            for _ in range(layers if self.scaled else 0)
        ]
        self._users: list[int] = []
        self._slabs: set[int] = set()
        self._free: list[int] = []

    def _plane(self, region: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
        used = self._most * self._sizes[region % 2]
        return self._arena.region(region)[:used].view(dtype).view(self._most, *shape)

    @property
    def taken(self) -> int:
        """Pages that memory was taken for."""
        return len(self._users)

    @property
    def free(self) -> int:
        """Those of them that nobody uses."""
        return len(self._free)

    @property
    def available_bytes(self) -> int:
        """Bytes of free pages and of those that memory can still be taken for."""
        return (self.free + self.room()[0]) * self.page_bytes

    @property
    def unpinned(self) -> str | None:
        """Why the pages aren't page-locked; None where they are or needn't be."""
        return self._arena.unpinned

    def room(self) -> tuple[int, str]:
        """Pages that memory may still be taken for, and by which limit."""
        now, name = memory.available_bytes()
        left = max(0, self._most - self.taken)
        return min((left, self._limit[1]), (now // self.page_bytes, name))

    def provide(self, count: int) -> None:
        """Have `count` pages free, or as many as the limits allow."""
        missing = count - self.free
        if missing > 0:
            slab = min(max(1, _SLAB_BYTES // self.page_bytes), self.taken)
            self.commit(min(self.room()[0], max(missing, slab)))

    def commit(self, count: int) -> None:
        """Take memory for `count` more pages."""
        start = self.taken
        self._slabs.add(start)
        for which, size in enumerate(self._sizes):
            regions = range(which, 2 * self._layers, 2)
            self._arena.commit(regions, start * size, (start + count) * size)
        for pair in self.scales:
            for which, old in enumerate(pair):
                pair[which] = self._link.host_buffer((start + count, old.shape[1]), old.dtype)
                pair[which][:start] = old
        self._users += [0] * count
        # Taken from the end: pages that are filled together then lie together.
        self._free = [*range(start + count - 1, start - 1, -1), *self._free]

    def take(self) -> int:
        """A free page, for one user."""
        page = self._free.pop()
        self._users[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more user of a page."""
        self._users[page] += 1

    def drop(self, page: int) -> None:
        """One user less; the last one frees it."""
        self._users[page] -= 1
        if self._users[page] == 0:
            self._free.append(page)

    def runs(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """(place, first id, count) of each stretch of consecutive ids within one slab.

        A driver refuses to copy across ranges that were page-locked one by one.
        """
        found: list[tuple[int, int, int]] = []
        for place, page in enumerate(ids):
            if found and page == found[-1][1] + found[-1][2] and page not in self._slabs:
                start, first, count = found[-1]
                found[-1] = start, first, count + 1
            else:
                found.append((place, page, 1))
        return found

    def close(self) -> None:
        """Give the memory back."""
        self.planes = []
        self._arena.close()
