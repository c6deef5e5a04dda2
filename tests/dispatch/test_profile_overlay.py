"""A user's changes of a shipped profile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from portattn.dispatch import profile as profiles
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import ProfileError

Write = Callable[..., Path]

CPU = Device("cpu", "intel", "avx2", "A CPU", cores=4)
PROBLEM = AttentionProblem("forward", "dense", torch.float32, 1, 64, 64, 8, 2, 64, 64, 0.125)
OVERLAY = """\
schema: 1
name: x86-avx2
device: {bandwidth_gbs: 25}
links: {host_gbs: 10}
preference: {forward: [cpu, reference]}
kernels:
  cpu.forward:
    - use: {block_m: 16, block_n: 16}
measured:
  - {backend: cpu, operation: forward, when: {}, microseconds: 3.0}
"""


def test_an_overlay_changes_what_it_names(configuration: Path, write: Write) -> None:
    write(OVERLAY, configuration / "x86-avx2.yaml")
    shipped, profile = profiles.by_name("x86-avx2"), profiles.for_device(CPU)
    assert profile.device.bandwidth_gbs == 25
    assert profile.device.tflops_per_core == shipped.device.tflops_per_core
    assert profile.links.host_gbs == 10
    assert profile.preference_for("forward") == ("cpu", "reference")
    assert profile.preference_for("decode") == shipped.preference_for("decode")
    assert profiles.rule(profile, "cpu.forward", PROBLEM).config == {"block_m": 16, "block_n": 16}
    assert profile.kernels["cpu.decode"] == shipped.kernels["cpu.decode"]
    assert profiles.measured_us(profile, "cpu", PROBLEM) == 3.0
    assert profiles.measured_us(shipped, "cpu", PROBLEM) is None


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "says"),
    [
        ("name: x86-avx2", "name: x86-amx", 2, "name", "must be x86-avx2"),
        ("links:", "match:", 4, "match", "unknown key"),
        ("block_m: 16", "block_m: 17", 8, "kernels.cpu.forward[0].use.block_m", "found 17"),
        ("[cpu, reference]", "[mine]", 5, "preference.forward[0]", "must be one of"),
        ("microseconds: 3.0", "seconds: 3.0", 10, "measured[0].seconds", "unknown key"),
    ],
)
def test_an_overlay_with_a_fault_changes_nothing(
    configuration: Path, write: Write, old: str, new: str, line: int, key: str, says: str
) -> None:
    before = profiles.for_device(CPU)
    profiles.forget()
    file = write(OVERLAY.replace(old, new, 1), configuration / "x86-avx2.yaml")
    for _ in range(2):  # the fault isn't forgotten after the first call
        with pytest.raises(ProfileError) as caught:
            profiles.for_device(CPU)
        assert (caught.value.file, caught.value.line, caught.value.key) == (str(file), line, key)
        assert says in caught.value.problem
    file.unlink()
    assert profiles.for_device(CPU) == before


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666])
def test_an_overlay_that_others_can_write_is_refused(
    configuration: Path, write: Write, mode: int
) -> None:
    write(OVERLAY, configuration / "x86-avx2.yaml").chmod(mode)
    with pytest.raises(ProfileError, match="written by others"):
        profiles.for_device(CPU)


def test_an_overlay_of_another_user_is_refused(
    configuration: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(OVERLAY, configuration / "x86-avx2.yaml")
    if os.getuid() == 0:
        os.chown(file, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ProfileError, match="another user"):
        profiles.for_device(CPU)


def test_an_overlay_is_judged_by_the_file_behind_a_link(configuration: Path, write: Write) -> None:
    target = write(OVERLAY, configuration.parent / "elsewhere.yaml")
    target.chmod(0o666)
    (configuration / "x86-avx2.yaml").symlink_to(target)
    with pytest.raises(ProfileError, match="written by others"):
        profiles.for_device(CPU)
    target.unlink()
    with pytest.raises(ProfileError, match="No such file"):
        profiles.for_device(CPU)
