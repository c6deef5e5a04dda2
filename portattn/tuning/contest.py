"""One target's contest: candidates are checked and tried once, the best are timed in turns.

Every step is read from the journal where it is there already, so that a contest goes on where it
was interrupted, whenever that was.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from portattn.dispatch import profile as profiles
from portattn.dispatch import registry, select
from portattn.dispatch.backend import Backend, Config
from portattn.dispatch.device import Device
from portattn.dispatch.profile_schema import HardwareProfile
from portattn.errors import BackendUnavailableError, TuningError
from portattn.tuning import candidates, clock, inputs
from portattn.tuning.budget import Budget, Limit
from portattn.tuning.candidates import Kernel, written
from portattn.tuning.journal import Journal
from portattn.tuning.judge import Judge
from portattn.tuning.outcome import Outcome, Refusal, Standing, grouped
from portattn.tuning.targets import Target

ROUNDS = 9
# With fewer rounds nothing is decided.
LEAST_ROUNDS = 3
FINALISTS = 4
# A candidate this much slower than the best isn't sampled again.
HOPELESS = 3.0
# Less than this is noise: what ran before stays.
MARGIN = 0.98
# A candidate that was begun this often without an end has taken the process down with it.
CRASHES = 2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """A backend with a configuration, timed in the final rounds."""

    backend: str
    config: dict[str, int]
    role: str  # "before", "candidate" or "rival"

    @property
    def key(self) -> str:
        """What the journal knows it by."""
        return f"{self.backend}: {written(self.config)}"


@dataclass
class Contest:
    """The candidates of some kernels for one target, against every other backend."""

    target: Target
    kernels: Sequence[Kernel]
    device: Device
    profile: HardwareProfile
    journal: Journal
    budget: Budget
    tell: Tell
    _made: tuple[inputs.Inputs, Judge] | None = field(default=None, init=False)
    _offered: dict[str, tuple[list[dict[str, int]], list[Refusal]]] = field(
        default_factory=dict, init=False
    )
    _repeats: dict[str, int] = field(default_factory=dict, init=False)

    def known(self) -> Outcome | None:
        """The newest outcome that the journal has."""
        results = list(self.journal.of(event="result", **self._who()))
        return Outcome.from_record(results[-1]["outcome"]) if results else None

    def is_exhausted(self) -> bool:
        """Whether every configuration of every kernel was tried."""
        return not any(self._untried(kernel) for kernel in self.kernels)

    def run(self) -> Outcome | None:
        """Try what is untried and time the best anew; None when the budget ended first."""
        entries, rounds = self._rounds(self._entries())
        if not entries or len(rounds) < LEAST_ROUNDS:
            return None
        outcome = self._outcome(entries, rounds)
        self.journal.add(event="result", outcome=outcome.as_record(), **self._who())
        return outcome

    def _who(self) -> dict[str, Any]:
        """What the records of final rounds have in common: the target and the kernels."""
        return {"target": self.target.name, "kernels": [kernel.name for kernel in self.kernels]}

    def _final(self) -> dict[str, Any]:
        """The same, and which final it is: each outcome ends one."""
        return {**self._who(), "final": len(list(self.journal.of(event="result", **self._who())))}

    # Screening: every candidate is checked, then timed once or twice.

    def _entries(self) -> list[Entry]:
        for record in self.journal.of(event="final", **self._final()):
            finalists = [Entry(*item) for item in record["entries"]]
            return [entry for entry in finalists if not self._is_refused(entry)]
        entries: list[Entry] = []
        for kernel in self.kernels:
            before = self._before(kernel)
            self._screen(kernel, before)
            entries += self._finalists(kernel, before)
        if not entries:
            return []
        entries += self._rivals()
        shown = [[entry.backend, entry.config, entry.role] for entry in entries]
        self.journal.add(event="final", entries=shown, **self._final())
        return entries

    def _before(self, kernel: Kernel) -> dict[str, int]:
        match = profiles.rule(self.profile, kernel.name, self.target.problem)
        return dict(match.config)

    def _screen(self, kernel: Kernel, before: dict[str, int]) -> None:
        """What runs now, then always what is nearest to the best so far, while time lasts."""
        share = self.budget.part(0.6 / len(self.kernels))
        left = self._untried(kernel)
        tried = [record for record in self._tried(kernel) if record["event"] == "screened"]
        times = [(record["us"], record["config"]) for record in tried]
        while left and not share.over:
            centre = min(times, key=lambda item: item[0])[1] if times else before
            config = before
            if config not in left:
                config = candidates.nearest(left, centre, kernel.parameters)
            left.remove(config)
            best = min((us for us, _ in times), default=None)
            us = self._try(kernel, config, best)
            if us is not None:
                times.append((us, config))

    def _untried(self, kernel: Kernel) -> list[dict[str, int]]:
        known = {written(record["config"]) for record in self._tried(kernel)}
        return [config for config in self._offers(kernel)[0] if written(config) not in known]

    def _offers(self, kernel: Kernel) -> tuple[list[dict[str, int]], list[Refusal]]:
        """What may be tried, and what the backend knows can't run, with its reasons."""
        if kernel.name not in self._offered:
            before = self._before(kernel)
            offered = candidates.configurations(kernel, self.target.problem, self.device)
            fit: list[dict[str, int]] = []
            unfit: list[Refusal] = []
            for config in offered if before in offered else [before, *offered]:
                reasons = candidates.reasons_against(
                    kernel, config, self.target.problem, self.device
                )
                if reasons:
                    unfit.append((kernel.name, config, "; ".join(reasons)))
                else:
                    fit.append(config)
            self._offered[kernel.name] = fit, unfit
        return self._offered[kernel.name]

    def _tried(self, kernel: Kernel) -> Iterator[dict[str, Any]]:
        yield from self.journal.of(target=self.target.name, kernel=kernel.name, event="screened")
        yield from self.journal.of(target=self.target.name, kernel=kernel.name, event="refused")

    def _try(self, kernel: Kernel, config: dict[str, int], best: float | None) -> float | None:
        """Check a candidate and time it; None, with the reason in the journal, if it's no good."""
        place = {"target": self.target.name, "kernel": kernel.name, "config": config}
        self.tell(f"{kernel.name}: {written(config)}")
        reasons: list[str] = []
        begun = len(list(self.journal.of(event="trying", **place)))
        if begun >= CRASHES:
            reasons.append(f"the process ended {begun} times while it ran")
        if not reasons:
            self.journal.add(event="trying", **place)
            reason, ratio = self._verdict(kernel.runner, config)
            reasons += [reason] if reason else []
        if reasons:
            self.journal.add(event="refused", reason="; ".join(reasons), **place)
            self._still_alive()
            return None
        us = self._screening_time(kernel.runner, config, best)
        self.journal.add(event="screened", us=us, error_ratio=ratio, **place)
        return us

    def _screening_time(self, backend: Backend, config: Config, best: float | None) -> float:
        run, place = self._call(backend, config), inputs.where(self.device)
        once = clock.seconds(run, place)
        if best is not None and once * 1e6 > HOPELESS * best:
            return once * 1e6
        repeats = clock.repeats_for(once)
        # One call that is long enough for a sample is one already.
        samples = [clock.seconds(run, place, repeats) for _ in range(2 if repeats > 1 else 1)]
        return min(once, *samples) * 1e6

    def _verdict(self, backend: Backend, config: Config) -> tuple[str | None, float]:
        """Why a candidate can't be taken, or None; and its error over what is allowed."""
        _, judge = self._problem()
        try:
            ratio = judge.error_ratio(self._call(backend, config)())
        except Exception as error:  # whatever a candidate meets is the reason against it
            first = (str(error).strip().splitlines() or [""])[0]
            return f"{type(error).__name__}: {first[:160]}", float("inf")
        if not ratio <= 1.0:
            return f"wrong: {ratio:.3g} times the allowed error", ratio
        return None, ratio

    def _still_alive(self) -> None:
        """An illegal access leaves a device that refuses everything: the next process goes on."""
        import torch

        try:
            torch.zeros(1, device=inputs.where(self.device)).add_(1).item()
        except RuntimeError as error:
            raise TuningError(
                f"the device stopped answering ({error}): the same command goes on without the "
                "candidate that did it"
            ) from error

    def _problem(self) -> tuple[inputs.Inputs, Judge]:
        if self._made is None:
            self.tell("computing the float64 reference")
            made = inputs.make(self.target.problem, inputs.where(self.device))
            self._made = made, Judge(made)
        return self._made

    def _call(self, backend: Backend, config: Config) -> Callable[[], inputs.Results]:
        return inputs.call(backend, self._problem()[0], config)

    # Final rounds: the best of each kernel, what ran before, and every other backend, in turns.

    def _finalists(self, kernel: Kernel, before: dict[str, int]) -> list[Entry]:
        sound = [r for r in self._tried(kernel) if r["event"] == "screened"]
        ranked = [r["config"] for r in sorted(sound, key=lambda r: float(r["us"]))]
        entries = [Entry(kernel.backend, before, "before")] if before in ranked else []
        others = [config for config in ranked if config != before][:FINALISTS]
        return entries + [Entry(kernel.backend, config, "candidate") for config in others]

    def _rivals(self) -> list[Entry]:
        """Every other backend of the profile that can run the problem, as it is configured now."""
        problem, tuned = self.target.problem, {kernel.backend for kernel in self.kernels}
        rivals = []
        for name in self.profile.preference_for(problem.operation):
            if name in tuned or name == "reference":
                continue
            try:
                backend = registry.load(name)
            except BackendUnavailableError:
                continue
            if backend.reasons_against(problem, self.device):
                continue
            if select.probe_failure(name, self.device) is None:
                match = profiles.rule(self.profile, f"{name}.{problem.operation}", problem)
                rivals.append(Entry(name, dict(match.config), "rival"))
        return rivals

    def _rounds(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[list[float]]]:
        """The entries that are sound, and microseconds of each of them in every complete round."""
        kept, rounds = list(entries), self._complete_rounds(entries)
        if not kept or len(rounds) >= ROUNDS:
            return kept, rounds
        kept = [entry for entry in entries if self._is_sound(entry)]
        rounds = self._complete_rounds(kept)
        share = self.budget.part(1.0)
        sampled = self.journal.of(event="sample", **self._final())
        number = 1 + max((record["round"] for record in sampled), default=0)
        while kept and len(rounds) < ROUNDS:
            limit = self.budget.whole if len(rounds) < LEAST_ROUNDS else share
            if limit.over:
                break
            self.tell(f"round {len(rounds) + 1} of {ROUNDS}: {len(kept)} in turns")
            times = self._round(kept, number, limit)
            if times is not None:
                rounds.append(times)
            number += 1
        return kept, rounds

    def _complete_rounds(self, entries: Sequence[Entry]) -> list[list[float]]:
        samples: dict[int, dict[str, float]] = {}
        for record in self.journal.of(event="sample", **self._final()):
            samples.setdefault(record["round"], {})[record["entry"]] = record["us"]
        return [
            [times[entry.key] for entry in entries]
            for times in samples.values()
            if all(entry.key in times for entry in entries)
        ]

    def _round(self, entries: Sequence[Entry], number: int, limit: Limit) -> list[float] | None:
        """One sample of each; who begins changes from round to round."""
        times: dict[str, float] = {}
        for turn in range(len(entries)):
            entry = entries[(turn + number) % len(entries)]
            if limit.over:
                return None
            run, place = self._call_of(entry), inputs.where(self.device)
            if entry.key not in self._repeats:
                self._repeats[entry.key] = clock.repeats_for(clock.seconds(run, place))
            us = clock.seconds(run, place, self._repeats[entry.key]) * 1e6
            times[entry.key] = us
            self.journal.add(event="sample", round=number, entry=entry.key, us=us, **self._final())
        return [times[entry.key] for entry in entries]

    def _is_sound(self, entry: Entry) -> bool:
        """Checked in this process before its first sample, whatever the journal says."""
        if self.budget.whole.over:
            return True  # no sample follows
        self.tell(f"checking {entry.key}")
        reason, _ = self._verdict(registry.load(entry.backend), entry.config)
        if reason is None:
            return True
        place = {"target": self.target.name, "kernel": self._name(entry), "config": entry.config}
        self.journal.add(event="refused", reason=reason, **place)
        self._still_alive()
        return False

    def _is_refused(self, entry: Entry) -> bool:
        place = {"target": self.target.name, "kernel": self._name(entry), "config": entry.config}
        return any(True for _ in self.journal.of(event="refused", **place))

    def _name(self, entry: Entry) -> str:
        return f"{entry.backend}.{self.target.problem.operation}"

    def _call_of(self, entry: Entry) -> Callable[[], inputs.Results]:
        return self._call(registry.load(entry.backend), entry.config)

    # Who won.

    def _outcome(self, entries: Sequence[Entry], rounds: Sequence[Sequence[float]]) -> Outcome:
        """Scores are medians of the ratio to the round's fastest: rounds of another day, or of a
        slower moment, compare."""
        floor = [min(times) for times in rounds]
        scores = [
            statistics.median(
                times[index] / base for times, base in zip(rounds, floor, strict=True)
            )
            for index in range(len(entries))
        ]
        medians = [
            statistics.median(times[index] for times in rounds) for index in range(len(entries))
        ]
        standings = [
            Standing(entry.backend, entry.config, entry.role, us, score)
            for entry, us, score in zip(entries, medians, scores, strict=True)
        ]
        records = self.journal.of(event="refused", target=self.target.name)
        refused: list[Refusal] = [
            (str(r["kernel"]), dict(r["config"]), str(r["reason"])) for r in records
        ]
        for kernel in self.kernels:
            refused += self._offers(kernel)[1]
        return Outcome(
            target=self.target.name,
            problem=str(self.target.problem),
            operation=self.target.problem.operation,
            tuned=tuple(kernel.backend for kernel in self.kernels),
            rounds=len(rounds),
            tried=len(list(self.journal.of(event="screened", target=self.target.name))),
            standings=tuple(standings),
            refused=grouped(refused),
            margin=MARGIN,
        )
