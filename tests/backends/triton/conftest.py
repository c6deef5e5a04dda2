"""Kernels in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def on_cpu() -> torch.device:
    """The CPU, where the interpreter is on."""
    launch = pytest.importorskip("portattn.backends.common.launch")
    if not launch.interpreted():
        pytest.skip("kernels are compiled here: the conformance suite runs them")
    return torch.device("cpu")
