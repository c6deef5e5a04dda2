"""A transformers cache whose keys and values may exceed the device's memory.

`update` hands the model a handle in place of keys and values: a tensor with their shape and no
data. portattn's attention function opens it and attends to the parts where they lie. Any other
operation on it gets the whole, put together on the device: right, slow, counted, warned of once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from portattn.errors import ArgumentError, IntegrationError
from portattn.offload import HostKVStore, OffloadEngine, Share
from portattn.offload.machine import HOST_POLICIES, shares_of_host
from portattn.offload.scaled import host_dtype

log = logging.getLogger("portattn")

# Of the device's free memory; the rest is for activations and for pages under way.
_OF_FREE = 0.7


class HostKV(Tensor):
    """Keys or values [B, Hkv, length, D] of one layer, as they were when the handle was made."""

    cache: HostOffloadCache
    place: int
    which: int

    # Operations go straight to __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, cache: HostOffloadCache, place: int, which: int) -> HostKV:
        store = cache.store
        shape = (store.batch, store.kv_heads, store.length(place), store.dims[which])
        handle: HostKV = Tensor._make_wrapper_subclass(
            cls, shape, dtype=store.dtype, device=store.device
        )
        handle.cache, handle.place, handle.which = cache, place, which
        return handle

    def whole(self) -> Tensor:
        """The keys or values themselves, on the device."""
        return self.cache._materialise(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"HostKV({tuple(self.shape)}, layer {self.place}, {'kv'[self.which]})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        args, kwargs = tree_map_only(HostKV, HostKV.whole, (args, kwargs or {}))
        return func(*args, **kwargs)


class HostLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One full-attention layer; what concerns all layers at once is the cache's."""

    is_sliding = False
    is_croppable = True

    def __init__(self, cache: HostOffloadCache, place: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache, self._place = cache, place

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the store at the first keys of the first layer."""
        self._cache._begin(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep key_states [B, Hkv, Snew, D] and value_states; handles of all that is held."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        k, v = key_states.transpose(1, 2), value_states.transpose(1, 2)
        self._cache.store.append(self._place, k, v)
        self._cache._added(self._place)
        return HostKV(self._cache, self._place, 0), HostKV(self._cache, self._place, 1)

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self._cache.store.length(self._place) if self._cache.has_store else 0

    def get_max_length(self) -> int:
        """No maximum but the memory's."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) that a mask for `query_length` more tokens covers."""
        return self.get_seq_length() + query_length, 0

    def offload(self) -> None:
        """Nothing: the store decides what lies where."""

    def prefetch(self) -> None:
        """Nothing: the engine does."""


class HostOffloadCache(DynamicCache):
    """`past_key_values=` for `generate` with attn_implementation="portattn".

    Sliding layers, and others that aren't full attention, are transformers' own and stay on the
    device. device_kv_bytes: what full layers may keep there; without it, most of what is free on an
    accelerator, nothing where the CPU is the device. host_kv_bytes: what may be taken of the host's
    memory; without it, what the machine and the cgroup leave. policy: how host memory's part
    divides between the CPU and the link, "auto", "split", "three-way" or "stream", by the rates of
    the profiles; shares says it outright, one for all layers or one each. kv_dtype: "int8" or
    "float8_e4m3fn" keep host memory's part rounded, in half the bytes of 16 bits; what that lost
    is `store.rounding_error`. progress: called with
    the tokens held whenever the last full layer has got more.

    Raises HostKVOutOfMemory, at a step's first layer, with all that was held still usable. After
    an exception from the middle of a forward pass, KeyboardInterrupt included, `recover()` goes
    back to the last whole step.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        device_kv_bytes: int | None = None,
        host_kv_bytes: int | None = None,
        policy: str = "auto",
        shares: Share | Sequence[Share] | None = None,
        kv_dtype: str | None = None,
        page_size: int = 128,
        flush_tokens: int | None = None,
        timeout: float = 60.0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(config=config)
        if policy not in HOST_POLICIES:
            raise ArgumentError("policy", f"must be one of {', '.join(HOST_POLICIES)}", policy)
        if device_kv_bytes is not None and device_kv_bytes < 0:
            raise ArgumentError("device_kv_bytes", "must be at least 0", device_kv_bytes)
        self._device_kv_bytes, self._host_kv_bytes = device_kv_bytes, host_kv_bytes
        self._sizes = page_size, flush_tokens
        self._policy, self._shares, self._kv_dtype = policy, shares, host_dtype(kv_dtype)
        self._timeout, self._progress = timeout, progress
        self._store: HostKVStore | None = None
        self._engine: OffloadEngine | None = None
        self._warned = False
        self.host_layers = [
            index for index, layer in enumerate(self.layers) if type(layer) is DynamicLayer
        ]
        if not self.host_layers:
            raise IntegrationError(
                f"{type(config).__name__}: no layer has full attention, so nothing outgrows the "
                "device; use transformers' DynamicCache"
            )
        for place, index in enumerate(self.host_layers):
            self.layers[index] = HostLayer(self, place)

    @property
    def has_store(self) -> bool:
        """Whether the first keys have come."""
        return self._store is not None

    @property
    def store(self) -> HostKVStore:
        """Where keys and values lie; it exists from the first keys on."""
        if self._store is None:
            raise IntegrationError("the cache is empty: its store is made with the first keys")
        return self._store

    @property
    def engine(self) -> OffloadEngine:
        """What attends to them; its `metrics` say what was done."""
        if self._engine is None:
            raise IntegrationError("the cache is empty: its engine is made with the first keys")
        return self._engine

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        """Make the store for the shape of the first keys; another layer's must be the same."""
        batch, heads, _, dim = keys.shape
        if self._store is not None:
            have = self._store.batch, self._store.kv_heads, *self._store.dims
            if have != (batch, heads, dim, values.shape[-1]):
                raise IntegrationError(
                    f"full-attention layers of different shapes, {have} and "
                    f"{(batch, heads, dim, values.shape[-1])}, can't share a HostOffloadCache"
                )
            return
        page_size, flush_tokens = self._sizes
        layers = len(self.host_layers)
        token = heads * (dim + values.shape[-1]) * keys.dtype.itemsize
        self._store = HostKVStore(
            layers,
            batch,
            heads,
            dim,
            head_dim_v=values.shape[-1],
            dtype=keys.dtype,
            device=keys.device,
            device_tokens=self._device_bytes(keys.device) // (token * batch * layers),
            page_size=page_size,
            flush_tokens=flush_tokens,
            limit_bytes=self._host_kv_bytes,
            host_dtype=self._kv_dtype,
        )
        shares = self._shares
        if shares is None:
            shares = shares_of_host(keys.device, self._policy)
        self._engine = OffloadEngine(self._store, shares, timeout=self._timeout)

    def _device_bytes(self, device: torch.device) -> int:
        if self._device_kv_bytes is not None:
            return self._device_kv_bytes
        if device.type != "cuda":
            return 0
        free, _ = torch.cuda.mem_get_info(device)
        return int(_OF_FREE * free)

    def _added(self, place: int) -> None:
        if self._progress is not None and place == len(self.host_layers) - 1:
            self._progress(self.store.length(place))

    def _materialise(self, handle: HostKV) -> Tensor:
        if handle.shape[:3] != (
            self.store.batch,
            self.store.kv_heads,
            self.store.length(handle.place),
        ):
            raise IntegrationError(f"{handle!r} is read after the cache has changed")
        self.engine.metrics.materialisations += 1
        if not self._warned:
            self._warned = True
            log.warning(
                "an operation beside portattn's attention reads offloaded keys or values: they are "
                "put together on the device each time, which is slow and takes their whole size "
                "there (metrics.materialisations counts)"
            )
        return self.store.ordered(handle.place)[handle.which].transpose(1, 2)

    def recover(self) -> None:
        """Go back to the last step that every full-attention layer finished.

        Sliding layers that have gone further can't follow: with any, the cache is reset instead.
        """
        if self._store is None:
            return
        length = min(self._store.length(place) for place in range(len(self.host_layers)))
        if any(layer.get_seq_length() != length for layer in self._others()):
            self.reset()
        else:
            self._store.recover()

    def _others(self) -> list[Any]:
        return [layer for layer in self.layers if not isinstance(layer, HostLayer)]

    def reset(self) -> None:
        """Forget every token. Host memory is kept for the next sequence of the same shape."""
        for layer in self._others():
            layer.reset()
        if self._store is not None:
            self._store.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was."""
        for layer in self._others():
            layer.reorder_cache(beam_idx)
        if self._store is not None:
            self._store.gather(beam_idx.tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest -tokens_to_remove tokens; transformers passes a negative count."""
        if tokens_to_remove > 0:
            raise ArgumentError("tokens_to_remove", "must be 0 or negative", tokens_to_remove)
        for layer in self._others():
            layer.crop(tokens_to_remove)
        if self._store is not None and tokens_to_remove:
            self._store.crop(max(0, self._store.length() + tokens_to_remove))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times in a row."""
        for layer in self._others():
            layer.batch_repeat_interleave(repeats)
        if self._store is not None:
            self._store.gather([b for b in range(self._store.batch) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, in this order."""
        for layer in self._others():
            layer.batch_select_indices(indices)
        if self._store is not None:
            chosen = indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices
            self._store.gather(chosen.tolist())

    def close(self) -> None:
        """End the worker and give host memory back."""
        if self._engine is not None:
            self._engine.close()
        if self._store is not None:
            self._store.close()
