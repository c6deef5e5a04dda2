"""A transformers cache that appends in place, where transformers' own copies all it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

# Rows made at least, and the part of the rows held, beyond what is needed now.
_ROOM_ROWS = 256
_ROOM_PART = 0.25


class GrowingLayer(DynamicLayer):
    """One full-attention layer: `keys` and `values` are the first rows of buffers with room.

    What `update` returned keeps its values: only rows behind its end are written, and whoever
    changes `keys` (crop, beam search, offloading) makes the next update start new buffers.
    """

    _buffers: tuple[Tensor, Tensor] | None = None
    _views: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep key_states [B, Hkv, Snew, D] and value_states; all that is held."""
        if _needs_copies(key_states) or _needs_copies(value_states):
            self._buffers = self._views = None
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            return keys, values
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        views, buffers = self._views, self._buffers
        assert self.keys is not None and self.values is not None
        held = self.keys.size(-2) if self.keys.numel() else 0
        end = held + key_states.size(-2)
        if (
            views is None
            or buffers is None
            or views[0] is not self.keys
            or views[1] is not self.values
            or end > buffers[0].size(-2)
            or buffers[0].is_inference() != torch.is_inference_mode_enabled()
        ):
            buffers = (
                _grown(self.keys, key_states, held, end),
                _grown(self.values, value_states, held, end),
            )
        k, v = buffers
        k.narrow(-2, held, end - held).copy_(key_states)
        v.narrow(-2, held, end - held).copy_(value_states)
        self.keys, self.values = k.narrow(-2, 0, end), v.narrow(-2, 0, end)
        self._buffers, self._views = buffers, (self.keys, self.values)
        return self.keys, self.values

    def reset(self) -> None:
        """Forget what is held."""
        self._buffers = self._views = None
        super().reset()  # type: ignore[no-untyped-call]


def _needs_copies(states: Tensor) -> bool:
    """Whether writing in place would be an error, or unknown to a graph."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and states.requires_grad)


def _grown(held: Tensor, new: Tensor, rows: int, needed: int) -> Tensor:
    """A buffer with room whose first `rows` rows are those held; the others' values are unset."""
    batch, heads, _, dim = new.shape
    room = needed + max(_ROOM_ROWS, int(needed * _ROOM_PART))
    buffer = new.new_empty((batch, heads, room, dim))
    if rows:
        buffer.narrow(-2, 0, rows).copy_(held)
    return buffer


class GrowingCache(DynamicCache):
    """`past_key_values=` for `generate`, with any attn_implementation.

    Full-attention layers keep room for further tokens (a quarter of those held, at least 256), and
    a step writes its own keys and values only. Sliding layers, and others that aren't full
    attention, are transformers' own.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [
            GrowingLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]
            for layer in self.layers
        ]
