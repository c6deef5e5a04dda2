"""From tensors on `npu` to the vendor route, through everything in between; no NPU took part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch can't make a device in Python",
)
def test_the_dispatcher_takes_tensors_of_an_npu_to_the_vendor_s_operators() -> None:
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-m", "tests.backends.ascend.python_npu"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            facts = json.loads(line)
            found[facts.pop("name")] = facts
    training = ["npu_fusion_attention", "npu_fusion_attention_grad"]
    # The first call of a backend is preceded by its probe.
    assert found["dense"]["calls"][-2:] == training and found["varlen"]["calls"] == training
    assert found["cache"]["calls"] == ["npu_fused_infer_attention_score_v2"]
    for name in ("dense", "varlen", "cache"):
        assert found[name]["error"] < 2e-3 and found[name].get("gradient_error", 0.0) < 4e-3
    assert found["mixed"]["refused"] == "v: must be on the device of q, npu:0, got cpu"
