"""A KV cache of fixed-size pages shared by all sequences through a block table."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.cache.contiguous import _check_beams, _host_bound
from portattn.cache.view import CacheView, check_new_tokens, check_sizes, new_slots
from portattn.errors import ArgumentError, CacheFullError, DtypeError, ShapeError


class PagedKVCache:
    """Pages [P, page_size, Hkv, D(v)] and, for each sequence, the list of pages it owns.

    Pages are allocated when tokens need them and go back to the free list on release. After
    `reorder`, sequences may share pages; a shared page that is written to is copied first.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        max_batch: int,
        head_dim_v: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        dim_v = head_dim if head_dim_v is None else head_dim_v
        check_sizes(
            num_pages=num_pages, page_size=page_size, kv_heads=kv_heads, head_dim=head_dim,
            head_dim_v=dim_v, max_batch=max_batch,
        )
        self.k = torch.zeros(num_pages, page_size, kv_heads, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(num_pages, page_size, kv_heads, dim_v, dtype=dtype, device=device)
        self._owned = True
        self._lengths = [0] * max_batch
        self._pages: list[list[int]] = [[] for _ in range(max_batch)]
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._publish()

    @classmethod
    def from_tensors(
        cls, k_pages: Tensor, v_pages: Tensor, block_table: Tensor, cache_seqlens: Tensor
    ) -> PagedKVCache:
        """Wrap caller-owned pages [P, page_size, Hkv, D(v)] and block_table [B, pages] int32.

        Appends write into the pages that the table names; cache_seqlens [B] int32 stays as it is,
        and so does the table: reserve, release and reorder are the caller's.
        """
        if k_pages.dim() != 4 or v_pages.dim() != 4 or k_pages.shape[:3] != v_pages.shape[:3]:
            raise ShapeError(
                "v_pages",
                "must be [P, page_size, Hkv, Dv] like k_pages",
                f"{tuple(k_pages.shape)} and {tuple(v_pages.shape)}",
            )
        if block_table.dim() != 2 or block_table.shape[0] != cache_seqlens.shape[0]:
            raise ShapeError(
                "block_table", f"must be [{cache_seqlens.shape[0]}, pages]",
                tuple(block_table.shape),
            )
        if block_table.dtype != torch.int32:
            raise DtypeError("block_table", "must be int32", block_table.dtype)
        cache = cls.__new__(cls)
        cache.k, cache.v = k_pages, v_pages
        cache._owned = False
        cache.block_table, cache.seqlens = block_table, cache_seqlens
        cache._longest = _host_bound(cache_seqlens, block_table.shape[1] * k_pages.shape[1])
        return cache

    @property
    def batch(self) -> int:
        """Sequences in the block table."""
        return self.seqlens.shape[0]

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.k.shape[1]

    @property
    def free_pages(self) -> int:
        """Pages that no sequence owns."""
        self._require_owned("free_pages")
        return len(self._free)

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.k.nbytes + self.v.nbytes

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages that sequences own, shared pages counted once."""
        self._require_owned("used_bytes")
        per_page = self.memory_bytes // self.k.shape[0]
        return (self.k.shape[0] - len(self._free)) * per_page

    def reserve(self, index: int, tokens: int) -> None:
        """Allocate the pages that `tokens` more tokens of sequence `index` need.

        Raises CacheFullError, with nothing allocated, when there are too few free pages.
        """
        self._require_owned("reserve")
        self._check_index(index)
        if tokens < 0:
            raise ArgumentError("tokens", "must be at least 0", tokens)
        self._grow({index: tokens})
        self._publish()

    def release(self, index: int) -> None:
        """Forget sequence `index` and give its pages back."""
        self._require_owned("release")
        self._check_index(index)
        for page in self._pages[index]:
            self._drop(page)
        self._pages[index], self._lengths[index] = [], 0
        self._publish()

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv] after each sequence's tokens.

        Raises CacheFullError, with nothing written or allocated, when pages run out.
        """
        check_new_tokens(k, v, self.k, self.v, self.batch)
        count = k.shape[1]
        if self._owned:
            self._grow(dict.fromkeys(range(self.batch), count))
            self._publish()
        elif self._longest + count > self.block_table.shape[1] * self.page_size:
            room = self.block_table.shape[1] * self.page_size
            exact = int(self.seqlens.max()) if self.batch else 0
            if exact + count > room:
                raise CacheFullError(count, room - exact, "tokens per sequence")
            self._longest = exact
        slots = new_slots(self.seqlens, count)
        pages = self.block_table.long().gather(1, slots // self.page_size)
        self.k[pages, slots % self.page_size] = k
        self.v[pages, slots % self.page_size] = v
        if self._owned:
            self._lengths = [length + count for length in self._lengths]
        # A new tensor: caller-owned lengths are never changed.
        self.seqlens = self.seqlens + count
        self._longest += count

    def view(self) -> CacheView:
        """The cache as attention reads it."""
        return CacheView(
            self.k, self.v, self.seqlens, self._longest, block_table=self.block_table
        )

    def crop(self, max_length: int) -> None:
        """Forget tokens past max_length of every sequence and free the pages they alone used."""
        self._require_owned("crop")
        if max_length < 0:
            raise ArgumentError("max_length", "must be at least 0", max_length)
        keep = -(-max_length // self.page_size)
        for index, pages in enumerate(self._pages):
            for page in pages[keep:]:
                self._drop(page)
            del pages[keep:]
            self._lengths[index] = min(self._lengths[index], max_length)
        self._publish()

    def reorder(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was; pages are shared, not copied."""
        self._require_owned("reorder")
        _check_beams(beam_idx, self.batch)
        order = beam_idx.tolist()
        pages = [list(self._pages[source]) for source in order]
        for page in (page for owned in pages for page in owned):
            self._references[page] += 1
        for page in (page for owned in self._pages for page in owned):
            self._drop(page)
        self._pages = pages
        self._lengths = [self._lengths[source] for source in order]
        self._publish()

    def reset(self) -> None:
        """Forget every sequence and free every page."""
        for index in range(self.batch):
            self.release(index)

    def _grow(self, tokens: dict[int, int]) -> None:
        """Own, alone, every page that these new tokens will touch; all or nothing."""
        size = self.page_size
        copies: list[tuple[int, int]] = []
        fresh: list[int] = []
        claims: dict[int, int] = {}
        for index, count in tokens.items():
            length, pages = self._lengths[index], self._pages[index]
            fresh += [index] * max(0, -(-(length + count) // size) - len(pages))
            for slot in range(length // size, len(pages)) if count else ():
                page = pages[slot]
                # The last of the sequences that share a page may keep it.
                if self._references[page] - claims.get(page, 0) > 1:
                    claims[page] = claims.get(page, 0) + 1
                    copies.append((index, slot))
        needed = len(fresh) + len(copies)
        if needed > len(self._free):
            raise CacheFullError(needed, len(self._free), "pages")
        for index in fresh:
            self._pages[index].append(self._take())
        for index, slot in copies:
            shared, own = self._pages[index][slot], self._take()
            self.k[own], self.v[own] = self.k[shared], self.v[shared]
            self._pages[index][slot] = own
            self._drop(shared)

    def _take(self) -> int:
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _drop(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free.append(page)

    def _publish(self) -> None:
        """Lengths and pages as the tensors that attention reads; unowned entries are 0."""
        width = max(1, *(len(pages) for pages in self._pages))
        rows = [pages + [0] * (width - len(pages)) for pages in self._pages]
        device = self.k.device
        self.block_table = torch.tensor(rows, dtype=torch.int32).to(device, non_blocking=True)
        self.seqlens = torch.tensor(self._lengths, dtype=torch.int32).to(device, non_blocking=True)
        self._longest = max(self._lengths)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.batch:
            raise ArgumentError("index", f"must lie in 0 .. {self.batch - 1}", index)

    def _require_owned(self, operation: str) -> None:
        if not self._owned:
            raise ArgumentError(
                operation, "needs a cache that owns its pages, not one made by from_tensors"
            )
