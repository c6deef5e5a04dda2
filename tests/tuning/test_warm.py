"""Compiling ahead runs every rule."""

from __future__ import annotations

from typing import Any

from portattn import tuning
from portattn.dispatch import profile as profiles
from portattn.dispatch.device import Device
from tests.tuning.fake import FakeBackend


def test_every_rule_of_the_active_profile_runs_once(here: Device, install: Any) -> None:
    fake = install(FakeBackend())
    done = tuning.warm(here)
    assert all(item.reason is None and item.first and item.second for item in done)
    sources = {item.source for item in done}
    rules = profiles.for_device(here).kernels["cpu.decode"]
    assert sources == {f"profile small-cpu: cpu.decode rule {n + 1}" for n in range(len(rules))}
    assert set(fake.calls) == {64, 1024}
    assert any("paged" in item.problem for item in done)


def test_one_that_fails_does_not_keep_the_others_cold(here: Device, install: Any) -> None:
    def full(out: Any) -> Any:
        raise RuntimeError("out of memory")

    install(FakeBackend(damage={1024: full}))
    done = tuning.warm(here)
    assert {item.reason for item in done} == {None, "out of memory"}
