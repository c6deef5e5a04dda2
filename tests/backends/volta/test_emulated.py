"""The kernels' own sources, run lane by lane on the CPU: see tools/volta/emulator.h."""

from __future__ import annotations

import shutil

import pytest
import torch

from portattn.arguments import describe, options
from portattn.backends.volta import VoltaBackend, forward, program
from portattn.backends.volta.layout import KernelProblem
from portattn.backends.volta.variants import Variant
from portattn.dispatch import profile as profiles
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.device import Device
from tests.backends.volta.held import TAKEN, V100, WITH_GRADIENTS, hold, hold_gradients, run
from tests.conformance.budget import check, expected, problem_of
from tests.conformance.cases import Case, build, dense
from tools.volta import emulation

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")


@pytest.mark.parametrize(
    ("turing", "dtype"),
    [
        pytest.param(False, torch.float16, id="m8n8k4-float16"),
        pytest.param(True, torch.bfloat16, id="m16n8k8-bfloat16"),
    ],
)
@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_conformance(
    case: Case,
    turing: bool,
    dtype: torch.dtype,
    generator: torch.Generator,
    dirty_memory: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program, "launch", emulation.launch)
    hold(case, dtype, "cpu", turing, generator)


@pytest.mark.parametrize(
    "turing",
    [
        pytest.param(False, id="m8n8k4"),
        pytest.param(True, id="m16n8k8", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("case", WITH_GRADIENTS, ids=lambda case: case.name)
def test_gradients(
    case: Case,
    turing: bool,
    generator: torch.Generator,
    dirty_memory: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program, "launch", emulation.launch)
    hold_gradients(case, "cpu", turing, generator)


@pytest.mark.parametrize("turing", [False, True], ids=["m8n8k4", "m16n8k8"])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 192, 256])
def test_shared_memory_has_no_conflicts(
    head_dim: int, turing: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight lanes that are served together touch eight different groups of four banks, always."""
    seen = []

    def trace(variant: Variant, blocks: int, shared: int, problem: KernelProblem) -> None:
        seen.append(emulation.accesses(variant, shared, problem))

    monkeypatch.setattr(program, "launch", trace)
    case = dense("one tile", 1, 64, 130, heads=1, kv_heads=1, head_dim=head_dim)
    built = build(case, torch.float16, torch.device("cpu"), generator)
    run(built.tensors, problem_of(built.tensors, built.options), turing)
    (found,) = seen
    for threads in (found.loads, found.stores):
        assert max(map(len, threads)) > 0
        for first in range(0, len(threads), 8):
            # Lanes beyond the head dim store nothing; all others do the same steps.
            lanes = [lane for lane in threads[first : first + 8] if lane]
            for step in zip(*lanes, strict=True):
                addresses = set(step)
                assert len({address // 16 % 8 for address in addresses}) == len(addresses)


def test_every_rule_of_a_profile(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles that a profile names fit the device and give the right answer."""
    monkeypatch.setattr(program, "launch", emulation.launch)
    case = dense("rule", 1, 70, 90, heads=1, kv_heads=1, head_dim=64, causal=True)
    built = build(case, torch.float16, torch.device("cpu"), generator)
    t, o = built.tensors, built.options
    want, tried = expected(t, o), set()
    for name in profiles.names():
        profile = profiles.by_name(name)
        for rule in profile.kernels.get("volta.forward", ()):
            config = dict(rule.use)
            device = Device("cuda", "nvidia", str(profile.match.family), name)
            problem = problem_of(t, o)
            reasons = VoltaBackend().tuning_reasons_against(
                "volta.forward", config, problem, device
            )
            assert not reasons, (name, config)
            turing = device.family == "sm_75"
            if (turing, *config.items()) not in tried:
                tried.add((turing, *config.items()))
                out, lse = forward.forward(t, problem, config, turing)
                check({"out": out, "lse": lse}, want, torch.float16, f"{name} {config}")
    assert len(tried) >= 5


def test_bfloat16_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.empty(1, 8, 2, 64, dtype=torch.bfloat16)
    settings = options(q, softmax_scale=None, causal=True, window_size=(-1, -1), softcap=0.0)
    problem = describe("forward", AttentionTensors(q, q, q), settings)
    monkeypatch.setattr(program, "missing", lambda family: None)
    assert not VoltaBackend().reasons_against(problem, V100)
    monkeypatch.setenv(program.BFLOAT16, "refuse")
    (reason,) = VoltaBackend().reasons_against(problem, V100)
    assert f"{program.BFLOAT16}=refuse" in reason
