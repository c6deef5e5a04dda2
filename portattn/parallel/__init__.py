"""Several devices on torch.distributed: attention over tokens, or keys, that they share."""

from portattn.parallel.context import ContextParallel
from portattn.parallel.layout import Layout
from portattn.parallel.sharded_decode import ShardedKVCache

__all__ = ["ContextParallel", "Layout", "ShardedKVCache"]
