"""Every kernel compiles for every chip, and uses what the committed table says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "variants", [("forward D128 causal", "decode D128"), ("backward D64 causal",)]
)
def test_resources(variants: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, str(ROOT / "tools" / "kernel_resources.py")]
    for variant in variants:
        command += ["--only", variant]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
