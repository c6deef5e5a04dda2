"""What the engines of cooperative decoding did."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Metrics:
    """Counts and seconds since the engine was made or `clear` was called.

    Bytes are those of keys and values read or moved; `host_seconds` is the time the CPU kernel ran,
    `wait_seconds` what the caller waited for it, `worker_idle_seconds` its time between jobs.
    Several streams' work is concurrent: seconds don't add up to the wall clock's.
    """

    steps: int = 0
    resident_bytes: int = 0
    computed_bytes: int = 0
    streamed_bytes: int = 0
    prefetched_bytes: int = 0
    host_seconds: float = 0.0
    wait_seconds: float = 0.0
    worker_idle_seconds: float = 0.0
    materialisations: int = 0

    def clear(self) -> None:
        """Start counting anew."""
        self.__init__()  # type: ignore[misc]

    @property
    def host_gbs(self) -> float | None:
        """1e9 bytes/s of the CPU kernel while it ran."""
        return self.computed_bytes / self.host_seconds / 1e9 if self.host_seconds else None

    @property
    def shares(self) -> tuple[float, float, float]:
        """The achieved split of the bytes read: on the device, by the CPU, streamed."""
        total = self.resident_bytes + self.computed_bytes + self.streamed_bytes
        if not total:
            return 0.0, 0.0, 0.0
        parts = self.resident_bytes, self.computed_bytes, self.streamed_bytes
        return parts[0] / total, parts[1] / total, parts[2] / total

    def as_dict(self) -> dict[str, object]:
        """Everything, for JSON."""
        return {**asdict(self), "host_gbs": self.host_gbs, "shares": self.shares}
