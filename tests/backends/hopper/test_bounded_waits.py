"""No wait lasts for ever inside `bounded_waits`, and one that would is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

COMPILED = """
import sys
sys.path.insert(0, {tools!r})
import kernel_resources
from portattn.backends.hopper import query_gradient
from portattn.backends.hopper.bounded_waits import bounded_waits
variant = ("fixed", "backward", 64, 64, {{"deterministic": True}})
with bounded_waits(query_gradient.query_gradient_kernel) as waits:
    kernel_resources.compile_call("hopper", "sm_90a", variant)
lines = open(query_gradient.__file__).read().splitlines()
for place in waits.places:
    file, line = place.split(":")
    if file == "query_gradient.py":
        assert "mbarrier.wait" in lines[int(line) - 1], place
print(len(waits.places), "bounded", waits.stuck())
"""

STUCK = """
import sys
import torch
from pathlib import Path
from importlib.util import module_from_spec, spec_from_file_location
from portattn.backends.hopper import HopperBackend, forward
from portattn.backends.hopper.bounded_waits import bounded_waits
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

text = Path(forward.__file__).read_text()
arrival = "\\n        mbarrier.arrive(bar.k_free.index(s), count=1)\\n"  # of whole tiles
assert text.count(arrival) == 1
path = Path({folder!r}) / "without_an_arrival.py"
path.write_text(text.replace(arrival, "\\n"))
spec = spec_from_file_location("without_an_arrival", path)
faulty = module_from_spec(spec)
sys.modules[spec.name] = faulty
spec.loader.exec_module(faulty)
q = torch.randn(1, 1024, 1, 64, device="cuda", dtype=torch.float16)
problem = AttentionProblem("forward", "dense", q.dtype, 1, 1024, 1024, 1, 1, 64, 64, 0.125)
with bounded_waits(faulty.forward_kernel, seconds=0.5) as waits:
    try:
        faulty.forward(AttentionTensors(q, q, q), problem, {{}})
        torch.cuda.synchronize()
        print("it ended")
    except RuntimeError:
        print("stuck:", *waits.stuck(), sep="\\n")
        lines = path.read_text().splitlines()
        for place in waits.stuck():
            print(lines[int(place.split(":")[1].split(",")[0]) - 1].strip())
"""


def _run(script: str, tmp_path: Path) -> str:
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return done.stdout + done.stderr


def test_every_wait_compiles_with_a_limit(tmp_path: Path) -> None:
    """Of the kernel's own source; the assembler takes what is made of them."""
    pytest.importorskip("triton.experimental.gluon", reason="the kernels are Gluon's")
    found = _run(COMPILED.format(tools=str(ROOT / "tools")), tmp_path)
    assert "bounded []" in found, found
    assert int(found.split(" bounded")[0].split()[-1]) >= 20, found


@pytest.mark.gpu
def test_a_missing_arrival_is_named(tmp_path: Path) -> None:
    """The producer waits for the keys' memory, which no warpgroup gives back."""
    pytest.importorskip("triton.experimental.gluon", reason="the kernels are Gluon's")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    found = _run(STUCK.format(folder=str(tmp_path)), tmp_path)
    assert "mbarrier.wait(bar.k_free.index(s), free)" in found, found
