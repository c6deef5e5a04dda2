"""tune(): measures a device's kernels and writes the overlay that dispatch obeys."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from portattn.dispatch import profile as profiles
from portattn.dispatch import registry, select
from portattn.dispatch.backend import Backend, HasLibrary
from portattn.dispatch.device import Device
from portattn.dispatch.profile_schema import HardwareProfile
from portattn.errors import ArgumentError
from portattn.tuning import candidates, inputs, journal, overlay, targets
from portattn.tuning.budget import Limit, shared
from portattn.tuning.candidates import Kernel
from portattn.tuning.contest import Contest
from portattn.tuning.journal import Journal
from portattn.tuning.outcome import Outcome
from portattn.tuning.targets import Target

_LIBRARIES = ("portattn", "torch", "triton", "cupy-cuda12x", "torch-npu", "triton-ascend")


@dataclass(frozen=True)
class Step:
    """What is being done: which target of how many, and seconds of the budget that are used."""

    target: str
    number: int
    of: int
    text: str
    elapsed: float
    budget: float


@dataclass(frozen=True)
class Report:
    """What tune() did.

    `outcomes` are the decided targets, of this run and of earlier ones; `open` those that the
    budget or an interruption left, with what was measured of them in the journal; `skipped` those
    that no kernel can run, with the reasons.
    """

    device: Device
    profile: str
    outcomes: tuple[Outcome, ...]
    open: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    overlay: Path | None
    journal: Path
    interrupted: bool
    resumed: int  # measurements that the journal had when the run began
    seconds: float


Progress = Callable[[Step], None]


def tune(
    device: Device,
    *,
    kernels: Sequence[str] = (),
    problems: Sequence[str] = (),
    budget: float = 120.0,
    again: bool = False,
    progress: Progress | None = None,
    among: Sequence[Target] | None = None,
) -> Report:
    """Measure kernels' configurations on a device and write what is best into the overlay.

    `kernels` are names such as "cpu.forward", all that the device has by default; `problems` words
    of the targets' names, as "decode-d128"; `among` targets of your own instead of the usual ones.
    `budget` is in seconds: nothing new begins after them. Each candidate is compared with the
    float64 reference before it is timed. Every measurement is in the journal before the next one
    begins: after an interruption, or a crash, the same call goes on. `again` forgets what the
    journal knows of the chosen targets. A keyboard interrupt ends with the report so far.

    Tile sizes fix the order of reduction: a changed rule changes results in their last bits.
    Raises ArgumentError, TuningError, ProfileError.
    """
    begun = time.monotonic()
    chosen = targets.chosen(targets.usual(device) if among is None else among, problems)
    found = candidates.kernels(device, kernels)
    profile = profiles.for_device(device)
    pairs, skipped = _pairs(chosen, found, device)
    file = journal.path(profile.name)
    with Journal(file, context(device, found)) as book, inputs.current(device):
        if again:
            for target, _ in pairs:
                book.forget(target.name)
        resumed = len(book.records)
        run = _Run(device, profile, pairs, book, budget, begun, progress)
        interrupted = run.interrupted_by_user()
    select.forget()
    return Report(
        device=device,
        profile=profile.name,
        outcomes=run.outcomes,
        open=tuple(target.name for target, _ in pairs if target.name not in run.decided),
        skipped=tuple(skipped),
        overlay=run.written,
        journal=file,
        interrupted=interrupted,
        resumed=resumed,
        seconds=time.monotonic() - begun,
    )


def context(device: Device, kernels: Sequence[Kernel]) -> str:
    """What measurements must have in common to be compared: device, threads, libraries."""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    shown = [f"{name} {version}" for name, version in versions().items()]
    runners = {kernel.backend: kernel.runner for kernel in kernels}
    for name, runner in runners.items():
        shown += [f"{name} {state}" for state in _library(runner).values()]
    return f"{device} {device.cores} cores{threads}; {', '.join(shown)}"


def versions() -> dict[str, str]:
    """portattn's and those of the libraries that compile or run kernels."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _pairs(
    chosen: Sequence[Target], found: Sequence[Kernel], device: Device
) -> tuple[list[tuple[Target, list[Kernel]]], list[tuple[str, str]]]:
    """The targets with the kernels that can run them, and those that none can, with reasons."""
    pairs, skipped = [], []
    for target in chosen:
        unsupported = inputs.unsupported(target.problem)
        if unsupported:
            raise ArgumentError("problem", "; ".join(unsupported), target.name)
        able, reasons = [], []
        for kernel in found:
            if kernel.operation != target.problem.operation:
                continue
            against = kernel.runner.reasons_against(target.problem, device)
            if against:
                reasons.append(f"{kernel.name}: {'; '.join(against)}")
            else:
                able.append(kernel)
        if able:
            pairs.append((target, able))
        else:
            skipped.append((target.name, "; ".join(reasons) or "no kernel of this operation"))
    return pairs, skipped


class _Run:
    """The contests of one call, one after the other; the overlay is written after each."""

    def __init__(
        self,
        device: Device,
        profile: HardwareProfile,
        pairs: Sequence[tuple[Target, list[Kernel]]],
        book: Journal,
        budget: float,
        begun: float,
        progress: Progress | None,
    ) -> None:
        self._device, self._profile, self._pairs = device, profile, pairs
        self._book, self._budget, self._begun = book, budget, begun
        self._progress = progress
        self.decided: dict[str, Outcome] = {}
        self.written: Path | None = None

    def interrupted_by_user(self) -> bool:
        """Run them all; whether a keyboard interrupt ended them early.

        First every target without an outcome; what is left of the budget then goes to those with
        configurations that nobody has tried yet.
        """
        try:
            contests = [self._contest(index) for index in range(len(self._pairs))]
            for contest in contests:
                self._take(contest, contest.known())
            self._go_through([one for one in contests if one.target.name not in self.decided])
            self._go_through([one for one in contests if not one.is_exhausted()])
        except KeyboardInterrupt:
            return True
        return False

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The decided targets' newest outcomes, in the order of the targets."""
        names = [target.name for target, _ in self._pairs]
        return tuple(self.decided[name] for name in names if name in self.decided)

    def _go_through(self, contests: Sequence[Contest]) -> None:
        whole = Limit(self._begun + self._budget)
        for index, contest in enumerate(contests):
            if whole.over:
                break
            contest.budget = shared(whole, len(contests) - index)
            self._take(contest, contest.run())

    def _take(self, contest: Contest, outcome: Outcome | None) -> None:
        if outcome is not None:
            self.decided[outcome.target] = outcome
            self.written = overlay.update(
                self._profile,
                rules=_rules(contest.target, outcome),
                measured=_measured(contest.target, outcome),
            )

    def _contest(self, index: int) -> Contest:
        target, kernels = self._pairs[index]
        return Contest(
            target=target,
            kernels=kernels,
            device=self._device,
            profile=self._profile,
            journal=self._book,
            budget=shared(Limit(self._begun + self._budget), len(self._pairs)),
            tell=self._teller(target, index),
        )

    def _teller(self, target: Target, index: int) -> Callable[[str], None]:
        def tell(text: str) -> None:
            if self._progress is not None:
                elapsed = time.monotonic() - self._begun
                count = len(self._pairs)
                step = Step(target.name, index + 1, count, text, elapsed, self._budget)
                self._progress(step)

        return tell


def _rules(target: Target, outcome: Outcome) -> dict[str, list[dict[str, Any]]]:
    """The winner's sizes for the target's class, and the same, as derived, for its kindred."""
    rules: dict[str, list[dict[str, Any]]] = {}
    for backend in outcome.tuned:
        best = outcome.best(backend)
        if best is None:
            continue
        use = dict(best.config)
        rules[f"{backend}.{outcome.operation}"] = [
            {"when": overlay.conditions(target.when), "use": use, "basis": "tuned"},
            *(
                {"when": overlay.conditions(when), "use": use, "basis": "derived"}
                for when in target.kindred
            ),
        ]
    return rules


def _measured(target: Target, outcome: Outcome) -> list[dict[str, Any]]:
    """The best time of every backend, which the order of candidates follows."""
    records = []
    for backend in outcome.backends():
        best = outcome.best(backend)
        assert best is not None
        record: dict[str, Any] = {
            "backend": backend,
            "operation": outcome.operation,
            "when": overlay.conditions(target.when),
            "microseconds": float(f"{best.us:.5g}"),
        }
        runner = registry.load(backend)
        if best.config and runner.capability.kernels:
            record["config"] = dict(best.config)
        record["versions"] = {**versions(), **_library(runner)}
        records.append({**record, "at": outcome.problem[:200]})
    return records


def _library(runner: Backend) -> dict[str, str]:
    """The state of the library behind a backend's kernels, where it has one."""
    return {"library": runner.library_state()[0]} if isinstance(runner, HasLibrary) else {}
