"""Keys and values of live sequences, divided between a device and host memory.

Of each layer, in the order of the tokens:

    [0, prefix)               on the device, kept there
    [prefix, prefix + host)   in host pages, whole ones, never written again
    [prefix + host, length)   on the device: the tail, flushed to host pages in batches

The device's two parts lie side by side in one buffer, so one kernel call reads both: softmax
doesn't mind the order of keys, and the newest stay last, where a causal mask's diagonal is.
Sequences of unequal lengths are padded on the left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from portattn.cache.view import SCALED, check_sizes
from portattn.errors import (
    ArgumentError,
    DtypeError,
    HostKVOutOfMemory,
    InterruptedStepError,
    ShapeError,
)
from portattn.offload.link import DONE, Event, Link, link_for
from portattn.offload.pages import HostPages
from portattn.offload.scaled import Scales, floats, quantized

_FIRST_ROWS = 256


@dataclass
class _Layer:
    """One layer's lengths and its device rows [B, Hkv, capacity, D(v)]."""

    prefix: int = 0
    host: int = 0
    tail: int = 0
    k: Tensor | None = None
    v: Tensor | None = None
    flushed: Event = field(default=DONE)

    @property
    def resident(self) -> int:
        return self.prefix + self.tail

    @property
    def length(self) -> int:
        return self.prefix + self.host + self.tail


class HostKVStore:
    """The keys and values of `layers` layers of one shape, for `batch` sequences.

    device_tokens: tokens a sequence keeps on the device for good, the first ones. flush_tokens:
    the tail's length from which its full pages leave for the host. limit_bytes: what host memory
    may be taken at most; what the machine and the cgroup leave, without it. Memory is taken in
    slabs as it is needed, or at once for `reserve_tokens` a sequence. host_dtype: int8 or
    float8_e4m3fn halve what is kept there of 16-bit keys, rounded; `rounding_error` says how much
    that lost.

    Raises HostKVOutOfMemory before anything is written; the store then holds what it held.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        head_dim: int,
        *,
        head_dim_v: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        device_tokens: int = 0,
        page_size: int = 128,
        flush_tokens: int | None = None,
        limit_bytes: int | None = None,
        reserve_tokens: int = 0,
        link: Link | None = None,
        host_dtype: torch.dtype | None = None,
    ) -> None:
        dim_v = head_dim if head_dim_v is None else head_dim_v
        flush = 2 * page_size if flush_tokens is None else flush_tokens
        check_sizes(layers=layers, batch=batch, kv_heads=kv_heads, head_dim=head_dim)
        check_sizes(head_dim_v=dim_v, page_size=page_size)
        if flush < page_size:
            raise ArgumentError("flush_tokens", f"must be at least a page, {page_size}", flush)
        if device_tokens < 0:
            raise ArgumentError("device_tokens", "must be at least 0", device_tokens)
        self.host_dtype = dtype if host_dtype is None else host_dtype
        if self.host_dtype not in (dtype, *SCALED):
            raise ArgumentError("host_dtype", "must be int8 or float8_e4m3fn", host_dtype)
        self.kv_heads, self.dims, self.dtype = kv_heads, (head_dim, dim_v), dtype
        self.device = torch.device(device)
        self.link = link_for(self.device) if link is None else link
        self.device_tokens, self.page_size, self.flush_tokens = device_tokens, page_size, flush
        self._first_rows = max(_FIRST_ROWS, reserve_tokens)
        self.version = 0  # grows when host pages change their meaning
        self._layers = [_Layer() for _ in range(layers)]
        self._pages: list[list[int]] = [[] for _ in range(batch)]
        self._table: Tensor | None = None
        shapes = [(kv_heads, page_size, dim) for dim in self.dims]
        self._host = HostPages(layers, shapes, self.host_dtype, limit_bytes, self.link)
        self._lost = torch.zeros(2, 2, dtype=torch.float64, device=self.device)
        if reserve_tokens > device_tokens:
            pages = batch * -(-(reserve_tokens - device_tokens) // page_size)
            if pages > self._host.room()[0]:
                needed, available = pages * self.page_bytes, self._host.available_bytes
                raise HostKVOutOfMemory(needed, available, self.max_length, self._host.room()[1])
            self._host.commit(pages)

    @property
    def batch(self) -> int:
        """Sequences."""
        return len(self._pages)

    @property
    def layers(self) -> int:
        """Layers."""
        return len(self._layers)

    @property
    def page_bytes(self) -> int:
        """Bytes that one page takes over all layers, keys and values."""
        return self._host.page_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one sequence in one layer, keys and values."""
        return self.kv_heads * sum(self.dims) * self.dtype.itemsize

    @property
    def host_token_bytes(self) -> int:
        """The same of what is kept on the host."""
        return self.kv_heads * sum(self.dims) * self.host_dtype.itemsize

    @property
    def host_bytes(self) -> int:
        """Host memory taken."""
        return self._host.taken * self.page_bytes

    @property
    def pages(self) -> tuple[int, int]:
        """Host pages in use, and those that memory was taken for."""
        return self._host.taken - self._host.free, self._host.taken

    @property
    def unpinned(self) -> str | None:
        """Why host memory isn't page-locked; None where it is or needn't be."""
        return self._host.unpinned

    @property
    def max_length(self) -> int:
        """The most tokens that every sequence can have, by the limits as they are now."""
        pages = (self._host.taken + self._host.room()[0]) // self.batch
        return self.device_tokens + pages * self.page_size + self.flush_tokens

    def length(self, layer: int = 0) -> int:
        """Tokens that a layer holds of each sequence."""
        return self._layers[layer].length

    def parts(self, layer: int) -> tuple[int, int, int]:
        """Tokens of (prefix, host, tail)."""
        state = self._layers[layer]
        return state.prefix, state.host, state.tail

    def resident(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values on the device: views [B, prefix + tail, Hkv, D(v)]."""
        state = self._layers[layer]
        k, v = self._rows(state, 0)
        return tuple(t[:, :, : state.resident].transpose(1, 2) for t in (k, v))  # type: ignore[return-value]

    def hosted(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Event]:
        """Host pages of keys and values [P, page_size, Hkv, D(v)], the table [B, pages] int32 on
        the CPU, and the event after which the pages may be read."""
        k, v = (plane.transpose(1, 2) for plane in self._host.planes[layer])
        state = self._layers[layer]
        return k, v, self.table[:, : state.host // self.page_size], state.flushed

    def scales(self, layer: int) -> Scales | None:
        """What host pages' keys and values are multiplied by, [P, Hkv]; None without rounding."""
        if not self._host.scaled:
            return None
        k, v = self._host.scales[layer]
        return k, v

    @property
    def rounding_error(self) -> tuple[float, float]:
        """Root mean square of what host_dtype lost of keys and of values, over theirs."""
        lost, there = self._lost.cpu().clamp(min=1e-300).unbind(1)
        k, v = (lost / there).sqrt().tolist() if self._host.scaled else (0.0, 0.0)
        return k, v

    @property
    def table(self) -> Tensor:
        """Which page holds which tokens: [B, pages] int32 on the CPU, for all layers."""
        if self._table is None:
            self._table = torch.tensor(self._pages, dtype=torch.int32).view(self.batch, -1)
        return self._table

    def runs(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """(place, first page, count) of the copies that move these pages."""
        return self._host.runs(ids)

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Add k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv] to a layer, after flushing its tail.

        Raises HostKVOutOfMemory when the tail's pages find no room, InterruptedStepError when
        layer 0 would begin a step that another layer hasn't finished.
        """
        self._check_new(k, v)
        if layer == 0 and len({state.length for state in self._layers}) > 1:
            raise InterruptedStepError(
                "the layers hold different lengths, so the last step was cut short: "
                "call recover() to go back to the last whole one"
            )
        state = self._layers[layer]
        self._flush(layer)
        count, start = k.shape[1], state.resident
        rows = self._rows(state, start + count)
        for row, new in zip(rows, (k, v), strict=True):
            row[:, :, start : start + count].copy_(new.detach().transpose(1, 2))
        if state.host == 0:
            # Until pages leave, nothing separates the two parts of the device's buffer.
            filled = min(self.device_tokens, start + count)
            state.prefix, state.tail = filled, start + count - filled
        else:
            state.tail += count

    def _check_new(self, k: Tensor, v: Tensor) -> None:
        for name, new, dim in (("k", k, self.dims[0]), ("v", v, self.dims[1])):
            expected = (self.batch, k.shape[1], self.kv_heads, dim)
            if tuple(new.shape) != expected:
                raise ShapeError(name, f"must be {expected}", tuple(new.shape))
            if new.dtype != self.dtype:
                raise DtypeError(name, f"must have the store's dtype, {self.dtype}", new.dtype)

    def _rows(self, state: _Layer, needed: int) -> tuple[Tensor, Tensor]:
        """A layer's device rows with room for `needed` tokens."""
        have = 0 if state.k is None else state.k.shape[2]
        if state.k is None or state.v is None or needed > have:
            # Doubled, but not past what stays on the device.
            size = max(needed, min(max(2 * have, self._first_rows), self._usual))
            state.k, state.v = (
                self._grown(old, size, dim, state.resident)
                for old, dim in zip((state.k, state.v), self.dims, strict=True)
            )
        return state.k, state.v

    def _grown(self, old: Tensor | None, size: int, dim: int, used: int) -> Tensor:
        shape = (self.batch, self.kv_heads, size, dim)
        new = torch.empty(shape, dtype=self.dtype, device=self.device)
        if old is not None:
            new[:, :, :used] = old[:, :, :used]
        return new

    def _flush(self, layer: int) -> None:
        """Move the tail's full pages to the host if it has grown long enough."""
        state = self._layers[layer]
        if state.tail < self.flush_tokens:
            return
        first = state.host // self.page_size
        last = first + self._allocate(first, state.tail // self.page_size, state.tail)
        count = (last - first) * self.page_size
        start, stop = state.prefix, state.prefix + count
        ids = [row[page] for page in range(first, last) for row in self._pages]
        for which, row in enumerate((state.k, state.v)):
            assert row is not None
            batch, heads, _, dim = row.shape
            block = row[:, :, start:stop].view(batch, heads, last - first, self.page_size, dim)
            # A copy even where a view would do: the rows move while it is on its way.
            packed = block.permute(2, 0, 1, 3, 4).clone(memory_format=torch.contiguous_format)
            self._send(layer, which, ids, packed.flatten(0, 1))
            # Forward within one buffer: the copy must not overlap what it reads.
            row[:, :, start : state.resident - count] = row[:, :, stop : state.resident].clone()
        state.host += count
        state.tail -= count
        if state.k is not None and state.k.shape[2] > 2 * self._usual:
            self._shrink(state)

    def _send(self, layer: int, which: int, ids: Sequence[int], packed: Tensor) -> None:
        """Pages [P, Hkv, page_size, D(v)] to their places on the host."""
        moves = [(self._host.planes[layer][which], packed)]
        if self._host.scaled:
            kept, scale, lost = quantized(packed, self.host_dtype)
            self._lost[which] += lost
            moves = [(self._host.scales[layer][which], scale), (moves[0][0], kept)]
        for plane, pages in moves:
            for place, page, run in self._host.runs(ids):
                target, source = plane[page : page + run], pages[place : place + run]
                self._layers[layer].flushed = self.link.download(target, source)

    def _held(self, layer: int, which: int, ids: Tensor) -> Tensor:
        """Host pages [..., Hkv, page_size, D(v)] in the store's dtype, copied."""
        pages = self._host.planes[layer][which][ids]
        scales = self.scales(layer)
        return pages if scales is None else floats(pages, scales[which][ids], self.dtype)

    @property
    def _usual(self) -> int:
        return self.device_tokens + self.flush_tokens + self.page_size

    def _shrink(self, state: _Layer) -> None:
        """Give back what a long chunk took on the device."""
        size = max(self._usual, state.resident)
        state.k, state.v = (
            self._grown(old, size, dim, state.resident)
            for old, dim in zip((state.k, state.v), self.dims, strict=True)
        )

    def _allocate(self, first: int, wanted: int, tail: int) -> int:
        """Pages first .. first + n of every sequence, n as near `wanted` as there is room for.

        All layers share the pages' places, so only the first layer of a step can be refused.
        """
        have = len(self._pages[0]) - first
        missing = (wanted - have) * self.batch
        if self._host.scaled and missing > self._host.free:
            for state in self._layers:
                _wait(state.flushed)  # scales move when memory is taken
        self._host.provide(missing)
        count = min(wanted, have + self._host.free // self.batch)
        if tail - count * self.page_size >= self.flush_tokens or not count:
            needed, available = missing * self.page_bytes, self._host.available_bytes
            raise HostKVOutOfMemory(needed, available, self.max_length, self._host.room()[1])
        for _ in range(count - have):
            for row in self._pages:
                row.append(self._host.take())
        if count > have:
            self._table = None
        return count

    def ordered(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of a layer's keys and values on the device, [B, length, Hkv, D(v)] in order."""
        state = self._layers[layer]
        _, _, table, flushed = self.hosted(layer)
        _wait(flushed)
        made = []
        for which, row in enumerate(self.resident(layer)):
            # [B, pages, Hkv, page_size, D]
            held = self._held(layer, which, table.long()).transpose(2, 3)
            held = held.flatten(1, 2).to(self.device)
            made.append(torch.cat([row[:, : state.prefix], held, row[:, state.prefix :]], dim=1))
        return made[0], made[1]

    def crop(self, length: int) -> None:
        """Forget the tokens past `length` in every layer."""
        if length < 0:
            raise ArgumentError("length", "must be at least 0", length)
        for layer in range(self.layers):
            self._crop(layer, length)
        kept = max(state.host for state in self._layers) // self.page_size
        for row in self._pages:
            for page in row[kept:]:
                self._host.drop(page)
            del row[kept:]
        self._table = None
        self.version += 1

    def _crop(self, layer: int, length: int) -> None:
        state = self._layers[layer]
        if length >= state.length:
            return
        if length >= state.prefix + state.host:
            state.tail = length - state.prefix - state.host
            return
        past = max(0, length - state.prefix)
        whole = past // self.page_size * self.page_size
        if past > whole:
            # Host pages are whole: what is kept of the last one goes back to the device.
            self._bring_back(layer, whole // self.page_size, past - whole)
        state.prefix = min(state.prefix, length)
        state.host, state.tail = whole, past - whole

    def _bring_back(self, layer: int, page: int, count: int) -> None:
        state = self._layers[layer]
        _wait(state.flushed)
        rows = self._rows(state, state.prefix + count)
        ids = self.table[:, page].long()
        for which, row in enumerate(rows):
            kept = self._held(layer, which, ids)[:, :, :count].to(self.device)
            row[:, :, state.prefix : state.prefix + count] = kept

    def recover(self) -> None:
        """Go back to the last step that every layer finished, after one that was cut short."""
        self.crop(min(state.length for state in self._layers))

    def gather(self, rows: Sequence[int]) -> None:
        """Sequence b becomes what sequence rows[b] was; their number may change.

        Host pages are shared, not copied.
        """
        if any(not 0 <= row < self.batch for row in rows):
            raise ArgumentError("rows", f"must lie in 0 .. {self.batch - 1}", list(rows))
        pages = [list(self._pages[row]) for row in rows]
        for page in (page for owned in pages for page in owned):
            self._host.share(page)
        for page in (page for owned in self._pages for page in owned):
            self._host.drop(page)
        self._pages, self._table = pages, None
        self.version += 1
        index = torch.tensor(list(rows), dtype=torch.int64).to(self.device, non_blocking=True)
        for state in self._layers:
            if state.k is not None and state.v is not None:
                state.k, state.v = state.k.index_select(0, index), state.v.index_select(0, index)

    def reset(self) -> None:
        """Forget every token; the memory is kept for what comes."""
        self.crop(0)
        for state in self._layers:
            state.k = state.v = None

    def close(self) -> None:
        """Give the memory back. The store can't be used after that."""
        self._host.close()


def _wait(event: Event) -> None:
    event.done(math.inf)
