"""Kernels of the volta backend compiled for this machine's CPU, lane by lane; see emulator.h."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from portattn.backends.volta.layout import KernelProblem
from portattn.backends.volta.variants import Variant

EMULATOR = Path(__file__).parent / "emulator.h"
_RUN = """
extern "C" void run(const void* problem, int blocks, int threads, int shared) {
  static Problem given;
  given = *static_cast<const Problem*>(problem);
  emulator::body = [] { KERNEL_NAME(given); };
  for (int block = 0; block < blocks; block++) emulator::run_block(block, threads, shared);
  emulator::tracing = false;
}
extern "C" void start_trace() {
  emulator::tracing = true;
  for (auto& thread : emulator::loads) thread.clear();
  for (auto& thread : emulator::stores) thread.clear();
}
extern "C" int traced(int stored, int thread, unsigned* into) {
  const std::vector<unsigned>& from = (stored ? emulator::stores : emulator::loads)[thread];
  if (into) std::copy(from.begin(), from.end(), into);
  return from.size();
}
"""


class Accesses(NamedTuple):
    """Byte addresses in shared memory of the first block's 16-byte accesses, thread by thread."""

    loads: list[list[int]]
    stores: list[list[int]]


def accesses(variant: Variant, shared: int, problem: KernelProblem) -> Accesses:
    """Run a kernel's first block and write down where it touches shared memory."""
    library = _library(variant)
    library.start_trace()
    library.run(ctypes.addressof(problem), 1, variant.threads, shared)
    found = []
    for stored in (0, 1):
        threads = []
        for thread in range(variant.threads):
            count = library.traced(stored, thread, None)
            addresses = (ctypes.c_uint * count)()
            library.traced(stored, thread, addresses)
            threads.append(list(addresses))
        found.append(threads)
    return Accesses(*found)


def launch(variant: Variant, blocks: int, shared: int, problem: KernelProblem) -> None:
    """Stands for portattn.backends.volta.program.launch over tensors in the CPU's memory."""
    _library(variant).run(ctypes.addressof(problem), blocks, variant.threads, shared)


@cache
def _library(variant: Variant) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        head = f'#define PORTATTN_EMULATED\n#include "{EMULATOR}"\n'
        source.write_text(head + variant.source + _RUN.replace("KERNEL_NAME", variant.kernel))
        flags = ("-O1", "-std=c++17", "-w", "-shared", "-fPIC", "-ffp-contract=off")
        subprocess.run(["g++", *flags, "-o", library, source], check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.run.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    loaded.run.restype = None
    return loaded
