"""The mask function: transformers describes a mask, and gets it back with its structure kept.

transformers passes a mask's rule as a function of indices, built from closures. The closures of its
own rules are recognised by their code, so nothing is guessed: any other function, and any call
under tracing, is written out by transformers' `sdpa_mask`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, masking_utils
from transformers.utils.import_utils import is_tracing

from portattn.errors import IntegrationError
from portattn.integrations.transformers.structured_mask import (
    Band,
    Packing,
    Region,
    StructuredMask,
    region,
)

MaskRule = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Rule:
    """What a mask function says: how far a query sees, in which chunk, in which sequence."""

    left: int = -1
    right: int = -1
    chunk: int = 0
    sequence_ids: Tensor | None = None


def attention_mask(**request: Any) -> Tensor | None:
    """The mask for one forward pass; None only where one query sees every key.

    Takes the keyword arguments that transformers gives every mask function. None is avoided for
    more queries because transformers' attention functions disagree about what it means: full,
    causal from the first key, or causal from the last.
    """
    config_class: type = type(request.get("config"))
    _refuse_untested_models(config_class)
    traced = is_tracing(request.get("attention_mask")) or torch.compiler.is_compiling()
    if not traced and _newest_token_sees_all(request):
        return None
    parts = None if traced else _parts(request)
    if parts is None:
        return masking_utils.sdpa_mask(
            **{**request, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        )
    may_skip = request.get("allow_is_causal_skip") or request.get("allow_is_bidirectional_skip")
    if may_skip and _one_query_sees_all(parts):
        return None
    keys = torch.ones(1, 1, dtype=torch.bool, device=request.get("device"))
    return StructuredMask(
        parts.shape,
        parts.band,
        keys if parts.padding is None else parts.padding,
        parts.padding is not None,
        parts.packing,
    )


def rule_of(mask_function: MaskRule) -> Rule | None:
    """The rule behind one of transformers' own mask functions, None for any other."""
    if mask_function is masking_utils.causal_mask_function:
        return Rule(right=0)
    if mask_function is masking_utils.bidirectional_mask_function:
        return Rule()
    code = getattr(mask_function, "__code__", None)
    reader = _readers().get(code) if isinstance(code, CodeType) else None
    if reader is None or not isinstance(code, CodeType):
        return None
    closure = getattr(mask_function, "__closure__", None) or ()
    cells = dict(zip(code.co_freevars, (cell.cell_contents for cell in closure), strict=True))
    return reader(**cells)


@cache
def _readers() -> dict[CodeType, Callable[..., Rule | None]]:
    """The code of each closure that is understood, and what reads its variables."""
    readers: dict[str, Callable[..., Rule | None]] = {
        "and_masks": lambda mask_functions: _intersection([rule_of(f) for f in mask_functions]),
        "sliding_window_overlay": lambda sliding_window: Rule(left=sliding_window - 1),
        # Here the window doesn't count the token itself.
        "sliding_window_bidirectional_overlay": lambda sliding_window: Rule(
            sliding_window, sliding_window
        ),
        "chunked_overlay": lambda chunk_size, left_padding: Rule(chunk=chunk_size),
        "packed_sequence_mask_function": lambda packed_sequence_mask: Rule(
            sequence_ids=packed_sequence_mask
        ),
        # Positions within a packed sequence are consecutive: they differ as the indices do.
        "remap_positions_for_packed_sequence": lambda mask_function, position_ids: rule_of(
            mask_function
        ),
    }
    found = {}
    for name, reader in readers.items():
        maker = getattr(masking_utils, name, None)
        for code in maker.__code__.co_consts if maker else ():
            expected = tuple(sorted(inspect.signature(reader).parameters))
            if isinstance(code, CodeType) and tuple(sorted(code.co_freevars)) == expected:
                found[code] = reader
    return found


def _intersection(rules: list[Rule | None]) -> Rule | None:
    result = Rule()
    for rule in rules:
        if rule is None or (rule.chunk and result.chunk):
            return None
        if rule.sequence_ids is not None and result.sequence_ids is not None:
            return None
        result = Rule(
            _tighter(result.left, rule.left),
            _tighter(result.right, rule.right),
            result.chunk or rule.chunk,
            rule.sequence_ids if result.sequence_ids is None else result.sequence_ids,
        )
    return result


def _tighter(a: int, b: int) -> int:
    return max(a, b) if min(a, b) < 0 else min(a, b)


def _newest_token_sees_all(request: dict[str, Any]) -> bool:
    """The request of most steps of a generation, which needs none of what follows."""
    offset = request.get("q_offset")
    return (
        request.get("q_length") == 1
        and request.get("attention_mask") is None
        and request.get("mask_function") is masking_utils.causal_mask_function
        and bool(request.get("allow_is_causal_skip"))
        and isinstance(offset, int)
        and offset >= request["kv_offset"] + request["kv_length"] - 1
    )


class _Parts(NamedTuple):
    """A StructuredMask to be; padding is None where no key that a query sees is padding."""

    shape: tuple[int, int, int, int]
    band: Band
    area: Region
    padding: Tensor | None
    packing: Packing | None


def _parts(request: dict[str, Any]) -> _Parts | None:
    """The request as a StructuredMask's parts, or None where it must be written out."""
    # Earlier versions describe the queries by their positions; static caches count on the device,
    # where reading the count for a single query would cost more than a mask of one row.
    q_length, q_offset = request.get("q_length"), request.get("q_offset")
    if q_length is None or q_offset is None or (isinstance(q_offset, Tensor) and q_length == 1):
        return None
    kv_length, kv_offset = request["kv_length"], request["kv_offset"]
    rule = _without_chunk(
        rule_of(request["mask_function"]), int(q_offset) + q_length, kv_offset + kv_length
    )
    if rule is None:
        return None
    band = Band(int(q_offset) - kv_offset, rule.left, rule.right)
    area = region(band, q_length, kv_length)
    if area is None or not _is_padding(request.get("attention_mask")):
        return None
    padding = _padding(request)
    shape = (request["batch_size"], 1, q_length, kv_length)
    packing = None
    if rule.sequence_ids is not None:
        if padding is not None or rule.sequence_ids.shape != (shape[0], q_length):
            return None
        packing = _packing(rule.sequence_ids)
    if padding is not None and bool(padding[:, area.start : area.stop].all()):
        padding = None
    return _Parts(shape, band, area, padding, packing)


def _without_chunk(rule: Rule | None, *ends: int) -> Rule | None:
    """A rule whose chunk holds every position needs none; one that cuts can't be a band."""
    if rule is None or not rule.chunk:
        return rule
    if max(ends) > rule.chunk or rule.sequence_ids is not None:
        return None
    return replace(rule, chunk=0)


def _is_padding(mask: Tensor | None) -> bool:
    """Whether a mask says no more than which keys are padding."""
    return mask is None or (mask.dim() == 2 and mask.dtype == torch.bool)


def _padding(request: dict[str, Any]) -> Tensor | None:
    """Which of the keys are no padding: bool [B, Sk]; None where nobody says that some are."""
    mask: Tensor | None = request.get("attention_mask")
    kv_length, kv_offset = request["kv_length"], request["kv_offset"]
    if mask is None:
        return None
    # A static cache has room for keys that the mask doesn't reach yet.
    missing = kv_offset + kv_length - mask.shape[1]
    if missing > 0:
        mask = torch.nn.functional.pad(mask, (0, missing))
    return mask[:, kv_offset : kv_offset + kv_length]


def _packing(sequence_ids: Tensor) -> Packing:
    first = torch.ones_like(sequence_ids, dtype=torch.bool)
    first[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    starts = first.flatten().nonzero()[:, 0]
    cu_seqlens = torch.nn.functional.pad(starts, (0, 1), value=first.numel()).to(torch.int32)
    return Packing(sequence_ids, cu_seqlens, int(cu_seqlens.diff().max()))


def _one_query_sees_all(parts: _Parts) -> bool:
    """A packing of one token hides nothing."""
    *_, queries, keys = parts.shape
    whole = (parts.area.start, parts.area.stop) == (0, keys)
    return queries == 1 and parts.padding is None and whole


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _refuse_untested_models(config_class: type) -> None:
    """Raise for models that transformers declares unable to use any attention but their own.

    Some of them add the mask to their scores, or count padding by it, which is right for the float
    masks of "eager" alone. transformers checks for its own implementations, not for this one.
    """
    if not _takes_other_attention(config_class):
        raise IntegrationError(
            f"{config_class.__name__.removesuffix('Config')} models can't use another attention "
            "than their own: load them with attn_implementation='eager'"
        )


@cache
def _takes_other_attention(config_class: type) -> bool:
    name = config_class.__module__
    module = sys.modules.get(name.replace("configuration_", "modeling_"))
    if module is None or module.__name__ == name:
        return True
    models = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == module.__name__
    ]
    flags = ("_supports_sdpa", "_supports_attention_backend")
    return not models or any(getattr(model, flag, False) for model in models for flag in flags)
