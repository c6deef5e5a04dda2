"""Runs the CPU kernels under the compiler's sanitizers; exit code 1 at the first report.

The address and undefined-behaviour sanitizers watch the tests of the compiled kernels. The thread
sanitizer watches tests/backends/cpu/threads.c, which needs no Python.

    python tools/sanitize.py [address|thread]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from portattn.backends.cpu import build

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "backends" / "cpu"
# -O1 keeps the reports readable; an error ends the process, so that the run can't pass.
COMMON = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
ADDRESS = ("-fsanitize=address,undefined",)
THREAD = ("-fsanitize=thread",)
# Every layout, feature and dtype on every instruction set; the tiles on whole and ragged cases.
CASES = (
    "test_decode and (values or propagates or further) or "
    "test_tiles and (forward or backward) and (window or everything or varlen or pages or bias) "
    "or test_plan"
)

# The library of the folder in the first argument takes the place of the package's own.
RUN = """
import sys
from pathlib import Path
from portattn.backends.cpu import library
folder = Path(sys.argv[1])
library._package_folder = lambda: folder
assert library.state().path is not None, library.state().reason
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def main() -> int:
    """Run one kind of sanitizer, or both; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=("address", "thread"))
    kind = parser.parse_args().kind
    with tempfile.TemporaryDirectory(prefix="portattn-sanitize-") as name:
        if kind != "thread" and address(Path(name) / "address"):
            return 1
        if kind != "address" and thread(Path(name) / "thread"):
            return 1
    return 0


def address(folder: Path) -> int:
    """The tests with a library that checks every access and every undefined operation."""
    build.build(folder, flags=(*COMMON, *ADDRESS), link_flags=ADDRESS)
    runtimes = " ".join(_runtime(name) for name in ("libasan.so", "libubsan.so"))
    environment = {
        **os.environ,
        "LD_PRELOAD": runtimes,
        # Python and torch keep memory until the process ends.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", RUN, str(folder), "-q", "-x", "-p", "no:cacheprovider"]
    # What pytest captures is lost when a sanitizer ends the process, and its report with it.
    command.append("--capture=no")
    return subprocess.run(
        [*command, "-k", CASES, str(TESTS)], cwd=ROOT, env=environment, check=False
    ).returncode


def thread(folder: Path) -> int:
    """The C program with a library that checks the order of all accesses to shared memory."""
    library = build.build(folder, flags=(*COMMON, *THREAD), link_flags=THREAD)
    program = folder / "threads"
    flags = [*build.FLAGS, *COMMON, *THREAD, f"-I{build.SOURCES}"]
    files = [str(TESTS / "threads.c"), str(library), "-o", str(program), "-lm"]
    subprocess.run([build.find_compiler(), *flags, *files], check=True)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}
    return subprocess.run([str(program)], env=environment, check=False).returncode


def _runtime(name: str) -> str:
    """The path of a sanitizer's runtime library."""
    command = [build.find_compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
