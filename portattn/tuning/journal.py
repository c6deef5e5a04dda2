"""What was measured, on disk before the next measurement begins.

One JSON record a line, appended and synced; a line cut off by a crash is skipped when it is read
back. Records hold for one context (device, versions, threads): those of others are kept, not used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from portattn.dispatch import profile as profiles
from portattn.errors import TuningError

Record = dict[str, Any]


def path(profile: str) -> Path:
    """Where the measurements behind a profile's overlay are kept: beside the overlays' folder."""
    return profiles.overlay_path(profile).parent.parent / "tuning" / f"{profile}.jsonl"


class Journal:
    """The measurements of one context; a context manager that holds the file for itself."""

    def __init__(self, file: Path, context: str) -> None:
        self._file, self._context = file, context
        self.records: list[Record] = []

    def __enter__(self) -> Journal:
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        self._stream = os.fdopen(os.open(self._file, flags, 0o600), "a+b")
        try:
            _lock(self._stream.fileno(), self._file)
        except TuningError:
            self._stream.close()
            raise
        self._stream.seek(0)
        text = self._stream.read()
        self.records = [record for record in _parsed(text) if record["context"] == self._context]
        if text and not text.endswith(b"\n"):
            self._stream.write(b"\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def add(self, **values: Any) -> None:
        """Append one record and wait until it is on disk."""
        record = {"context": self._context, **values}
        self._stream.write(json.dumps(record).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.records.append(record)

    def of(self, **wanted: Any) -> Iterator[Record]:
        """The records that have all these values."""
        for record in self.records:
            if all(record.get(name) == value for name, value in wanted.items()):
                yield record

    def forget(self, target: str) -> None:
        """Leave the records of a target out from here on; in the file a later line says so."""
        self.add(event="again", target=target)
        self.records = [record for record in self.records if record.get("target") != target]


def _parsed(text: bytes) -> Iterator[Record]:
    records: list[Record] = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # cut off when the process or the machine stopped
            continue
        if not isinstance(record, dict) or "context" not in record or "event" not in record:
            continue
        if record["event"] == "again":
            same = (record["context"], record.get("target"))
            records = [r for r in records if (r["context"], r.get("target")) != same]
        else:
            records.append(record)
    yield from records


def _lock(descriptor: int, file: Path) -> None:
    """Two tuners would disturb each other's times. Released when the file is closed, also by a
    crash; without a lock where the system has none of this kind."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TuningError(f"another portattn tune is at work: it holds {file}") from None
