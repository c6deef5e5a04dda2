"""What the CUDA driver is handed, compared with what Triton's own launcher hands it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_on_a_cuda_driver_that_runs_nothing(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None or torch.cuda.is_available():
        pytest.skip("needs a C compiler, and no driver that could be mistaken for this one")
    here = Path(__file__).parent
    theirs = Path(pytest.importorskip("triton.backends.nvidia.driver").__file__ or "").parent
    source = (here / "fake_cuda.c").read_text()
    # Triton's module asks for functions that nothing here calls.
    wanted = set(re.findall(r"\bcu[A-Z]\w+(?=\()", (theirs / "driver.c").read_text()))
    stubs = "".join(f"int {name}(void) {{ return 1; }}\n" for name in wanted if name not in source)
    (tmp_path / "stubs.c").write_text(stubs)
    command = [compiler, "-shared", "-fPIC", f"-I{theirs / 'include'}", "-Wl,-soname,libcuda.so.1"]
    command += [str(here / "fake_cuda.c"), str(tmp_path / "stubs.c")]
    subprocess.run([*command, "-o", str(tmp_path / "libcuda.so.1")], check=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "TRITON_LIBCUDA_PATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TRITON_INTERPRET": "0",
    }
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*tests, str(here / "on_fake_cuda.py")],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
