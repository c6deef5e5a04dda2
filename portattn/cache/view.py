"""What attention needs of a KV cache, and what every cache can do."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from portattn.errors import ArgumentError, DeviceError, DtypeError, ShapeError


class CacheView(NamedTuple):
    """A cache as attention reads it, without a copy.

    k [Bc, S, Hkv, D], v [Bc, S, Hkv, Dv], or pages [P, page_size, Hkv, D(v)] with block_table
    [B, pages] int32. Sequence b uses keys leftpad_k[b] .. seqused_k[b] (int32) of row
    cache_batch_idx[b]. max_seqlen_k bounds seqused_k and is known to the host. k_scale and v_scale
    [B, Hkv] float32 multiply what an int8 or float8_e4m3fn cache holds.
    """

    k: Tensor
    v: Tensor
    seqused_k: Tensor
    max_seqlen_k: int
    block_table: Tensor | None = None
    cache_batch_idx: Tensor | None = None
    leftpad_k: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


class KVCache(Protocol):
    """The role of a cache in attention_with_kvcache."""

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store k [B, Snew, Hkv, D] and v [B, Snew, Hkv, Dv] after each sequence's tokens.

        All or nothing: raises CacheFullError before anything is written.
        """
        ...

    def view(self) -> CacheView:
        """The cache as attention reads it."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        ...


def host_values(tensor: Tensor) -> list[int] | None:
    """A 1-D tensor's numbers where reading them is free; None on an accelerator or in a trace."""
    if tensor.device.type != "cpu" or type(tensor) is not Tensor or torch.compiler.is_compiling():
        return None
    values: list[int] = tensor.tolist()
    return values


def host_bound(seqlens: Tensor, capacity: int) -> int | None:
    """The longest of cache_seqlens, checked; None where the host can't read them for free."""
    lengths = host_values(seqlens)
    if lengths is not None and any(not 0 <= length <= capacity for length in lengths):
        raise ArgumentError("cache_seqlens", f"must lie in 0 .. {capacity}", lengths)
    return None if lengths is None else max(lengths, default=0)


def check_new_tokens(k: Tensor, v: Tensor, store_k: Tensor, store_v: Tensor, batch: int) -> None:
    """Raise a typed error unless k and v can be stored beside what the cache holds."""
    for name, new, store in (("k", k, store_k), ("v", v, store_v)):
        if new.dim() != 4 or new.shape[0] != batch or new.shape[2:] != store.shape[2:]:
            heads, dim = store.shape[2:]
            raise ShapeError(
                name, f"must be [{batch}, new tokens, {heads}, {dim}]", tuple(new.shape)
            )
        if store.dtype in SCALED and not new.is_floating_point():
            raise DtypeError(name, "must be floats, which the cache scales and rounds", new.dtype)
        if store.dtype not in SCALED and new.dtype != store.dtype:
            raise DtypeError(name, f"must have the cache's dtype, {store.dtype}", new.dtype)
        if new.device != store.device:
            raise DeviceError(name, f"must be on the cache's device, {store.device}", new.device)
    if k.shape[1] != v.shape[1]:
        raise ShapeError("v", f"must hold as many tokens as k, {k.shape[1]}", tuple(v.shape))


# The dtypes that hold numbers divided by a scale, and the largest that they hold.
SCALED = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def scales(
    k_scale: Tensor | float | None, v_scale: Tensor | float | None, store: Tensor, batch: int
) -> tuple[Tensor | None, Tensor | None]:
    """k_scale and v_scale as [B, Hkv] float32 beside the store, from numbers, [Hkv] or [B, Hkv].

    Raises a typed error unless both are given exactly where the store's dtype needs them.
    """
    given = {"k_scale": k_scale, "v_scale": v_scale}
    shape = (batch, store.shape[-2])
    found = []
    for name, scale in given.items():
        if scale is None and store.dtype in SCALED:
            raise ArgumentError(name, f"must be given for a cache of {store.dtype}")
        if scale is not None and store.dtype not in SCALED:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in SCALED)
            raise ArgumentError(name, f"needs a cache of {names}", store.dtype)
        if scale is not None:
            scale = torch.as_tensor(scale, dtype=torch.float32, device=store.device)
            if scale.dim() > 2 or any(
                size not in (1, full)
                for size, full in zip(scale.shape[::-1], shape[::-1], strict=False)
            ):
                expected = f"must be a number, [{shape[1]}] or [{shape[0]}, {shape[1]}]"
                raise ShapeError(name, expected, tuple(scale.shape))
            scale = scale.expand(shape).contiguous()
        found.append(scale)
    return found[0], found[1]


def stored(new: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What a cache of a dtype holds for new [B, S, Hkv, D]: divided by scale [B, Hkv], rounded to
    the nearest (ties to even) and clamped; as it is without a scale."""
    if scale is None:
        return new
    most = SCALED[dtype]
    values = (new.float() / scale[:, None, :, None]).clamp(-most, most)
    return (values.round() if dtype == torch.int8 else values).to(dtype)


def check_store(suffix: str, k: Tensor, v: Tensor) -> None:
    """Raise a typed error unless caller-owned k_`suffix` and v_`suffix` belong together."""
    for name, store in ((f"k_{suffix}", k), (f"v_{suffix}", v)):
        if store.dim() != 4 or store.shape[:3] != k.shape[:3]:
            expected = "must be 4-D, and k and v alike in all but the last dimension"
            raise ShapeError(name, expected, f"{tuple(k.shape)} and {tuple(v.shape)}")
    if v.dtype != k.dtype:
        raise DtypeError(f"v_{suffix}", f"must have the dtype of k_{suffix}, {k.dtype}", v.dtype)
    if v.device != k.device:
        raise DeviceError(f"v_{suffix}", f"must be on the device of k_{suffix}", v.device)


def check_index(name: str, tensor: Tensor, shape: tuple[int | None, ...], store: Tensor) -> None:
    """Raise a typed error unless `tensor` is int32, beside `store`, of that shape (None: any)."""
    fits = tensor.dim() == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(name, f"must have shape [{wanted}]", tuple(tensor.shape))
    if tensor.dtype != torch.int32:
        raise DtypeError(name, "must be int32", tensor.dtype)
    if tensor.device != store.device:
        raise DeviceError(name, f"must be on the cache's device, {store.device}", tensor.device)


def check_beams(beam_idx: Tensor, batch: int) -> None:
    """Raise a typed error unless beam_idx names one of `batch` sequences for each of them."""
    if tuple(beam_idx.shape) != (batch,):
        raise ShapeError("beam_idx", f"must have shape [{batch}]", tuple(beam_idx.shape))
    if beam_idx.dtype not in (torch.int32, torch.int64):
        raise DtypeError("beam_idx", "must be int32 or int64", beam_idx.dtype)
    rows = host_values(beam_idx)
    if rows is not None and any(not 0 <= row < batch for row in rows):
        raise ArgumentError("beam_idx", f"must lie in 0 .. {batch - 1}", rows)


def check_sizes(**sizes: int) -> None:
    """Raise ArgumentError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ArgumentError(name, "must be at least 1", size)


def new_slots(seqlens: Tensor, count: int) -> Tensor:
    """Positions of `count` new tokens after each length: [B, count] int64."""
    return seqlens.long()[:, None] + torch.arange(count, device=seqlens.device)
