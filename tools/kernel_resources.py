"""Compile the Triton kernels for every chip, without one, and report what they use.

    python tools/kernel_resources.py            compare with the committed table
    python tools/kernel_resources.py --write    write it

Registers, spilled bytes (stack frame) and shared memory of each variant and architecture. A
variant is one call of the backend: its arguments, specialised as a launch would specialise them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TABLE = Path(__file__).parent.parent / "backends" / "triton" / "resources.json"
ARCHITECTURES = {
    80: "sm_80",
    86: "sm_86",
    89: "sm_89",
    90: "sm_90a",
    100: "sm_100a",
    120: "sm_120a",
}


class CompileOnly:
    """A driver for a chip that isn't there: kernels compile for it, and none is loaded."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack bytes and static shared bytes of a cubin's kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"])}
