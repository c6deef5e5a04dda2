"""The one table of backends: nothing else names them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache

from portattn.dispatch.backend import Backend
from portattn.errors import ArgumentError, BackendUnavailableError


@dataclass(frozen=True)
class Entry:
    """Where a backend lives; imported when it is first considered."""

    name: str
    module: str
    attribute: str
    summary: str


ENTRIES = (
    Entry(
        "torch_sdpa",
        "portattn.backends.torch_sdpa",
        "TorchSdpaBackend",
        "PyTorch's own fused kernels, where one exists for the problem",
    ),
    Entry(
        "triton",
        "portattn.backends.triton",
        "TritonBackend",
        "portable Triton kernels with every feature, for GPUs from Ampere on",
    ),
    Entry(
        "hopper",
        "portattn.backends.hopper",
        "HopperBackend",
        "Gluon kernels with TMA and wgmma, for H100 and H200",
    ),
    Entry(
        "volta",
        "portattn.backends.volta",
        "VoltaBackend",
        "CUDA C++ kernels for Volta and Turing, through CuPy",
    ),
    Entry(
        "ascend",
        "portattn.backends.ascend",
        "AscendBackend",
        "the fused operators of torch-npu, for Ascend 910B and 910_93",
    ),
    Entry(
        "ascend_tiled",
        "portattn.backends.ascend.tiled_backend",
        "AscendTiledBackend",
        "a two-level tiled Triton kernel for Ascend, with softcap and sinks",
    ),
    Entry(
        "cpu",
        "portattn.backends.cpu",
        "CpuBackend",
        "every feature on a CPU in memory linear in length",
    ),
    Entry(
        "flash_attn",
        "portattn.backends.flash_attn",
        "FlashAttnBackend",
        "FlashAttention-2 of the flash-attn package",
    ),
    Entry(
        "flash_attn_4",
        "portattn.backends.flash_attn_4",
        "FlashAttn4Backend",
        "FlashAttention's kernels of the flash-attn-4 package",
    ),
    Entry(
        "flashinfer",
        "portattn.backends.flashinfer",
        "FlashInferBackend",
        "decoding by the flashinfer-python package",
    ),
    Entry(
        "reference",
        "portattn.backends.reference",
        "ReferenceBackend",
        "attention as its definition, in float64",
    ),
)


def names() -> tuple[str, ...]:
    """Names of all registered backends."""
    return tuple(entry.name for entry in ENTRIES)


@cache
def load(name: str) -> Backend:
    """Import a backend. Raises BackendUnavailableError when a library of its own is missing."""
    for entry in ENTRIES:
        if entry.name == name:
            break
    else:
        raise ArgumentError("backend", f"must be one of {', '.join(names())}", repr(name))
    try:
        module = importlib.import_module(entry.module)
    except ImportError as error:
        raise BackendUnavailableError(name, str(error)) from error
    backend: Backend = getattr(module, entry.attribute)()
    return backend
