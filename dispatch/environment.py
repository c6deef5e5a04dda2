"""Environment variables as keys of what was decided by them: read at every call."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

Reader = Callable[[], tuple[Any, ...]]


def reader(*names: str) -> Reader:
    """A function that returns the variables' values now, or None: only fit to be compared.

    os.environ raises and catches an error for a variable that isn't set, which costs more than the
    rest of a key; the dictionary that it keeps its entries in doesn't.
    """
    entries, encode = (getattr(os.environ, name, None) for name in ("_data", "encodekey"))
    if isinstance(entries, dict) and encode is not None:
        get, keys = entries.get, [encode(name) for name in names]
    else:
        get, keys = os.environ.get, list(names)
    return lambda: tuple(map(get, keys))
