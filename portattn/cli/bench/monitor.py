"""Clocks, temperature and power of an NVIDIA GPU while it is measured, as nvidia-smi reports them.

nvidia-smi runs as a process of its own, so that reading it takes no time from the launches.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
from types import TracebackType

import torch

_PERIOD_MS = 200
_FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "celsius",
    "power.draw": "watts",
}


class Monitor:
    """Samples the device from entry to exit; `take` summarises what came in since the last time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process: subprocess.Popen[str] | None = None
        self._rows: list[list[float]] = []
        self._lock = threading.Lock()

    @property
    def source(self) -> str | None:
        """Where the samples come from; None where nothing is sampled."""
        return None if self._process is None else f"nvidia-smi every {_PERIOD_MS} ms"

    def __enter__(self) -> Monitor:
        program = shutil.which("nvidia-smi")
        if self._device.type == "cuda" and program is not None:
            uuid = torch.cuda.get_device_properties(self._device).uuid
            self._process = subprocess.Popen(
                [
                    program,
                    f"--id=GPU-{uuid}",
                    f"--query-gpu={','.join(_FIELDS)}",
                    "--format=csv,noheader,nounits",
                    f"--loop-ms={_PERIOD_MS}",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

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

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            row = parse(line)
            if row is not None:
                with self._lock:
                    self._rows.append(row)


def parse(line: str) -> list[float] | None:
    """One line of nvidia-smi's numbers; None where the device doesn't tell one of them."""
    try:
        row = [float(part) for part in line.split(",")]
    except ValueError:
        return None
    return row if len(row) == len(_FIELDS) else None
