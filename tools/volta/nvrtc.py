"""NVRTC and ptxas out of wheels, on a machine without a GPU.

    pip install --target FOLDER nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-nvcc-cu12==12.9.86
    pip install --target FOLDER --no-deps triton==3.4.0          # for nvdisasm 12.8

12.9 is the last release that compiles for sm_70.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = "PORTATTN_CUDA12"  # where the wheels were installed to


class Built(NamedTuple):
    """What ptxas says of a kernel, and its instructions."""

    registers: int
    spill_bytes: int
    sass: str


def folder() -> Path:
    """Where the wheels are. Raises SystemExit with what to do where they aren't."""
    given = os.environ.get(FOLDER, "")
    if not given or not (Path(given) / "nvidia/cuda_nvrtc").is_dir():
        raise SystemExit(f"{FOLDER} must name a folder with NVRTC 12.9: {__doc__}")
    return Path(given)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(folder() / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def ptx(source: str, architecture: str) -> bytes:
    """PTX of one source for "compute_70" or the like. Raises ValueError with the compiler's log."""
    library, program, size = _library(), ctypes.c_void_p(), ctypes.c_size_t()

    def check(code: int) -> None:
        if code:
            raise ValueError(library.nvrtcGetErrorString(code).decode())

    check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
        )
    )
    options = (f"--gpu-architecture={architecture}".encode(), b"--std=c++17")
    failed = library.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*options)
    )
    if failed:
        check(library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        check(library.nvrtcGetProgramLog(program, log))
        raise ValueError(log.value.decode())
    check(library.nvrtcGetPTXSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(library.nvrtcGetPTX(program, text))
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return text.raw[: size.value].rstrip(b"\0")


def assemble(text: bytes, architecture: str, kernel: str) -> Built:
    """One kernel of PTX through ptxas and nvdisasm for "sm_70" or the like."""
    tools = folder() / "triton/backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as scratch:
        source, cubin = Path(scratch) / "kernel.ptx", Path(scratch) / "kernel.cubin"
        source.write_bytes(text)
        ptxas = folder() / "nvidia/cuda_nvcc/bin/ptxas"
        said = _run(ptxas, "-v", f"-arch={architecture}", source, "-o", cubin).stderr
        sass = _run(tools / "nvdisasm", "-c", cubin).stdout
    about = said.partition(f"Compiling entry function '{kernel}'")[2].partition("Compiling")[0]
    code = sass.partition(f".text.{kernel}:")[2].partition("//----")[0]
    registers = re.search(r"Used (\d+) registers", about)
    assert registers and code, said
    spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill", about))
    return Built(int(registers[1]), spilled, code)


def _run(tool: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    if not os.access(tool, os.X_OK):
        tool.chmod(0o755)  # unpacked from a wheel by something else than pip
    command = [str(tool), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)
