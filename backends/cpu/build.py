"""Builds the library in csrc with the machine's C compiler.

Only the standard library is imported, so that the package's build step can load this file alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
LIBRARY = "libportattn_cpu.so"
# What the record beside a library is called; it holds its digest and that of its sources.
RECORD = "libportattn_cpu.json"

# Looked for in this order; CC goes first where it is an absolute path.
COMPILERS = ("/usr/bin/cc", "/usr/bin/gcc", "/usr/bin/clang", "/usr/local/bin/cc")
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wno-unused-function",
    # A product and a sum are fused where the kernel says so, on every machine alike.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
_TIMEOUT_SECONDS = 300


class BuildError(Exception):
    """The library can't be built here; the message says why."""


@dataclass(frozen=True)
class _Unit:
    """One file compiled for one instruction set."""

    source: str
    isa: str = ""
    flags: tuple[str, ...] = ()

    def command(self, compiler: str, folder: Path, flags: Sequence[str]) -> list[str]:
        """The compiler's arguments; the result is `object_file`."""
        named = (f"-DISA={self.isa}",) if self.isa else ()
        target = str(self.object_file(folder))
        return [
            compiler,
            *flags,
            *self.flags,
            *named,
            "-c",
            str(SOURCES / self.source),
            "-o",
            target,
        ]

    def object_file(self, folder: Path) -> Path:
        """Where the compiled file goes."""
        return folder / f"{Path(self.source).stem}_{self.isa or 'any'}.o"


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    *_AVX2,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
)
_BF16 = (*_AVX512, "-mavx512bf16")
_AMX = (*_BF16, "-mamx-tile", "-mamx-bf16", "-DPA_AMX")
_ANY = tuple(_Unit(name) for name in ("library.c", "pool.c", "decode_run.c", "prefill.c"))
_X86 = (
    _Unit("decode.c", "sse4", ("-msse4.2",)),
    _Unit("decode.c", "avx2", _AVX2),
    _Unit("decode.c", "avx512", _AVX512),
    _Unit("decode.c", "avx512_bf16", _BF16),
    _Unit("decode.c", "amx", _AMX),
    _Unit("tiles.c", "sse4", ("-msse4.2",)),
    _Unit("tiles.c", "avx2", _AVX2),
    _Unit("tiles.c", "avx512", _AVX512),
    _Unit("tiles.c", "amx", _AMX),
)
_ARM = (_Unit("decode.c", "neon"), _Unit("tiles.c", "neon"))
_UNITS = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}


def source_digest() -> str:
    """Digest of everything that the library is made from: sources, flags, this file."""
    digest = hashlib.sha256()
    for file in [*sorted(SOURCES.iterdir()), Path(__file__)]:
        if file.suffix in (".c", ".h", ".py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def find_compiler() -> str:
    """The absolute path of a C compiler. Raises BuildError when there is none."""
    chosen = os.environ.get("CC", "")
    if os.path.isabs(chosen) and os.access(chosen, os.X_OK):
        return chosen
    for candidate in COMPILERS:
        if os.access(candidate, os.X_OK):
            return candidate
    raise BuildError(
        f"there is no C compiler at {', '.join(COMPILERS)}: install one (gcc or clang), "
        "or set CC to the absolute path of yours"
    )


def build(target: Path, flags: Sequence[str] = (), link_flags: Sequence[str] = ()) -> Path:
    """Build the library into the folder `target`, where it appears complete or not at all.

    `flags` and `link_flags` come after the fixed ones. Returns the library's path. Raises
    BuildError with the compiler's words when it can't be built.
    """
    units = _ANY + _units_here()
    compiler = find_compiler()
    sources = source_digest()
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=target))
    try:
        used = (*FLAGS, *flags)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            commands = [unit.command(compiler, work, used) for unit in units]
            list(pool.map(_run, commands, [work] * len(commands)))
        library = work / LIBRARY
        objects = [str(unit.object_file(work)) for unit in units]
        _run(
            [compiler, "-shared", "-pthread", *link_flags, "-o", str(library), *objects, "-lm"],
            work,
        )
        record = {"library": file_digest(library), "sources": sources, "compiler": compiler}
        (work / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
        # The record last: a library without its own record is never loaded.
        for name in (LIBRARY, RECORD):
            os.replace(work / name, target / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / LIBRARY


def _units_here() -> tuple[_Unit, ...]:
    machine = platform.machine().lower()
    if sys.platform == "win32":
        raise BuildError("the library is written for systems with POSIX threads")
    if machine not in _UNITS:
        raise BuildError(f"the library has no kernels for {machine}")
    return _UNITS[machine]


def _run(command: Sequence[str], folder: Path) -> None:
    """Run the compiler in an environment that nothing else chose."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            env=environment,
            cwd=folder,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")
