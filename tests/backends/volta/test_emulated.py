"""The kernels' own sources, run lane by lane on the CPU: see tools/volta/emulator.h."""

from __future__ import annotations

import shutil

import pytest
import torch

from portattn.backends.volta import program
from tests.backends.volta.held import TAKEN, WITH_GRADIENTS, hold, hold_gradients
from tests.conformance.cases import Case
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


@pytest.mark.parametrize("turing", [False, True], ids=["m8n8k4", "m16n8k8"])
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
