"""Registering with transformers, and taking it back."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from portattn.errors import ArgumentError
from portattn.integrations import versions

# Not a free choice: transformers takes a name with "flash" in it for a flash-attn build, and one
# with "/" for a kernel to download.
NAME = "portattn"

Functions = MutableMapping[str, Any]


@dataclass(frozen=True)
class _Change:
    table: Functions
    name: str
    previous: Callable[..., Any] | None
    current: Callable[..., Any]


class Registration:
    """What `register` changed in transformers; `undo` puts it back. Works as a context manager.

    A registration undoes only what it changed itself: one that found portattn registered already
    leaves it so, and a function that somebody put there since stays.
    """

    def __init__(self) -> None:
        self._changes: list[_Change] = []

    def undo(self) -> None:
        """Put back what was there before; a second call does nothing."""
        while self._changes:
            change = self._changes.pop()
            if change.table.get(change.name) is not change.current:
                continue
            if change.previous is None:
                del change.table[change.name]
            else:
                change.table[change.name] = change.previous

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _set(self, table: Functions, name: str, function: Callable[..., Any]) -> None:
        previous = table.get(name)
        if previous is not function:
            table[name] = function
            self._changes.append(_Change(table, name, previous, function))


def register(*, override: Literal["sdpa"] | None = None) -> Registration:
    """Make attn_implementation="portattn" known to transformers.

    Attention and mask function are registered together: an implementation without a mask function
    is handed no mask, so that padding and packing would be ignored without a word.

    override="sdpa" also puts portattn in the place of transformers' "sdpa". Continuous batching
    (`generate_batch`) accepts no other name; every model that uses "sdpa" is then served too.

    Raises IntegrationError when transformers is missing or of an unsupported version.
    """
    if override not in (None, "sdpa"):
        raise ArgumentError("override", "must be None or 'sdpa'", repr(override))
    versions.require("transformers", at_least=(5,), below=(6,))
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    from portattn.integrations.transformers.attention import attention_forward
    from portattn.integrations.transformers.masks import attention_mask

    registration = Registration()
    for name in (NAME,) if override is None else (NAME, override):
        # The tables themselves, because the interfaces have no way to take a name out again.
        registration._set(AttentionInterface._global_mapping, name, attention_forward)
        registration._set(AttentionMaskInterface._global_mapping, name, attention_mask)
    return registration
