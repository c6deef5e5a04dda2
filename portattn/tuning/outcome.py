"""What a contest decided, as values that the journal keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Refusal = tuple[str, Mapping[str, int], str]  # kernel, configuration, reason


@dataclass(frozen=True)
class Standing:
    """One entry of the final rounds: median microseconds, and the median of its time over that of
    the fastest in the same round."""

    backend: str
    config: Mapping[str, int]
    role: str
    us: float
    score: float


@dataclass(frozen=True)
class Outcome:
    """A target's final standings, and what was refused: for each kind of reason, the first kernel,
    configuration and reason, and how many more there were.

    `tuned` are the backends whose kernel had candidates, `tried` counts the candidates that were
    right and timed.
    """

    target: str
    problem: str
    operation: str
    tuned: tuple[str, ...]
    rounds: int
    tried: int
    standings: tuple[Standing, ...]
    refused: tuple[tuple[str, Mapping[str, int], str, int], ...]
    margin: float

    def before(self, backend: str) -> Standing | None:
        """How the configuration that ran until now did; None when it was refused."""
        for standing in self.standings:
            if standing.backend == backend and standing.role != "candidate":
                return standing
        return None

    def best(self, backend: str) -> Standing | None:
        """A backend's fastest; what ran until now unless another is faster beyond the noise."""
        own = [standing for standing in self.standings if standing.backend == backend]
        if not own:
            return None
        first, before = min(own, key=lambda standing: standing.score), self.before(backend)
        if before is not None and first.score > self.margin * before.score:
            return before
        return first

    def backends(self) -> tuple[str, ...]:
        """Every backend that was timed, the fastest first."""
        names = dict.fromkeys(standing.backend for standing in self.standings)
        best = {name: self.best(name) for name in names}
        return tuple(sorted(names, key=lambda name: getattr(best[name], "score", 0.0)))

    def as_record(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """The outcome that `as_record` gave."""
        values = dict(record)
        values["standings"] = tuple(Standing(**item) for item in record["standings"])
        values["refused"] = tuple((k, c, r, more) for k, c, r, more in record["refused"])
        values["tuned"] = tuple(record["tuned"])
        return cls(**values)


def grouped(refusals: Iterable[Refusal]) -> tuple[tuple[str, Mapping[str, int], str, int], ...]:
    """One of each kind: the numbers in a reason differ from candidate to candidate."""
    kinds: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in refusals:
        kernel, _, reason = refusal
        kind = "".join(letter for letter in reason if letter not in "0123456789.")
        kinds.setdefault((kernel, kind), []).append(refusal)
    return tuple((*found[0], len(found) - 1) for found in kinds.values())
