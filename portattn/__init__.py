"""One attention API for every device: the right kernel, chosen openly."""

from portattn.attention import (
    attention,
    attention_varlen,
    attention_with_kvcache,
    merge_states,
    sdpa,
)
from portattn.cache import ContiguousKVCache, PagedKVCache
from portattn.explain import explain

__version__ = "0.1.0"

__all__ = [
    "ContiguousKVCache",
    "PagedKVCache",
    "attention",
    "attention_varlen",
    "attention_with_kvcache",
    "explain",
    "merge_states",
    "sdpa",
]
