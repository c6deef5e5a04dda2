"""Records all that is measured on a CPU: cpu-*.json and the plots, in six minutes.

Each benchmark runs in a process of its own, one after another, with a share of the time; what it
had no time for is counted as missing in its file.

    python benchmarks/cpu_record.py [--seconds 360] [--threads 1 2] [--folder benchmarks/results]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run them; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=360.0)
    parser.add_argument("--threads", type=int, nargs=2, default=[1, 2])
    parser.add_argument("--folder", type=Path, default=HERE / "results")
    parser.add_argument("--without-generate", action="store_true", help="where there is no model")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    few, many = (str(count) for count in given.threads)
    prefill = ("cpu_prefill.py", "--threads", few)
    # Share of the time, the file's name, whether there is a plot, and the command.
    parts = [
        (0.24, "cpu-decode", True, ("cpu_decode.py", "--threads", few, many)),
        (0.24, "cpu-prefill", True, prefill),
        (0.20, "cpu-prefill-no-amx", False, (*prefill, "--no-amx")),
    ]
    if not given.without_generate:
        peers = ("--peers", "portattn", "sdpa", "--tokens", "48", "--threads", few)
        parts.append((0.32, "cpu-generate", False, ("generate_cpu.py", *peers)))
    whole = sum(part[0] for part in parts)
    return sum(_failed(given, share / whole, *part) for share, *part in parts)


def _failed(
    given: argparse.Namespace, share: float, name: str, plotted: bool, command: tuple[str, ...]
) -> bool:
    seconds, start = share * given.seconds, time.monotonic()
    line = [sys.executable, str(HERE / command[0]), *command[1:]]
    line += ["--output", str(given.folder / f"{name}.json")]
    if plotted:
        line += ["--plot", str(given.folder / f"{name}.png")]
    if command[0] != "generate_cpu.py":
        # The last case to start needs time as well.
        line += ["--limit", str(0.75 * seconds)]
    try:
        code = subprocess.run(line, cwd=HERE.parent, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        code = -1
    print(f"{name}: {time.monotonic() - start:.0f} s, exit code {code}", flush=True)
    return code != 0


if __name__ == "__main__":
    sys.exit(main())
