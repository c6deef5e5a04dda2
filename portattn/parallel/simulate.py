"""A plan's prefill played event by event, to check the planner's formula.

Every ring rank has a compute stream, a link to the next rank and one for its tp devices' sums, and
does what is queued on each in order. Each hop has its own rate, so slow ones delay whom they delay,
and each step the work of the blocks that the layout gives it, which the formula takes to be equal.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from portattn.dispatch.cost import visible_pairs
from portattn.parallel.layout import Layout
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


def simulate(layer: Layer, layout: Layout, layers: int = 2) -> float:
    """Seconds until the last rank has done some layers of a causal prefill spread by a layout."""
    clock, work = Clock(), _work(layer, layout)
    done = [0.0] * layer.cp
    for _ in range(layers):
        done = [clock.run(f"compute {rank}", layer.before, at) for rank, at in enumerate(done)]
        done = _ring(clock, layer, work, done)
        done = [_summed(clock, layer, rank, layer.output, at) for rank, at in enumerate(done)]
        done = [clock.run(f"compute {rank}", layer.mlp, at) for rank, at in enumerate(done)]
        done = [_summed(clock, layer, rank, layer.down, at) for rank, at in enumerate(done)]
    return max(done)


def _work(layer: Layer, layout: Layout) -> list[list[float]]:
    """Seconds of attention by rank and step: the mean step's, by the pairs that are visible."""
    ranks = range(layer.cp)
    pairs = [
        [
            sum(
                visible_pairs(b.rows[1] - b.rows[0], b.keys[1] - b.keys[0], b.window)
                for of_sequence in layout.blocks(rank, (rank - step) % layer.cp, (-1, 0))
                for b in of_sequence
            )
            for step in ranks
        ]
        for rank in ranks
    ]
    unit = layer.step * layer.cp**2 / sum(map(sum, pairs))
    return [[unit * count for count in steps] for steps in pairs]


def _ring(clock: Clock, layer: Layer, work: list[list[float]], ready: list[float]) -> list[float]:
    """Keys leave for the next rank when they have come and the step before has been done."""
    here, computed = list(ready), list(ready)
    for step in range(layer.cp):
        coming = list(here)
        if step + 1 < layer.cp:
            for rank, hop in enumerate(layer.hops):
                taken, after = hop.seconds(layer.keys_bytes), (rank + 1) % layer.cp
                # The receiver's buffer is free when it has done its own step before.
                ready_at = here[rank], computed[rank], computed[after]
                coming[after] = clock.run(f"link {rank}", taken, *ready_at)
        computed = [
            clock.run(f"compute {rank}", work[rank][step], at) for rank, at in enumerate(here)
        ]
        here = coming
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
