"""Attention over keys and values that are partly on a device and partly in host memory, exactly.

    softmax over all keys  =  merge of (out, lse) over   what lies on the device,
                                                         what the CPU attends to where it lies,
                                                         what is streamed to the device

The three run at once: the CPU's worker has the queries before the device is given its share, and
the streamed pages of the next layer are under way while this one is computed. Waiting is by events.
Source of the merge: FlashAttention (arXiv 2205.14135), section 3.1, written for log-sum-exp.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from portattn.arguments import as_scores_shape
from portattn.errors import ArgumentError, OffloadTimeoutError, ShapeError
from portattn.offload import scaled
from portattn.offload.link import DONE, Event
from portattn.offload.metrics import Metrics
from portattn.offload.partial import (
    Call,
    State,
    columns,
    exact,
    exact_dtype,
    merged,
    part,
    part_pads,
    scores_of,
    with_sinks,
)
from portattn.offload.staging import Staged, Staging
from portattn.offload.store import HostKVStore
from portattn.offload.worker import Worker

# More rows of queries than the CPU's decode kernel takes are faster streamed.
MAX_CPU_ROWS = 16
# A step's streamed blocks during prefill; two of them are on the device.
_BLOCK_BYTES = 256 * 2**20


class Share(NamedTuple):
    """What fraction of a layer's keys each engine takes; they add up to 1."""

    resident: float
    computed: float
    streamed: float

    @property
    def streamed_of_host(self) -> float:
        """The streamed fraction of what is in host memory."""
        host = self.computed + self.streamed
        return self.streamed / host if host else 0.0


@dataclass
class _Buffers:
    """The host's side of one layer in flight."""

    q: Tensor
    out: Tensor
    lse: Tensor
    returned: Event = DONE


class OffloadEngine:
    """Attends to a HostKVStore with the device and the CPU together.

    shares: one per layer, or one for all; only how host pages divide between the CPU and the link
    is read from it, the store decides what stays on the device. timeout: seconds after which a
    step that doesn't advance is given up. max_cpu_rows: with more query rows host pages are
    streamed.
    """

    def __init__(
        self,
        store: HostKVStore,
        shares: Share | Sequence[Share] = Share(0.0, 1.0, 0.0),  # noqa: B008 - a constant
        *,
        timeout: float = 60.0,
        max_cpu_rows: int = MAX_CPU_ROWS,
    ) -> None:
        shares = [shares] * store.layers if isinstance(shares, Share) else list(shares)
        if len(shares) != store.layers:
            raise ArgumentError("shares", f"must be one for each of {store.layers} layers", shares)
        self.store = store
        self.metrics = Metrics()
        self._shares = shares
        self._max_cpu_rows = max_cpu_rows
        self._staging = Staging(store)
        self._worker: Worker[State] = Worker(timeout)
        self._buffers: dict[tuple[int, torch.Size, torch.dtype], _Buffers] = {}
        self._doing = "nothing"

    def close(self) -> None:
        """End the worker's thread."""
        self._worker.close()

    def __enter__(self) -> OffloadEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def attend(
        self,
        layer: int,
        q: Tensor,
        *,
        causal: bool = True,
        softmax_scale: float | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        leftpad: Tensor | None = None,
    ) -> State:
        """Attention of q [B, T, H, D], the layer's newest T positions, over all its keys.

        bias and mask broadcast to [B, H, T, length]; leftpad [B] int32 on the CPU: keys before it
        are padding. Returns out [B, T, H, Dv] in q's dtype and lse [B, H, T] float32, both on the
        device. Raises what the worker raised, OffloadTimeoutError for a step that hangs.
        """
        store = self.store
        _, host, _ = store.parts(layer)
        self._check(layer, q)
        call = Call(
            q.detach(),
            causal and q.shape[1] > 1,
            q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale),
            softcap,
            as_scores_shape("bias", bias),
            as_scores_shape("mask", mask),
            leftpad,
        )
        pages = host // store.page_size
        on_cpu = q.shape[1] <= self._max_cpu_rows
        streamed = self._streamed_pages(layer) if on_cpu else pages
        staged = None
        if on_cpu and streamed:
            # Where the CPU has no share, it isn't given the newest pages either.
            staged = self._staging.take(layer, streamed, exactly=streamed == pages)
        if staged is not None:
            streamed = staged.last
        computed = self._submit(layer, call, streamed) if on_cpu and streamed < pages else None
        try:
            if on_cpu:
                self._prefetch((layer + 1) % store.layers)
            state = self._resident(layer, call)
            if staged is not None:
                state = merged(state, self._streamed(layer, call, staged))
            elif not on_cpu:
                state = self._streamed_blocks(layer, call, state, pages)
        finally:
            # Also after a failure: the next step's buffers must be nobody else's.
            result = None if computed is None else self._collect(layer, call, computed)
        if result is not None:
            state = merged(state, result)
        if sinks is not None:
            state = with_sinks(state, sinks)
        self.metrics.steps += layer == store.layers - 1
        self.metrics.worker_idle_seconds = self._worker.idle_seconds
        return state[0].to(q.dtype), state[1]

    def _check(self, layer: int, q: Tensor) -> None:
        prefix, host, tail = self.store.parts(layer)
        if q.dim() != 4 or q.shape[0] != self.store.batch:
            raise ShapeError("q", f"must be [{self.store.batch}, T, H, D]", tuple(q.shape))
        newest = tail if host else prefix + tail
        if q.shape[1] > max(newest, 1):
            raise ShapeError(
                "q", f"must have no more rows than the {newest} newest keys", tuple(q.shape)
            )

    def _streamed_pages(self, layer: int) -> int:
        pages = self.store.parts(layer)[1] // self.store.page_size
        return round(pages * self._shares[layer].streamed_of_host)

    def _prefetch(self, layer: int) -> None:
        moved = self._staging.prefetch(layer, self._streamed_pages(layer))
        self.metrics.prefetched_bytes += moved

    def _resident(self, layer: int, call: Call) -> State:
        """The device's own part: the first keys and the newest."""
        prefix, host, tail = self.store.parts(layer)
        k, v = self.store.resident(layer)
        length = prefix + host + tail
        pads = call.leftpad
        if pads is not None:
            pads = pads.clamp(max=prefix) + (pads - prefix - host).clamp(min=0)
            pads = pads.to(torch.int32).to(k.device, non_blocking=True)
        scores = [
            columns(t, length, ((0, prefix), (prefix + host, length)))
            for t in (call.bias, call.mask)
        ]
        self.metrics.resident_bytes += (prefix + tail) * self.store.batch * self.store.token_bytes
        dense = self._is_prefill(call)
        return part(call, k, v, scores, pads, causal=call.causal, dense=dense)

    def _is_prefill(self, call: Call) -> bool:
        return call.q.shape[1] > self._max_cpu_rows and call.leftpad is None

    def _streamed(self, layer: int, call: Call, staged: Staged) -> State:
        """Pages that were uploaded, attended to on the device."""
        size = self.store.page_size
        prefix, _, _ = self.store.parts(layer)
        start, stop = prefix + staged.first * size, prefix + staged.last * size
        self.store.link.before_computation(staged.ready)
        scores = [columns(t, self.store.length(layer), ((start, stop),)) for t in scores_of(call)]
        pads = part_pads(call.leftpad, start, stop, staged.k.device)
        self.metrics.streamed_bytes += (
            (stop - start) * self.store.batch * self.store.host_token_bytes
        )
        if staged.scales is not None:
            staged = self._as_floats(staged)
        if self._is_prefill(call) and staged.k.device.type != "cpu":
            # Many rows read each key often: put side by side, the forward kernels take them.
            k, v = (t[staged.table.long()].flatten(1, 2) for t in (staged.k, staged.v))
            return part(call, k, v, scores, None, dense=True)
        return part(call, staged.k, staged.v, scores, pads, table=staged.table, keys=stop - start)

    def _as_floats(self, staged: Staged) -> Staged:
        """Rounded pages in the store's dtype: the link was the narrow place, not this."""
        assert staged.scales is not None
        pairs = zip((staged.k, staged.v), staged.scales, strict=True)
        k, v = (
            scaled.floats(pages.transpose(1, 2), scale, self.store.dtype).transpose(1, 2)
            for pages, scale in pairs
        )
        return replace(staged, k=k, v=v, scales=None)

    def _streamed_blocks(self, layer: int, call: Call, state: State, pages: int) -> State:
        """Every host page through the two buffers, the next block under way during this one."""
        per_page = self.store.batch * self.store.page_size * self.store.host_token_bytes
        step = max(1, _BLOCK_BYTES // max(1, per_page))
        following = self._staging.upload(layer, 0, min(step, pages)) if pages else None
        while following is not None:
            staged = following
            last = min(staged.last + step, pages)
            more = staged.last < pages
            following = self._staging.upload(layer, staged.last, last) if more else None
            state = merged(state, self._streamed(layer, call, staged))
        return state

    def _submit(self, layer: int, call: Call, first: int) -> Future[State]:
        """Have the CPU attend to pages `first` and on."""
        store, link = self.store, self.store.link
        k, v, table, flushed = store.hosted(layer)
        buffers = self._buffers_for(layer, call, v.shape[-1])
        # On its way before the device is given more to do.
        arrived = link.download(buffers.q, exact(call.q).contiguous(), urgent=True)
        prefix, host, _ = store.parts(layer)
        start, stop = prefix + first * store.page_size, prefix + host
        length = store.length(layer)
        scores = [columns(t, length, ((start, stop),)) for t in scores_of(call)]
        scores = [None if t is None else t.to("cpu") for t in scores]
        pads = part_pads(call.leftpad, start, stop, torch.device("cpu"))
        table = table[:, first:]
        self.metrics.computed_bytes += (stop - start) * store.batch * store.host_token_bytes
        scales = store.scales(layer)

        def job() -> State:
            self._await(arrived, f"layer {layer}: the queries on their way to the host")
            self._await(flushed, f"layer {layer}: pages on their way to the host")
            self._await(buffers.returned, f"layer {layer}: results on their way to the device")
            self._doing = f"layer {layer}: the CPU attending to {stop - start} keys"
            begun = time.perf_counter()
            local = Call(buffers.q, False, call.softmax_scale, call.softcap, None, None, None)
            if scales is None:
                out, lse = part(local, k, v, scores, pads, table=table, keys=stop - start)
            else:
                out, lse = scaled.attend(local, k, v, scales, scores, pads, table)
            buffers.out.copy_(out)
            buffers.lse.copy_(lse)
            self.metrics.host_seconds += time.perf_counter() - begun
            return buffers.out, buffers.lse

        return self._worker.submit(job)

    def _await(self, event: Event, what: str) -> None:
        self._doing = what
        if not event.done(self._worker.timeout):
            raise OffloadTimeoutError(f"no answer in {self._worker.timeout:g} s: {what}")

    def _collect(self, layer: int, call: Call, computed: Future[State]) -> State:
        """The CPU's part, on the device."""
        begun = time.perf_counter()
        out, lse = self._worker.result(computed, lambda: self._doing)
        self.metrics.wait_seconds += time.perf_counter() - begun
        link, device = self.store.link, self.store.device
        on_device = torch.empty_like(out, device=device), torch.empty_like(lse, device=device)
        link.upload(on_device[0], out, urgent=True)
        event = link.upload(on_device[1], lse, urgent=True)
        self._buffers_for(layer, call, out.shape[-1]).returned = event
        link.before_computation(event)
        return on_device

    def _buffers_for(self, layer: int, call: Call, dim_v: int) -> _Buffers:
        """Two sets in turn, of the step's shape."""
        q = exact_dtype(call.q.dtype)
        batch, rows, heads, _ = call.q.shape
        key = layer % 2, call.q.shape, q
        if key not in self._buffers:
            if len(self._buffers) > 8:
                self._buffers.clear()
            make = self.store.link.host_buffer
            self._buffers[key] = _Buffers(
                make(tuple(call.q.shape), q),
                make((batch, rows, heads, dim_v), q),
                make((batch, heads, rows), q),
            )
        return self._buffers[key]


def coop_decode(
    q: Tensor,
    store: HostKVStore,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    layer: int = 0,
    engine: OffloadEngine | None = None,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    leftpad: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | State:
    """Append k and v to a layer of a store, then attend to all that it holds, causally.

    q [B, T, H, D]; k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv] are optional. The other arguments
    are those of `OffloadEngine.attend`. Give the same engine to all steps: without one, a thread
    is started for this call. Returns out [B, T, H, Dv], with `return_lse` also lse [B, H, T].

    Raises HostKVOutOfMemory, with the store unchanged, when k and v find no room.
    """
    if (k is None) != (v is None):
        raise ArgumentError("k" if k is None else "v", "k and v must be given together")
    own = OffloadEngine(store) if engine is None else engine
    try:
        if k is not None and v is not None:
            store.append(layer, k, v)
        out, lse = own.attend(
            layer,
            q,
            softmax_scale=softmax_scale,
            softcap=softcap,
            sinks=sinks,
            bias=bias,
            mask=mask,
            leftpad=leftpad,
        )
    finally:
        if engine is None:
            own.close()
    return (out, lse) if return_lse else out
