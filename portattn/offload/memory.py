"""Host memory for keys and values: asked for before it is taken, page-locked where possible."""

from __future__ import annotations

import logging
import mmap
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger("portattn")

# Left to everything else on the machine.
SPARE_BYTES = 512 * 2**20
_HUGE_PAGE = 2 * 2**20
_MEMORY_PAGE = 4096
# Linux's value; Python names it from 3.13 on.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

# Page-locks an address range for a device, or says why not; None takes it back.
Register = Callable[[int, int], str | None]


def available_bytes() -> tuple[int, str]:
    """Bytes that may still be taken, and which limit says so: the kernel's or the cgroup's."""
    limits = [(_mem_available(), "MemAvailable"), *_cgroup_rooms()]
    room, name = min(limits)
    return max(0, room - SPARE_BYTES), name


def _mem_available() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _cgroup_rooms(root: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, str]]:
    """What version 2 and version 1 memory controllers leave, of this cgroup and its parents."""
    rooms = []
    for folder, limit, used in _cgroup_files(root):
        try:
            most = (folder / limit).read_text(encoding="ascii").strip()
            taken = int((folder / used).read_text(encoding="ascii"))
            # The page cache counts as used, but the kernel gives it up first.
            statistics = (folder / "memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        if most == "max":
            continue
        cached = sum(
            int(line.split()[1])
            for line in statistics.splitlines()
            if line.split()[0] in ("inactive_file", "total_inactive_file")
        )
        rooms.append((int(most) - taken + cached, f"the memory limit of cgroup {folder}"))
    return rooms


def _cgroup_files(root: Path) -> list[tuple[Path, str, str]]:
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = root / "memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Inside a container the path may name folders that only the host sees.
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            found.append((folder, limit, used))
            if folder == base:
                break
    return found


class Arena:
    """Address space for a number of equal regions, of which memory is taken from the front.

    The whole range is reserved at once without memory behind it, so that a region grows in place;
    `commit` takes memory slab by slab, in huge pages where the kernel allows, and page-locks it
    with `register`. Without that, or where the driver refuses, copies are slower, not wrong: a
    warning says so and `unpinned` holds the reason.
    """

    def __init__(
        self,
        regions: int,
        region_bytes: int,
        register: Register | None = None,
        unregister: Callable[[int], None] | None = None,
    ) -> None:
        self.region_bytes = -(-region_bytes // _HUGE_PAGE) * _HUGE_PAGE
        self.regions = regions
        self.unpinned: str | None = None
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, max(1, regions) * self.region_bytes, flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._map.madvise(mmap.MADV_HUGEPAGE)
            except OSError as error:  # a kernel without transparent huge pages
                log.debug("no huge pages: %s", error)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._register = register
        self._unregister = unregister or (lambda address: None)
        self._locked: list[int] = []
        # A range must not go back to the kernel while the driver holds it page-locked.
        self._unlock = weakref.finalize(self, _unlock, self._locked, self._unregister)
        self._unlock.atexit = False

    def region(self, index: int) -> Tensor:
        """The bytes of one region, committed or not."""
        return self.bytes[index * self.region_bytes : (index + 1) * self.region_bytes]

    def commit(self, regions: Sequence[int], start: int, stop: int) -> None:
        """Take memory for bytes start .. stop of these regions."""
        for index in regions:
            part = self.region(index)[start:stop]
            # Written once, so that it's there: a limit shows now and not in the middle of a step.
            part.zero_()
            self._lock(index * self.region_bytes + start, index * self.region_bytes + stop)

    def _lock(self, start: int, stop: int) -> None:
        """Page-lock a range of whole memory pages."""
        if self._register is None or self.unpinned is not None:
            return
        first, end = -(-start // _MEMORY_PAGE) * _MEMORY_PAGE, stop // _MEMORY_PAGE * _MEMORY_PAGE
        if (first, end) != (start, stop):
            # One that is locked in part can't be copied in one go.
            self._refused(f"pages of keys don't fill memory pages of {_MEMORY_PAGE} bytes")
            return
        address = self.bytes.data_ptr() + first
        why = self._register(address, end - first)
        if why is None:
            self._locked.append(address)
        else:
            self._refused(why)

    def _refused(self, why: str) -> None:
        self.unpinned = why
        log.warning("host KV is not page-locked, copies are slower: %s", why)

    def close(self) -> None:
        """Give the memory back; views of it that live on keep their part of the address space."""
        _unlock(self._locked, self._unregister)
        self.bytes = torch.empty(0, dtype=torch.uint8)
        with suppress(BufferError):  # a view is left
            self._map.close()


def _unlock(locked: list[int], unregister: Callable[[int], None]) -> None:
    while locked:
        unregister(locked.pop())
