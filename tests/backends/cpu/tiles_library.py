"""The compiled tiles of every instruction set that this machine runs, built for the tests."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import portattn.backends.cpu

SOURCES = Path(portattn.backends.cpu.__file__).parent / "csrc"
_V4 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
_AMX = [*_V4, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DPA_AMX"]
# In the order of the harness, with the flags of /proc/cpuinfo that they need.
_X86 = {
    "sse42": (["-march=x86-64-v2"], {"sse4_2"}),
    "avx2": (["-march=x86-64-v3"], {"avx2", "fma"}),
    "avx512": (_V4, {"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    "amx": (_AMX, {"amx_bf16", "avx512_bf16"}),
}
_ARM: dict[str, tuple[list[str], set[str]]] = {"neon": ([], set())}
_ALL = _X86 if platform.machine() == "x86_64" else _ARM


def variants() -> list[str]:
    """The instruction sets of this machine; none without a C compiler or on another system."""
    if platform.system() != "Linux" or shutil.which("cc") is None:
        return []
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return [name for name, (_, needs) in _ALL.items() if needs <= flags]


@cache
def _built() -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="portattn-tiles-"))
    common = ["cc", "-O3", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-function", f"-I{SOURCES}"]
    harness = Path(__file__).with_name("tiles_harness.c")
    (folder / "pool.h").write_text(
        "#include <stdint.h>\n"
        "void pa_pool_run(void (*)(void *, int64_t, int64_t), void *, int64_t, int64_t);\n"
    )
    jobs = [
        [*common, *flags, "-c", str(SOURCES / "tiles.c"), "-o", str(folder / f"{name}.o")]
        for name, (flags, _) in _ALL.items()
    ]
    jobs.append([*common, f"-I{folder}", "-c", str(harness), "-o", str(folder / "harness.o")])
    running = [subprocess.Popen(job) for job in jobs]
    assert all(process.wait() == 0 for process in running), "the C sources don't compile"
    objects = [str(path) for path in folder.glob("*.o")]
    library = folder / "tiles.so"
    subprocess.run(["cc", "-shared", *objects, "-o", str(library), "-lm", "-lpthread"], check=True)
    loaded = ctypes.CDLL(str(library))
    shutil.rmtree(folder)
    return loaded


def library(variant: str) -> ctypes.CDLL:
    """The library, set to one instruction set."""
    loaded = _built()
    if variant == "amx":
        assert loaded.harness_ask_for_amx() == 0
    ctypes.c_int.in_dll(loaded, "harness_isa").value = list(_ALL).index(variant)
    return loaded
