"""How much time there is, and who may use how much of it."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A moment of the monotonic clock."""

    until: float

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.until


@dataclass(frozen=True)
class Budget:
    """One contest's share of the whole: a wish that the contest keeps to where it can, and the
    limit for all that is never passed by beginning something."""

    start: float
    seconds: float
    whole: Limit

    def part(self, fraction: float) -> Limit:
        """The moment at which a fraction of the share, from now on at most, is used up."""
        end = self.start + self.seconds
        if fraction >= 1.0:
            return Limit(min(end, self.whole.until))
        now = time.monotonic()
        return Limit(min(now + max(0.0, end - now) * fraction, self.whole.until))


def shared(whole: Limit, among: int) -> Budget:
    """An equal share of what is left, for the first of some that are still to come."""
    now = time.monotonic()
    return Budget(now, max(0.0, whole.until - now) / max(1, among), whole)
