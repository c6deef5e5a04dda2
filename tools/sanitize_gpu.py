"""Runs GPU kernels under NVIDIA's compute-sanitizer; exit code 1 if a tool reports anything.

A reduced suite, since the tools slow kernels down by ten to a hundred times: each kernel with and
without edges, features, pages and parts to merge. It runs once without a tool first, which fills
the caches of compiled kernels.

    python tools/sanitize_gpu.py [--backend triton] [--tool memcheck ...]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
TESTS = (
    "(test_forward and (plain or everything or varlen or pages or features or splits))"
    " or (test_backward and not dlse and (plain or everything or features))"
)


def main() -> int:
    """Run each tool in turn; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--tool", nargs="*", choices=TOOLS, default=TOOLS)
    options = parser.parse_args()
    suite = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("-m", "gpu", "tests/conformance/test_backends.py"),
        *("-k", f"{options.backend} and cuda and float16 and not bfloat16 and ({TESTS})"),
    ]
    if subprocess.run(suite, cwd=ROOT, check=False).returncode:
        return 1
    # Memory of its own for every tensor: a cached block hides what lies beyond a tensor's end.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in options.tool:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *suite]
        print(" ".join(command), flush=True)
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            print(f"{tool}: reports, or the tests failed", flush=True)
            return 1
        print(f"{tool}: nothing to report", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
