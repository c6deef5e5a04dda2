"""Compiles ahead: runs every rule of the active profile once, so that first use doesn't compile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from portattn.dispatch import profile as profiles
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.dispatch.profile_schema import HardwareProfile, Range, When
from portattn.errors import ArgumentError
from portattn.tuning import candidates, clock, inputs, targets
from portattn.tuning.candidates import Kernel

_PAGE = 16


@dataclass(frozen=True)
class Warmed:
    """One kernel's run for a problem: seconds of the first call and of the second; or the reason
    why there was none."""

    kernel: str
    problem: str
    source: str
    first: float | None
    second: float | None
    reason: str | None = None


def warm(device: Device, progress: Callable[[str], None] | None = None) -> tuple[Warmed, ...]:
    """Run each kernel that the active profile prefers once on the usual problems, decode also in
    pages, and once by every rule that none of these reaches."""
    profile = profiles.for_device(device)
    done: list[Warmed] = []
    for kernel in candidates.kernels(device):
        if kernel.backend not in profile.preference_for(kernel.operation):
            continue
        seen: set[str] = set()
        for problem in _problems(kernel, profile, device):
            match = profiles.rule(profile, kernel.name, problem)
            if problem not in _usual(kernel, device) and match.source in seen:
                continue
            seen.add(match.source)
            if progress is not None:
                progress(f"{kernel.name}: {problem}")
            with inputs.current(device):
                done.append(_run(kernel, problem, match, device))
    return tuple(done)


def _usual(kernel: Kernel, device: Device) -> list[AttentionProblem]:
    usual = [target.problem for target in targets.usual(device)]
    own = [problem for problem in usual if problem.operation == kernel.operation]
    if kernel.operation == "decode":
        own += [replace(problem, page_size=_PAGE) for problem in own]
    return list(dict.fromkeys(own))


def _problems(
    kernel: Kernel, profile: HardwareProfile, device: Device
) -> Iterator[AttentionProblem]:
    usual = _usual(kernel, device)
    yield from usual
    for rule in profile.kernels.get(kernel.name, ()):
        if usual and rule.when is not None:
            problem = _meeting(rule.when, usual[0])
            if not inputs.unsupported(problem):
                yield problem


def _meeting(when: When, problem: AttentionProblem) -> AttentionProblem:
    """A problem changed as little as meets a rule's conditions."""
    changes: dict[str, Any] = {}
    for name in when.model_fields_set:
        value = getattr(when, name)
        if value is None:
            continue
        if isinstance(value, Range):
            now = getattr(problem, name, problem.heads // problem.kv_heads)
            least = max(now, value.min or 0)
            value = least if value.max is None else min(least, value.max)
        if name == "dtype":
            value = getattr(torch, value if isinstance(value, str) else value[0], problem.dtype)
        elif name == "window":
            value = (64, 0) if value else ((-1, 0) if problem.causal else (-1, -1))
        elif name == "more_keys":
            name, value = "seqlen_k", problem.seqlen_q * (2 if value else 1)
        elif name == "gqa":
            name, value = "heads", value * problem.kv_heads
        elif name == "heads":
            changes["kv_heads"] = 1
        elif name == "causal":
            changes["window"] = (-1, 0) if value else (-1, -1)
        changes[name] = value
    if "head_dim" in changes:
        changes.setdefault("head_dim_v", changes["head_dim"])
    return replace(problem, **changes)


def _run(
    kernel: Kernel, problem: AttentionProblem, match: profiles.RuleMatch, device: Device
) -> Warmed:
    reasons = inputs.unsupported(problem) + kernel.runner.reasons_against(problem, device)
    if reasons:
        return Warmed(kernel.name, str(problem), match.source, None, None, "; ".join(reasons))
    place = inputs.where(device)
    try:
        call = inputs.call(kernel.runner, inputs.make(problem, place), match.config)
        first = _timed(call, place)
        second = _timed(call, place)
    except (RuntimeError, ArgumentError) as error:  # as a small card's memory: others still warm
        return Warmed(kernel.name, str(problem), match.source, None, None, str(error))
    return Warmed(kernel.name, str(problem), match.source, first, second)


def _timed(call: Callable[[], object], place: torch.device) -> float:
    """By the wall clock, which compiling takes."""
    start = time.perf_counter()
    clock.seconds(call, place)
    return time.perf_counter() - start
