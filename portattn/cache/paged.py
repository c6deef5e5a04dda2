"""A KV cache of fixed-size pages shared by all sequences through a block table."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.cache.view import (
    CacheView,
    check_beams,
    check_index,
    check_new_tokens,
    check_sizes,
    check_store,
    host_bound,
    host_values,
    new_slots,
    scales,
    stored,
)
from portattn.errors import ArgumentError, CacheFullError


class PagedKVCache:
    """Pages [P, page_size, Hkv, D(v)] and, for each sequence, the list of pages it owns.

    Pages are allocated when tokens need them and go back to the free list on release. After
    `reorder`, sequences may share pages; a shared page that is written to is copied first.

    Lengths and page lists live on the host, so append and view never wait for the device; the
    block table is sent to it again only when pages change hands. In torch.compile'd code, attend
    to a cache that was appended to outside of it: counting pages there would compile the graph
    anew at every step. Nothing here is differentiable.

    Scales are those of ContiguousKVCache; sequences that share pages must share scales.
    """

    k: Tensor
    v: Tensor
    block_table: Tensor
    seqlens: Tensor
    _longest: int

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
        k_scale: Tensor | float | None = None,
        v_scale: Tensor | float | None = None,
    ) -> None:
        dim_v = head_dim if head_dim_v is None else head_dim_v
        check_sizes(
            num_pages=num_pages,
            page_size=page_size,
            kv_heads=kv_heads,
            head_dim=head_dim,
            head_dim_v=dim_v,
            max_batch=max_batch,
        )
        self.k = torch.zeros(num_pages, page_size, kv_heads, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(num_pages, page_size, kv_heads, dim_v, dtype=dtype, device=device)
        self.k_scale, self.v_scale = scales(k_scale, v_scale, self.k, max_batch)
        self._owned = True
        self._known = True  # the host knows the longest length, not only a bound of it
        self._lengths = [0] * max_batch
        self._pages: list[list[int]] = [[] for _ in range(max_batch)]
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._publish_pages()
        self._publish_lengths()

    @classmethod
    def from_tensors(
        cls,
        k_pages: Tensor,
        v_pages: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        *,
        longest: int | None = None,
        k_scale: Tensor | float | None = None,
        v_scale: Tensor | float | None = None,
    ) -> PagedKVCache:
        """Wrap caller-owned pages [P, page_size, Hkv, D(v)] and block_table [B, pages] int32.

        Appends write into the pages that the table names; cache_seqlens [B] int32 stays as it is,
        and so does the table: reserve, release and reorder are the caller's. `longest`: the
        longest of cache_seqlens, where the host knows it. `k_scale`, `v_scale`: as in the
        constructor.

        Values are checked on the CPU only: on an accelerator reading them would make the host
        wait. There, and without `longest`, keeping appends within the table is the caller's part.
        """
        check_store("pages", k_pages, v_pages)
        check_index("cache_seqlens", cache_seqlens, (None,), k_pages)
        check_index("block_table", block_table, (cache_seqlens.shape[0], None), k_pages)
        cache = cls.__new__(cls)
        cache.k, cache.v = k_pages, v_pages
        cache.k_scale, cache.v_scale = scales(k_scale, v_scale, k_pages, cache_seqlens.shape[0])
        cache._owned = False
        cache.block_table, cache.seqlens = block_table, cache_seqlens
        bound = host_bound(cache_seqlens, cache.max_seqlen)
        known = longest if bound is None else bound
        cache._known = known is not None
        cache._longest = cache.max_seqlen if known is None else known
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
    def max_seqlen(self) -> int:
        """Tokens that one sequence has room for: all pages, or all columns of a caller's table."""
        pages = self.k.shape[0] if self._owned else self.block_table.shape[1]
        return pages * self.page_size

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
        """Bytes of the pages that sequences own, shared pages counted once.

        Over caller-owned pages, the bytes that hold tokens; reading the lengths then waits for an
        accelerator.
        """
        per_page = self.memory_bytes // max(1, self.k.shape[0])
        if not self._owned:
            return int(self.seqlens.sum()) * (per_page // max(1, self.page_size))
        return (self.k.shape[0] - len(self._free)) * per_page

    def reserve(self, index: int, tokens: int) -> None:
        """Allocate the pages that `tokens` more tokens of sequence `index` need.

        Appending them then can't fail, unless `reorder` shares the pages first. Raises
        CacheFullError, with nothing allocated, when there are too few free pages.
        """
        self._require_owned("reserve")
        self._check_index(index)
        if tokens < 0:
            raise ArgumentError("tokens", "must be at least 0", tokens)
        self._grow({index: tokens})

    def release(self, index: int) -> None:
        """Forget sequence `index` and give its pages back."""
        self._require_owned("release")
        self._check_index(index)
        for page in self._pages[index]:
            self._drop(page)
        self._pages[index], self._lengths[index] = [], 0
        self._publish_pages()
        self._publish_lengths()

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv] after each sequence's tokens.

        Raises CacheFullError, with nothing written or allocated, when pages run out.
        """
        check_new_tokens(k, v, self.k, self.v, self.batch)
        count = k.shape[1]
        if self._owned:
            self._grow(dict.fromkeys(range(self.batch), count))
            self._lengths = [length + count for length in self._lengths]
        elif torch.compiler.is_compiling():
            self._known, self._longest = False, self.max_seqlen
        elif self._known and self._longest + count > self.max_seqlen:
            raise CacheFullError(count, self.max_seqlen - self._longest, "tokens per sequence")
        slots = new_slots(self.seqlens, count)
        pages = self.block_table.long().gather(1, slots // self.page_size)
        if not self._owned:
            _check_pages(pages, self.k.shape[0])
        with torch.no_grad():
            self.k[pages, slots % self.page_size] = stored(k, self.k_scale, self.k.dtype)
            self.v[pages, slots % self.page_size] = stored(v, self.v_scale, self.v.dtype)
        # A new tensor: caller-owned lengths are never changed.
        self.seqlens = self.seqlens + count
        self._longest = min(self._longest + count, self.max_seqlen)

    def view(self) -> CacheView:
        """The cache as attention reads it."""
        table = self.block_table
        room = table.shape[1] * self.page_size
        longest = room if torch.compiler.is_compiling() else self._longest
        return CacheView(
            self.k,
            self.v,
            self.seqlens,
            longest,
            block_table=table,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )

    def crop(self, max_length: int) -> None:
        """Forget tokens past max_length of every sequence and free the pages they alone used."""
        if max_length < 0:
            raise ArgumentError("max_length", "must be at least 0", max_length)
        self.seqlens = self.seqlens.clamp(max=max_length)
        self._longest = min(self._longest, max_length)
        if not self._owned:
            return
        keep = -(-max_length // self.page_size)
        for index, pages in enumerate(self._pages):
            for page in pages[keep:]:
                self._drop(page)
            del pages[keep:]
            self._lengths[index] = min(self._lengths[index], max_length)
        self._publish_pages()

    def reorder(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was; pages are shared, not copied.

        beam_idx [B] integers; the host reads them, so on an accelerator it waits.
        """
        self._require_owned("reorder")
        check_beams(beam_idx, self.batch)
        order = beam_idx.tolist()
        pages = [list(self._pages[source]) for source in order]
        for page in (page for owned in pages for page in owned):
            self._references[page] += 1
        for page in (page for owned in self._pages for page in owned):
            self._drop(page)
        self._pages = pages
        self._lengths = [self._lengths[source] for source in order]
        if self.k_scale is not None and self.v_scale is not None:
            index = beam_idx.to(self.k.device).long()
            self.k_scale, self.v_scale = self.k_scale[index], self.v_scale[index]
        self._publish_pages()
        self._publish_lengths()

    def reset(self) -> None:
        """Forget every token and free every page."""
        self.crop(0)
        self._known = True

    def _grow(self, tokens: dict[int, int]) -> None:
        """Own, alone, every page that these new tokens will be written to; all or nothing."""
        size = self.page_size
        fresh: list[int] = []
        replaced: list[tuple[int, int]] = []
        claims: dict[int, int] = {}
        for index, count in tokens.items():
            length, pages = self._lengths[index], self._pages[index]
            needed = -(-(length + count) // size) if count else 0
            fresh += [index] * (needed - len(pages))
            for slot in range(length // size, min(needed, len(pages))):
                page = pages[slot]
                # The last of the sequences that share a page may keep it.
                if self._references[page] - claims.get(page, 0) > 1:
                    claims[page] = claims.get(page, 0) + 1
                    replaced.append((index, slot))
        if len(fresh) + len(replaced) > len(self._free):
            raise CacheFullError(len(fresh) + len(replaced), len(self._free), "pages")
        for index in fresh:
            self._pages[index].append(self._take())
        self._replace(replaced)
        if fresh or replaced:
            self._publish_pages()

    def _replace(self, places: list[tuple[int, int]]) -> None:
        """Give these (sequence, slot) a page of their own with what the shared one holds."""
        shared = [self._pages[index][slot] for index, slot in places]
        own = [self._take() for _ in places]
        for (index, slot), old, new in zip(places, shared, own, strict=True):
            self._pages[index][slot] = new
            self._drop(old)
        if places:
            target, source = self._sent(own).long(), self._sent(shared).long()
            self.k[target], self.v[target] = self.k[source], self.v[source]

    def _take(self) -> int:
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _drop(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free.append(page)

    def _publish_pages(self) -> None:
        """The page lists as the tensor that attention reads; entries of no page are 0."""
        longest = max(len(pages) for pages in self._pages)
        # Widths are powers of two: what a kernel compiles or looks up by shape changes seldom.
        width = 1 << max(0, longest - 1).bit_length()
        rows = [pages + [0] * (width - len(pages)) for pages in self._pages]
        self.block_table = self._sent(rows)

    def _publish_lengths(self) -> None:
        self.seqlens = self._sent(self._lengths)
        self._longest = max(self._lengths)

    def _sent(self, numbers: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32).to(self.k.device, non_blocking=True)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.batch:
            raise ArgumentError("index", f"must lie in 0 .. {self.batch - 1}", index)

    def _require_owned(self, operation: str) -> None:
        if not self._owned:
            raise ArgumentError(
                operation, "needs a cache that owns its pages, not one made by from_tensors"
            )


def _check_pages(pages: Tensor, count: int) -> None:
    given = host_values(pages.flatten())
    if given is not None and any(not 0 <= page < count for page in given):
        raise ArgumentError("block_table", f"must hold pages from 0 to {count - 1}", given)
