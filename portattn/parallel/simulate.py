"""A plan's prefill played event by event, to check the planner's formula.

Every ring rank has a compute stream, a link to the next rank and one for its tp devices' sums, and
does what is queued on each in order. Each hop has its own rate, so slow ones delay whom they delay.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from portattn.parallel.planner import Layer


@dataclass
class Clock:
    """Streams that do one thing at a time, in the order in which they are given."""

    free: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self, stream: str, seconds: float, *after: float) -> float:
        """When work that waits for `after` is done."""
        begin = max(self.free[stream], *after, 0.0)
        self.free[stream] = begin + seconds
        return self.free[stream]


def simulate(layer: Layer, layers: int | None = None) -> float:
    """Seconds until the last rank has done all layers, or some, of a plan."""
    clock = Clock()
    done = [0.0] * layer.cp
    for _ in range(layers or layer.layers):
        done = [
            clock.run(f"compute {rank}", layer.before, at) for rank, at in enumerate(done)
        ]  # fmt: skip
        done = _ring(clock, layer, done)
        done = [_summed(clock, layer, rank, layer.output, at) for rank, at in enumerate(done)]
        done = [clock.run(f"compute {rank}", layer.mlp, at) for rank, at in enumerate(done)]
        done = [_summed(clock, layer, rank, layer.down, at) for rank, at in enumerate(done)]
    return max(done)


def _ring(clock: Clock, layer: Layer, ready: list[float]) -> list[float]:
    """Keys leave for the next rank when they have come and the step before has been done."""
    here, computed = list(ready), list(ready)
    for step in range(layer.cp):
        sent = list(here)
        if step + 1 < layer.cp:
            for rank, hop in enumerate(layer.hops):
                taken = hop.seconds(layer.keys_bytes)
                after = (rank + 1) % layer.cp
                # The receiver's buffer is free when it has done its own step before.
                sent[after] = clock.run(
                    f"link {rank}", taken, here[rank], computed[rank], computed[after]
                )
        computed = [
            clock.run(f"compute {rank}", layer.step, at) for rank, at in enumerate(here)
        ]  # fmt: skip
        here = sent
    return computed


def _summed(clock: Clock, layer: Layer, rank: int, product: float, ready: float) -> float:
    """A product in blocks, each block's sum behind the next block."""
    if layer.tp == 1:
        return clock.run(f"compute {rank}", product, ready)
    reduce = layer.all_reduce(layer.sum_bytes / layer.blocks)
    done = ready
    for _ in range(layer.blocks):
        computed = clock.run(f"compute {rank}", product / layer.blocks, ready)
        done = clock.run(f"sums {rank}", reduce, computed)
    return done
