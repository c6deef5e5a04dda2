"""The kernels compile for sm_90a without a GPU, and use what the committed table says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


EVERYTHING = pytest.param(("hopper",), marks=pytest.mark.nightly, id="everything")


@pytest.mark.parametrize(
    "variants",
    [
        ("hopper forward D64 causal", "hopper backward D128 fixed order"),
        ("hopper forward D128 causal", "hopper backward D128 causal"),
        EVERYTHING,
    ],
    ids=lambda names: names[0],
)
def test_resources(variants: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("triton.experimental.gluon", reason="the kernels are Gluon's")
    command = [sys.executable, str(ROOT / "tools" / "kernel_resources.py")]
    for variant in variants:
        command += ["--only", variant]
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
