"""Clocks, temperature and power of an NVIDIA GPU while it is measured, as nvidia-smi reports them.

nvidia-smi runs as a process of its own, so that reading it takes no time from the launches.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType

import torch

_PERIOD_SECONDS = 0.5
_PATIENCE_SECONDS = 10.0
_FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "celsius",
    "power.draw": "watts",
}


def command(device: torch.device) -> list[str] | None:
    """What prints the device's state on a line; None where nothing can."""
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        return None
    uuid = torch.cuda.get_device_properties(device).uuid
    fields = ",".join(_FIELDS)
    return [program, f"--id=GPU-{uuid}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]


class Monitor:
    """Samples by a command from entry to exit; `take` summarises since the last time."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = command
        self._rows: list[list[float]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def source(self) -> str | None:
        """Where the samples come from; None where nothing is sampled."""
        return None if self._command is None else f"nvidia-smi every {_PERIOD_SECONDS} s"

    def __enter__(self) -> Monitor:
        if self._command is not None:
            self._thread = threading.Thread(target=self._sample, args=(self._command,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_SECONDS)

    def take(self) -> dict[str, dict[str, float]] | None:
        """Least, median and largest of every field since the last call; None without samples."""
        with self._lock:
            rows, self._rows = self._rows, []
        if not rows:
            return None
        return {
            name: {"min": min(column), "median": statistics.median(column), "max": max(column)}
            for name, column in zip(_FIELDS.values(), zip(*rows, strict=True), strict=True)
        }

    def _sample(self, command: Sequence[str]) -> None:
        while not self._stop.is_set():
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
                )
            except (OSError, subprocess.TimeoutExpired):
                return  # results are worth having without their conditions
            row = parse(done.stdout)
            if row is not None:
                with self._lock:
                    self._rows.append(row)
            self._stop.wait(_PERIOD_SECONDS)


def parse(line: str) -> list[float] | None:
    """One line of nvidia-smi's numbers; None where the device doesn't tell one of them."""
    try:
        row = [float(part) for part in line.split(",")]
    except ValueError:
        return None
    return row if len(row) == len(_FIELDS) else None
