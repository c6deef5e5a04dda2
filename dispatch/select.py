"""From candidates to a Decision: who runs a problem, with which configuration, and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from portattn.dispatch import registry
from portattn.dispatch.backend import Backend, has_stand_in
from portattn.dispatch.capability import Rejection
from portattn.dispatch.device import Device
from portattn.dispatch.environment import reader
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import ArgumentError, BackendUnavailableError, NoBackendError

if TYPE_CHECKING:
    from portattn.dispatch.cost import Estimate
    from portattn.dispatch.profile import HardwareProfile

log = logging.getLogger("portattn")

# The environment variables that decisions depend on.
environment = reader(
    "PORTATTN_BACKEND", "PORTATTN_PROFILE", "PORTATTN_CPU_ISA", "PORTATTN_VOLTA_BFLOAT16"
)


@dataclass(frozen=True)
class CandidateTime:
    """Microseconds of one candidate: measured on the device, where the profile has a measurement
    of this class of problems, and predicted, what the profile's roofline allows at best."""

    backend: str
    measured_us: float | None
    predicted_us: float | None

    def __str__(self) -> str:
        if self.measured_us is not None:
            return f"measured {self.measured_us:.1f} us"
        if self.predicted_us is not None:
            return f"predicted {self.predicted_us:.1f} us at best"
        return "unknown"


@dataclass(frozen=True, eq=False)
class Decision:
    """What runs a problem and why; `explain` shows it whole.

    `candidates` are the backends that can run it, in the order they were preferred; the first is
    the chosen one, and `times` says what is known of each. `estimate` is modelled from the
    profile's roofline, `measured_us` comes from the profile's measurements of this problem class
    where there are any. `notes` say what keeps a candidate from its own kernels. Compared by
    identity: one problem key has one Decision.
    """

    problem: AttentionProblem
    device: Device
    profile: str
    backend: str
    detail: str
    config: Mapping[str, int]
    config_source: str
    estimate: Estimate | None
    measured_us: float | None
    candidates: tuple[str, ...]
    times: tuple[CandidateTime, ...]
    rejected: tuple[Rejection, ...]
    forced: bool
    runner: Backend = field(repr=False)
    notes: tuple[str, ...] = ()


def forced_backend(argument: str | None) -> str | None:
    """The backend that must run: the argument, else PORTATTN_BACKEND, else None."""
    return argument or os.environ.get("PORTATTN_BACKEND") or None


def select(
    problem: AttentionProblem,
    device: Device,
    profile: HardwareProfile | None = None,
    backend: str | None = None,
) -> Decision:
    """Choose a backend for a problem on a device.

    Without `profile` the device's own is used, and the chosen backend is probed once per process.
    With one, nothing runs: the decision is what that hardware would take.
    Raises NoBackendError with every candidate's reasons; for a forced backend, with its reasons.
    """
    from portattn.dispatch import cost
    from portattn.dispatch import profile as profiles

    _set_log_level()
    live = profile is None
    used = profiles.for_device(device) if profile is None else profile
    backend = forced_backend(backend)
    names = (backend,) if backend else used.preference_for(problem.operation)
    candidates: list[tuple[str, Backend]] = []
    rejected: list[Rejection] = []
    for name in names:
        reasons, runner = _reasons(name, problem, device)
        if reasons:
            rejected.append(Rejection(name, tuple(reasons)))
        elif runner is not None:
            candidates.append((name, runner))
    missing = _stand_ins(candidates, problem, device)
    # Sorting keeps the order of equals.
    candidates.sort(key=lambda candidate: (candidate[0] == "reference", candidate[0] in missing))
    candidates = _fastest_first(candidates, problem, used)
    tried = [name for name, _ in candidates]
    if live:
        candidates = _from_first_sound(candidates, device, rejected)
    if not candidates:
        raise NoBackendError(problem, device, rejected)
    chosen, runner = candidates[0]
    estimate = cost.estimate(problem, used, device.cores)
    times = _times(candidates, problem, used, estimate)
    if live and not backend:
        before = {*names[: names.index(chosen)], *tried[: tried.index(chosen)]}
        _announce(chosen, [item for item in rejected if item.backend in before])
    match = profiles.rule(used, f"{chosen}.{problem.operation}", problem)
    return Decision(
        problem=problem,
        device=device,
        profile=used.name,
        backend=chosen,
        detail=runner.describe(problem, device),
        config=match.config,
        config_source=match.source,
        estimate=estimate,
        measured_us=times[0].measured_us,
        candidates=tuple(name for name, _ in candidates),
        times=times,
        rejected=tuple(rejected),
        forced=backend is not None,
        runner=runner,
        notes=tuple(f"{name}: {why}" for name, why in missing.items()),
    )


def _stand_ins(
    candidates: list[tuple[str, Backend]], problem: AttentionProblem, device: Device
) -> dict[str, str]:
    """The candidates that would run the problem by a stand-in, and why."""
    found = {}
    for name, runner in candidates:
        why = runner.stands_in(problem, device) if has_stand_in(runner) else None
        if why is not None:
            found[name] = why
    return found


def _set_log_level() -> None:
    """Show the log at the level that PORTATTN_LOG names; without it, logging's settings hold."""
    level = os.environ.get("PORTATTN_LOG", "").upper()
    if not level or log.handlers:
        return
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ArgumentError("PORTATTN_LOG", "must be debug, info, warning or error", repr(level))
    log.addHandler(logging.StreamHandler())
    log.setLevel(level)


def _reasons(
    name: str, problem: AttentionProblem, device: Device
) -> tuple[list[str], Backend | None]:
    """Why a backend can't run the problem here, by what it declares."""
    try:
        runner = registry.load(name)
    except BackendUnavailableError as error:
        return [error.cause], None
    return runner.reasons_against(problem, device), runner


def _from_first_sound(
    candidates: list[tuple[str, Backend]], device: Device, rejected: list[Rejection]
) -> list[tuple[str, Backend]]:
    """The candidates from the first whose probe passes; those before it join the rejected.

    Later ones are not probed: they don't run.
    """
    for position, (name, _) in enumerate(candidates):
        cause = probe_failure(name, device)
        if cause is None:
            return candidates[position:]
        rejected.append(Rejection(name, (f"its probe failed: {cause}",)))
    return []


_PROBED: dict[tuple[str, Device], str | None] = {}


def probe_failure(name: str, device: Device) -> str | None:
    """Run a backend's probe, once per process and device; the cause if it failed, else None."""
    key = (name, device)
    if key not in _PROBED:
        try:
            registry.load(name).probe(device)
            _PROBED[key] = None
        except Exception as error:  # whatever a probe meets is the reason that explain() shows
            _PROBED[key] = f"{type(error).__name__}: {error}"
            log.warning("%s can't be used on %s: %s", name, device, _PROBED[key])
    return _PROBED[key]


def _fastest_first(
    candidates: list[tuple[str, Backend]], problem: AttentionProblem, profile: HardwareProfile
) -> list[tuple[str, Backend]]:
    """Measured times win over the profile's order; a candidate without one keeps its place.

    The places of the measured candidates are given to them in the order of their times: what
    nobody measured neither gains nor loses by it, and stays where the profile put it.
    """
    from portattn.dispatch import profile as profiles

    times = {name: profiles.measured_us(profile, name, problem) for name, _ in candidates}
    measured = [candidate for candidate in candidates if times[candidate[0]] is not None]
    in_order = iter(sorted(measured, key=lambda candidate: times[candidate[0]] or 0.0))
    return [
        candidate if times[candidate[0]] is None else next(in_order) for candidate in candidates
    ]


def _times(
    candidates: list[tuple[str, Backend]],
    problem: AttentionProblem,
    profile: HardwareProfile,
    estimate: Estimate,
) -> tuple[CandidateTime, ...]:
    """What is known of every candidate; the roofline is the hardware's, so the same for all."""
    from portattn.dispatch import profile as profiles

    predicted = None if estimate.seconds is None else estimate.seconds * 1e6
    return tuple(
        CandidateTime(name, profiles.measured_us(profile, name, problem), predicted)
        for name, _ in candidates
    )


_ANNOUNCED: set[tuple[str, tuple[Rejection, ...]]] = set()


def _announce(chosen: str, rejected: list[Rejection]) -> None:
    """Say once in the log that a preferred backend was passed over, and why."""
    if not rejected:
        return
    key = (chosen, tuple(rejected))
    if key in _ANNOUNCED:
        return
    if len(_ANNOUNCED) < _CACHE_LIMIT:
        _ANNOUNCED.add(key)
    level = logging.WARNING if chosen == "reference" else logging.INFO
    why = "; ".join(f"{item.backend}: {', '.join(item.reasons)}" for item in rejected)
    log.log(level, "%s runs this problem instead of %s", chosen, why)


_CACHE: dict[Hashable, Any] = {}
_CACHE_LIMIT = 4096


def known(key: Hashable) -> Any:
    """What was cached for a key, None where nothing was."""
    return _CACHE.get(key)


Made = TypeVar("Made")


def cached(key: Hashable, decide: Callable[[], Made]) -> Made:
    """The decision for a key, and what comes of it: made by `decide` the first time.

    Bounded, oldest keys go first.
    """
    decision: Made | None = _CACHE.get(key)
    if decision is None:
        decision = decide()
        if len(_CACHE) >= _CACHE_LIMIT:
            for old in list(_CACHE)[: _CACHE_LIMIT // 2]:
                _CACHE.pop(old, None)
        _CACHE[key] = decision
    return decision


def forget() -> None:
    """Drop every cached decision, profile and probe result, as after a change of any of them."""
    from portattn.dispatch import profile as profiles

    profiles.forget()
    _CACHE.clear()
    _PROBED.clear()
    _ANNOUNCED.clear()
