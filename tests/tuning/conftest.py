"""What the tests of tuning share: a configuration folder of their own, and the fake backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.dispatch import registry, select
from portattn.dispatch.device import Device
from tests.tuning.fake import FakeBackend

Install = Callable[[FakeBackend], FakeBackend]


PROFILE = """\
schema: 1
name: small-cpu
match: {type: cpu}
preference:
  forward: [cpu, reference]
  backward: [cpu, reference]
  decode: [cpu, torch_sdpa, reference]
kernels:
  cpu.decode:
    - when: {seqlen_q: {min: 100}}
      use: {block_n: 64}
    - use: {block_n: 1024}
"""


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for overlays; the journal comes to lie beside it."""
    monkeypatch.delenv("PORTATTN_BACKEND", raising=False)
    profile = tmp_path / "small-cpu.yaml"
    profile.write_text(PROFILE, encoding="utf-8")
    monkeypatch.setenv("PORTATTN_PROFILE", str(profile))
    folder = tmp_path / "config" / "profiles"
    monkeypatch.setattr(profiles, "overlay_path", lambda name: folder / f"{name}.yaml")
    select.forget()
    # Threads that wait for each other would make every time noise.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    select.forget()


@pytest.fixture
def here() -> Device:
    return devices.of(torch.device("cpu"))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a fake in the place of the CPU's backend, with only the reference beside it."""
    load = registry.load

    def put(fake: FakeBackend) -> FakeBackend:
        monkeypatch.setattr(registry, "load", lambda name: fake if name == "cpu" else load(name))
        monkeypatch.setattr(registry, "names", lambda: ("cpu", "torch_sdpa", "reference"))
        return fake

    return put
