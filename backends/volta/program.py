"""Kernels compiled by NVRTC through CuPy, or loaded as PTX, and launched on torch's stream."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from portattn.backends.volta.layout import KernelProblem
from portattn.backends.volta.variants import Variant
from portattn.errors import BackendUnavailableError

log = logging.getLogger("portattn")

# A folder of m8n8k4 kernels from tools/volta/build.py, for machines whose NVRTC can't target sm_70.
PTX_FOLDER = "PORTATTN_VOLTA_PTX"
# "refuse" declines bfloat16, which is else computed as float16, clamped to that type's range.
BFLOAT16 = "PORTATTN_VOLTA_BFLOAT16"
_NEEDED_SHARED = 48 * 1024  # what a block may have without asking


def dtype_reasons(dtype: torch.dtype) -> list[str]:
    """Why bfloat16 isn't taken where the user refused its conversion."""
    if dtype == torch.bfloat16 and os.environ.get(BFLOAT16) == "refuse":
        return [f"bfloat16 would be computed as float16, which {BFLOAT16}=refuse forbids"]
    return []


def missing(family: str) -> str | None:
    """Why kernels can't be made for a family here; None when nothing is known against it."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy can't be imported ({error}): pip install cupy-cuda12x"
    if os.environ.get(PTX_FOLDER) and family != "sm_75":
        return None
    try:
        major, minor = cupy.cuda.nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"NVRTC isn't found ({str(error).splitlines()[0]}): "
            "pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12==12.9.86"
        )
    if major > 12 and family in ("sm_70", "sm_72"):
        return (
            f"NVRTC {major}.{minor} can't target {family}: install cupy-cuda12x and "
            f"nvidia-cuda-nvrtc-cu12==12.9.86, or name a folder of compiled kernels in {PTX_FOLDER}"
        )
    return None


def launch(variant: Variant, blocks: int, shared: int, problem: KernelProblem) -> None:
    """Run a kernel over `blocks` blocks on torch's current device and stream."""
    from cupy_backends.cuda.api import driver

    device = torch.cuda.current_device()
    stream = torch.cuda.current_stream(device).cuda_stream
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(problem))
    driver.launchKernel(
        _function(variant, device, shared).ptr,
        *(blocks, 1, 1),
        *(variant.threads, 1, 1),
        shared,
        stream,
        ctypes.addressof(arguments),
        0,
    )


@cache
def _function(variant: Variant, device: int, shared: int) -> Any:
    """The compiled kernel on a device."""
    import cupy

    torch.cuda.init()  # torch's context is the device's primary one, which CuPy then shares
    with cupy.cuda.Device(device):
        kernel = _module(variant).get_function(variant.kernel)
        if shared > _NEEDED_SHARED:
            kernel.max_dynamic_shared_size_bytes = shared
        kernel.preferred_shared_memory_carveout = 100
        return kernel.kernel


def _module(variant: Variant) -> Any:
    import cupy

    folder = os.environ.get(PTX_FOLDER)
    if folder and not variant.turing:
        path = Path(folder) / variant.file_name
        if not path.exists():
            raise BackendUnavailableError(
                "volta", f"{path} is missing: tools/volta/build.py makes {dict(variant.constants)}"
            )
        return cupy.RawModule(path=str(path))
    log.info("volta: NVRTC compiles %s unless CuPy's cache has it %s", variant.kernel, variant)
    return cupy.RawModule(code=variant.source, options=("--std=c++17",))
