"""One run over many cases: a time budget, the device's own ceilings, and results kept as they come.

What was measured is handed over after every case, so that a run that is interrupted keeps it.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from portattn.cli.bench import ceilings
from portattn.cli.bench import monitor as monitors
from portattn.cli.bench.grid import Case
from portattn.cli.bench.peers import Peer
from portattn.cli.bench.run import Result, run_case

SPENT = "not measured: the time budget was spent"


@dataclass
class Session:
    """Everything that a run found so far."""

    results: list[Result] = field(default_factory=list)
    conditions: dict[str, object] = field(default_factory=dict)
    ceilings: list[ceilings.Ceilings] = field(default_factory=list)
    monitored_by: str | None = None

    def extras(self) -> dict[str, object]:
        """What stands beside the results in a file."""
        return {
            "ceilings": [asdict(found) for found in self.ceilings],
            "conditions": {"source": self.monitored_by, "cases": self.conditions},
        }


def run(
    cases: Sequence[Case],
    peers: Sequence[Peer],
    device: torch.device,
    rounds: int,
    budget: float,
    after_each: Callable[[Session], None],
    announce: Callable[[str], None],
) -> Session:
    """Measure cases in order within `budget` seconds, each with an equal share of what is left.

    Checks and first calls, which may compile, are not cut short: a budget bounds the rounds. The
    ceilings are measured before and after. KeyboardInterrupt ends the run with what it has.
    """
    session = Session()
    end = time.monotonic() + budget
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events and libraries without a device argument follow it
    with monitors.Monitor(monitors.command(device)) as monitor:
        session.monitored_by = monitor.source
        try:
            session.ceilings.append(ceilings.measure(device))
            for number, case in enumerate(cases):
                announce(f"{number + 1}/{len(cases)} {case} ...")
                _measure(session, case, peers, device, rounds, _share(end, len(cases) - number))
                session.conditions[f"{case.suite}: {case}"] = monitor.take()
                after_each(session)
            session.ceilings.append(ceilings.measure(device))
        except KeyboardInterrupt:
            announce("interrupted: what was measured until here is kept")
    after_each(session)
    return session


def _share(end: float, cases_left: int) -> float:
    now = time.monotonic()
    return math.inf if math.isinf(end) else now + (end - now) / cases_left


def _measure(
    session: Session,
    case: Case,
    peers: Sequence[Peer],
    device: torch.device,
    rounds: int,
    deadline: float,
) -> None:
    if time.monotonic() >= deadline:
        session.results += [Result(case, peer.name, None, reason=SPENT) for peer in peers]
        return
    session.results += run_case(case, peers, device, rounds, deadline)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
