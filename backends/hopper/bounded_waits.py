"""A debug switch: no wait for a barrier lasts longer than a limit, and those that would are named.

A fault in a schedule, such as an arrival that is missing, leaves a kernel waiting for ever. Inside

    with bounded_waits(kernel) as waits:
        ...                                # calls that launch it, and a synchronisation

every wait of that kernel is compiled with a limit. Past it, a thread notes which wait it is in
memory of the host and stops the kernel with a trap, which torch reports as an error;
`waits.stuck()` says where in the source the threads stood. A trap is the end of a process's CUDA
context: nothing more runs on the device after it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton

from portattn.backends.common import launch

_LOCATION = re.compile(r"\.loc\s+\d+ \d+ \d+.*?// (\S+:\d+):\d+")
_GAP = r"\s*(?:\.loc[^\n]*\s*)*"  # newer releases number the lines of a wait
_WAIT = re.compile(
    r"\{\s*\.reg \.pred (?P<done>\w+);" + _GAP + r"(?P<loop>\w+):" + _GAP
    + r"(?P<test>mbarrier\.try_wait[^;]*;)\s*@!(?P=done) bra(?:\.uni)? (?P=loop);\s*\}"
)  # fmt: skip
_MOST = 256


class Waits:
    """The waits of the kernels compiled so far, by their place in the source."""

    def __init__(self, nanoseconds: int) -> None:
        self.nanoseconds = nanoseconds
        self.places: list[str] = []
        self._notes = torch.zeros(_MOST, dtype=torch.int32)
        if torch.cuda.is_available():
            self._notes = self._notes.pin_memory()

    def stuck(self) -> list[str]:
        """The waits that came to their limit: "file.py:line, program p" of one of its programs."""
        return [
            f"{place}, program {int(note) - 1}"
            for place, note in zip(self.places, self._notes, strict=False)
            if note
        ]

    def bound(self, ptx: str) -> str:
        """PTX whose waits have a limit; RuntimeError where one isn't written as expected."""
        bounded, count = _WAIT.subn(lambda match: self._bounded(match, ptx), ptx)
        if count != ptx.count("mbarrier.try_wait"):
            raise RuntimeError(f"Triton {triton.__version__} writes waits in another way")
        return bounded

    def _bounded(self, match: re.Match[str], ptx: str) -> str:
        places = _LOCATION.findall(ptx, 0, match.start())
        self.places.append(places[-1] if places else "somewhere")
        if len(self.places) > _MOST:
            raise ValueError(f"more than {_MOST} waits in one block of `bounded_waits`")
        note = self._notes.data_ptr() + 4 * (len(self.places) - 1)
        return f"""{{
    .reg .pred done, over;
    .reg .b64 since, now, note;
    .reg .b32 program;
    mov.u64 since, %globaltimer;
    again:
    {match["test"].replace(match["done"], "done")}
    @done bra finished;
    mov.u64 now, %globaltimer;
    sub.u64 now, now, since;
    setp.lt.u64 over, now, {self.nanoseconds};
    @over bra again;
    mov.u32 program, %ctaid.x;
    add.u32 program, program, 1;
    mov.u64 note, {note};
    st.volatile.global.u32 [note], program;
    membar.sys;
    trap;
    finished:
    }}"""


@contextmanager
def bounded_waits(*kernels: Any, seconds: float = 2.0) -> Iterator[Waits]:
    """Compile the kernels anew with a limit of so many seconds for each wait; see above."""
    waits = Waits(int(seconds * 1e9))

    def add_stages(*given: Any) -> Any:
        if not given:
            return "bounded waits", "bounded waits"  # newer releases ask for a key of the cache
        _, stages, *_ = given
        make = stages["ptx"]
        stages["ptx"] = lambda src, metadata: waits.bound(make(src, metadata))
        return None

    knobs = triton.knobs
    with tempfile.TemporaryDirectory() as cache, knobs.runtime.scope(), knobs.cache.scope():
        knobs.runtime.add_stages_inspection_hook = add_stages
        knobs.cache.dir = cache
        _forget(kernels)
        try:
            yield waits
        finally:
            _forget(kernels)


def _forget(kernels: tuple[Any, ...]) -> None:
    """Drop what is compiled, so that the next call compiles."""
    launch.forget_plans()
    for kernel in kernels:
        kernel.device_caches.clear()
