"""What transformers' models hand to an attention function beside the tensors, all accounted for.

The names were collected from every call of an attention interface, and from every call that leads
to one, in transformers 5.23. One that is in neither table is refused: it may change the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from portattn.errors import IntegrationError

# None of these changes what attention computes from q, k, v and the mask.
IRRELEVANT = frozenset(
    {
        # Positions: applied to q and k before the call, and part of the mask where they pack.
        "position_ids",
        "position_embeddings",
        "cache_position",
        "seq_idx",
        "decoder_position_ids",
        # Caches: k and v have been through them.
        "use_cache",
        "past_key_values",
        "cache_params",
        "cycle_offset",
        # What the model returns, and how its loss is computed.
        "return_dict",
        "output_hidden_states",
        "output_hidden_states_before_downsampling",
        "output_router_logits",
        "logits_to_keep",
        "logits_indices",
        "logits_processor_args",
        "num_items_in_batch",
        "labels",
        # Inputs of other parts of the model, passed on to all of them.
        "input_ids",
        "inputs_embeds",
        "encoder_outputs",
        "decoder_input_ids",
        "decoder_inputs_embeds",
        "decoder_attention_mask",
        "cross_attention_mask",
        "full_text_row_masked_out_mask",
        "token_type_ids",
        "mm_token_type_ids",
        "is_first_iteration",
        "grid_thw",
        "always_partition",
        "t_cond",
        # The longest of the images that the caller splits or describes by cu_seq_lens.
        "max_seqlen",
    }
)

# These do, in a way that portattn has no kernel for.
REFUSED = {
    "output_attentions": "fused attention never forms the attention weights",
    "sinks": "sinks that differ from query to query have no kernel",
    "block_table": "block tables are for flash-attention names, which use another cache interface",
}
_FALSE_IS_OFF = frozenset({"output_attentions"})


@dataclass(frozen=True)
class Arguments:
    """The arguments that change the result, under portattn's names.

    bias is added to the scores; window counts the token itself, as in transformers; chosen_keys are
    the indices [B, Sq, n] of the keys that each query may see.
    """

    softcap: float = 0.0
    window: int | None = None
    sinks: Tensor | None = None
    bias: Tensor | None = None
    deterministic: bool = False
    chosen_keys: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int = 0
    max_seqlen_k: int = 0


def parse(given: dict[str, Any]) -> Arguments:
    """Read every argument. Raises IntegrationError for one that would otherwise be ignored."""
    rest = {
        name: value for name, value in given.items() if value is not None and name not in _SKIPPED
    }
    if not rest:
        return NOTHING
    for name in _FALSE_IS_OFF:
        if rest.get(name) is False:
            del rest[name]
    arguments = Arguments(
        softcap=float(rest.pop("softcap", 0.0)),
        window=rest.pop("sliding_window", None),
        sinks=rest.pop("s_aux", None),
        bias=rest.pop("position_bias", None),
        deterministic=bool(rest.pop("deterministic", False)),
        chosen_keys=rest.pop("indices", None),
        **_lengths(rest),
    )
    for name in rest:
        raise IntegrationError(_refusal(name))
    return arguments


NOTHING = Arguments()

# The last two are read by the cache of continuous batching, which is handled before the rest.
_SKIPPED = IRRELEVANT | {"read_index", "write_index"}


def _lengths(rest: dict[str, Any]) -> dict[str, Any]:
    starts_q, starts_k = rest.pop("cu_seq_lens_q", None), rest.pop("cu_seq_lens_k", None)
    longest_q, longest_k = rest.pop("max_length_q", None), rest.pop("max_length_k", None)
    if starts_q is None and starts_k is None:
        return {}
    if starts_q is None or starts_k is None:
        raise IntegrationError("cu_seq_lens_q and cu_seq_lens_k must be given together")
    return {
        "cu_seqlens_q": starts_q.to(torch.int32),
        "cu_seqlens_k": starts_k.to(torch.int32),
        "max_seqlen_q": _longest(longest_q, starts_q),
        "max_seqlen_k": _longest(longest_k, starts_k),
    }


def _longest(given: Any, starts: Tensor) -> int:
    return int(starts.diff().max() if given is None else given)


def _refusal(name: str) -> str:
    if name in REFUSED:
        return f"{name}: {REFUSED[name]}; load the model with attn_implementation='eager'"
    return (
        f"{name!r} is not known to portattn and may change the result: "
        "load the model with attn_implementation='eager', or don't pass it"
    )
