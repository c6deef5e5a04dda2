"""KV caches: contiguous rows or pages, on the device of their keys."""

from portattn.cache.contiguous import ContiguousKVCache
from portattn.cache.paged import PagedKVCache
from portattn.cache.view import CacheView, KVCache

__all__ = ["CacheView", "ContiguousKVCache", "KVCache", "PagedKVCache"]
