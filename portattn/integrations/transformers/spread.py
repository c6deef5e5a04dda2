"""Generation over tokens that ranks share: each holds a part of the prompt, and all of them decode.

Every rank has the whole model and is given the same tokens. In the prompt's forward pass a rank
computes its own tokens, attention by ContextParallel; the last token's logits go to all. Its keys
and values stay where they were computed: what follows is computed alike on every rank, and only
attention, over a ShardedKVCache, asks the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from portattn.cache import ContiguousKVCache
from portattn.errors import IntegrationError
from portattn.integrations.transformers.arguments import Arguments
from portattn.integrations.transformers.structured_mask import StructuredMask
from portattn.parallel import ContextParallel, Layout, ShardedKVCache
from portattn.parallel.watch import progress

_KINDS = {"full_attention", "sliding_attention"}
# Tokens that a rank has room for beyond those it holds, at least, when it must make room.
_ROOM = 64


class SpreadKV:
    """What a model gets for one layer's keys and for its values: portattn's attention opens it."""

    def __init__(self, layer: SpreadLayer, k: Tensor, v: Tensor) -> None:
        self._layer, self._k, self._v = layer, k, v

    def __getattr__(self, name: str) -> Any:
        raise IntegrationError(
            f"the model reads keys or values ({name}) between its cache and its attention: "
            "they are spread over ranks, which only portattn's attention can read"
        )

    def attend(
        self, query: Tensor, mask: Tensor | None, causal: bool, given: Arguments, scale: Any
    ) -> Tensor:
        """out [B, T, H, Dv] of query [B, H, T, D], this rank's tokens of a prompt, or all's."""
        left = _window(mask, causal, given, query.shape[2])
        q, common = query.transpose(1, 2), {"softmax_scale": scale, "softcap": given.softcap}
        cache, window = self._layer.cache, (left, -1)
        progress.begin("attention over all ranks' keys,", list(q.shape))
        if cache.layout is not None:
            out = cache.parallel.attention(
                q, self._k, self._v, cache.layout, causal=True, window_size=window,
                sinks=given.sinks, **common,
            )  # fmt: skip
        else:
            rows = q.shape[1]
            out = self._layer.kept.attention(
                q, causal=rows > 1, window_size=window, sinks=given.sinks, **common
            )
        assert isinstance(out, Tensor)
        return out


def _window(mask: Tensor | None, causal: bool, given: Arguments, rows: int) -> int:
    """How many keys before its own a query sees, -1 for all; what isn't causal is refused."""
    if given.bias is not None or given.chosen_keys is not None or given.cu_seqlens_q is not None:
        raise IntegrationError("biases, chosen keys and packed rows can't be spread over ranks")
    left = -1 if given.window is None else given.window - 1
    if mask is None:
        if rows > 1 and not causal:
            raise IntegrationError("only causal attention can be spread over ranks here")
        return left
    plain = isinstance(mask, StructuredMask) and not mask.padded and mask.packing is None
    if not isinstance(mask, StructuredMask) or not plain or mask.band.right != 0:
        raise IntegrationError("only a causal mask without padding can be spread over ranks")
    return mask.band.left if mask.band.left >= 0 else left


class SpreadLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values, of which each rank keeps a part."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: SpreadCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self._length = cache, 0
        self._kept: ShardedKVCache | None = None

    @property
    def kept(self) -> ShardedKVCache:
        """Where the ranks keep them; it exists from the first on."""
        assert self._kept is not None
        return self._kept

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make this rank's cache, empty, for all of a sequence's tokens in turns."""
        batch, heads, _, dim = key_states.shape
        local = ContiguousKVCache(
            batch, _ROOM, heads, dim,
            head_dim_v=value_states.shape[-1], dtype=key_states.dtype, device=key_states.device,
        )  # fmt: skip
        self._keep(local, key_states.new_zeros((batch, 0), dtype=torch.int32), 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Keep key_states [B, Hkv, Snew, D] and value_states: this rank's tokens of a prompt, else
        the same on all ranks."""
        k, v = (states.transpose(1, 2).contiguous() for states in (key_states, value_states))
        layout = self.cache.layout
        if layout is not None:
            self._begin(k, v, layout)
        else:
            if self._kept is None:
                self.lazy_initialization(key_states, value_states)
            self._make_room(k.shape[1])
            self.kept.append(k, v)
            self._length += k.shape[1]
        handle = SpreadKV(self, k, v)
        return handle, handle

    def _begin(self, k: Tensor, v: Tensor, layout: Layout) -> None:
        (count,) = layout.queries
        lengths = torch.full((k.shape[0],), k.shape[1], dtype=torch.int32, device=k.device)
        # New rows are written in the room behind these, which attention still reads.
        local = ContiguousKVCache.from_tensors(k, v, lengths, longest=k.shape[1])
        positions = torch.arange(count, dtype=torch.int32, device=k.device)[None]
        mine = self.cache.parallel.shard(positions, layout)
        self._keep(local, mine.expand(k.shape[0], -1), count)

    def _keep(self, local: ContiguousKVCache, positions: Tensor, count: int) -> None:
        lengths = torch.full_like(local.seqlens, count)
        group = self.cache.parallel.ring.group
        self._kept = ShardedKVCache(
            local, group, block=self.cache.block, positions=positions, lengths=lengths
        )
        self._length = count
        self.is_initialized = True

    def _make_room(self, count: int) -> None:
        """Each rank for itself: whose turn it is needs it."""
        local = self.kept.local
        assert isinstance(local, ContiguousKVCache)
        used = local.view().max_seqlen_k
        if used + count <= local.max_seqlen:
            return
        more = (0, 0, 0, 0, 0, max(count, local.max_seqlen // 2, _ROOM))
        self.kept.local = ContiguousKVCache.from_tensors(
            pad(local.k, more), pad(local.v, more), local.seqlens, longest=used
        )

    def get_seq_length(self) -> int:
        """Tokens held by all ranks together."""
        return self._length

    def get_max_length(self) -> int:
        """No maximum but the memory's."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) that a mask for `query_length` more tokens covers."""
        return self._length + query_length, 0


class SpreadCache(Cache):
    """`past_key_values=` for `generate` inside `spread`, on every rank of `parallel`'s ring.

    Appended tokens go to one rank at a time, `block` before the next rank's turn.

    Raises IntegrationError for a model with other than full and sliding attention.
    """

    def __init__(
        self, config: PreTrainedConfig, parallel: ContextParallel, *, block: int = 256
    ) -> None:
        text = config.get_text_config(decoder=True)
        kinds = getattr(text, "layer_types", None) or ["full_attention"]
        if not set(kinds) <= _KINDS:
            raise IntegrationError(f"layers can't be spread over ranks: {set(kinds) - _KINDS}")
        if parallel.ulysses.size > 1:
            raise IntegrationError("generation is spread over a ring only, not over ulysses ranks")
        self.parallel, self.block = parallel, block
        # Set while a prompt's forward pass is under way.
        self.layout: Layout | None = None
        super().__init__(layers=[SpreadLayer(self) for _ in range(text.num_hidden_layers)])


@contextmanager
def spread(model: Any) -> Iterator[None]:
    """Inside, the model's forward pass of a prompt into an empty SpreadCache computes this rank's
    tokens only; prompts of fewer than two tokens a rank are computed alike on all of them.

    Logits come whole to every rank; other outputs are of this rank's tokens.

    Raises IntegrationError, in the forward pass, for padding or masks of the caller's own.
    """
    hooks = (
        model.register_forward_pre_hook(_before, with_kwargs=True),
        model.register_forward_hook(_after, with_kwargs=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, SpreadCache):
        return None
    _check_mask(kwargs.get("attention_mask"))
    kwargs = {**kwargs, "attention_mask": None}
    name = "input_ids" if kwargs.get("input_ids") is not None else "inputs_embeds"
    inputs, ranks = kwargs[name], cache.parallel.ring.size
    count = inputs.shape[1]
    cache.layout = None
    if cache.get_seq_length() == 0 and count >= 2 * ranks:
        cache.layout = layout = cache.parallel.layout(count)
        kwargs[name] = cache.parallel.shard(inputs, layout)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(count, device=inputs.device)[None]
        kwargs["position_ids"] = cache.parallel.shard(positions, layout, dim=-1)
        if kwargs.get("logits_to_keep", 0) != 1:
            kwargs["logits_to_keep"] = 0
    return args, kwargs


def _check_mask(mask: Any) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not bool(mask.bool().all()):
        raise IntegrationError("a padded prompt, or a mask, can't be spread over ranks")


def _after(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, SpreadCache) or cache.layout is None:
        return None
    parallel, layout = cache.parallel, cache.layout
    cache.layout = None
    if kwargs["logits_to_keep"] != 1:
        output.logits = parallel.gather(output.logits, layout)
    elif parallel.ring.group is not None:
        ends = [layout.ring_shares("queries", rank)[0][-1][1] for rank in range(layout.ring)]
        owner = ends.index(layout.queries[0])
        logits = output.logits.contiguous()
        progress.begin("the last token's logits", list(logits.shape))
        source = dist.get_global_rank(parallel.ring.group, owner)
        dist.broadcast(logits, source, group=parallel.ring.group)
        output.logits = logits
    return output
