"""One attention API for every device: the right kernel, chosen openly."""

from typing import TYPE_CHECKING, Any

from portattn.attention import (
    attention,
    attention_varlen,
    attention_with_kvcache,
    merge_states,
    sdpa,
)
from portattn.cache import ContiguousKVCache, PagedKVCache
from portattn.explain import explain

if TYPE_CHECKING:
    from portattn.integrations.transformers.host_cache import HostOffloadCache
    from portattn.offload import HostKVStore, coop_decode

__version__ = "0.1.0"

__all__ = [
    "ContiguousKVCache",
    "HostKVStore",
    "HostOffloadCache",
    "PagedKVCache",
    "attention",
    "attention_varlen",
    "attention_with_kvcache",
    "coop_decode",
    "explain",
    "merge_states",
    "sdpa",
]


def __getattr__(name: str) -> Any:
    """What is seldom needed, or needs transformers, is imported when it is first asked for."""
    if name == "HostOffloadCache":
        from portattn.integrations.transformers.host_cache import HostOffloadCache

        return HostOffloadCache
    if name in ("HostKVStore", "coop_decode"):
        from portattn import offload

        return getattr(offload, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
