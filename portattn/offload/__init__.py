"""Cooperative offload: keys and values beyond the device's memory, attended to where they lie."""

from portattn.offload.engine import OffloadEngine, Share, coop_decode
from portattn.offload.store import HostKVStore

__all__ = ["HostKVStore", "OffloadEngine", "Share", "coop_decode"]
