"""Every call of the vendor route against the schemas and meta kernels of the real torch-npu.

Both live in processes of their own: torch-npu takes over a device type of torch, and is installed
into a folder that nothing else imports from. `make test-ascend` makes that folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("PORTATTN_ASCEND", ROOT / ".ascend"))
_NEEDED = [FOLDER / "npu" / "torch_npu", FOLDER / "cann" / "libascendcl.so"]


@pytest.mark.skipif(
    not all(path.exists() for path in _NEEDED),
    reason="needs torch-npu in a folder of its own: make test-ascend installs it",
)
def test_real_torch_npu_takes_every_call() -> None:
    environment = {
        **os.environ,
        "ASCEND_LAUNCH_BLOCKING": "1",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "LD_LIBRARY_PATH": str(FOLDER / "cann"),
        "PYTHONPATH": os.pathsep.join([str(FOLDER / "npu"), str(ROOT)]),
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.backends.ascend.real_operators"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])  # torch-npu greets on stdout
    assert counts["npu_fusion_attention"] >= 40
    assert counts["npu_fusion_attention_grad"] >= 40
    assert counts["npu_fused_infer_attention_score"] >= 4
    assert counts["npu_fused_infer_attention_score_v2"] >= 4
    assert counts["refused"] == 3
