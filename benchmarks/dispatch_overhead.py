"""What portattn costs beside the kernel: each call's way to a decision, and the import.

explain() does what attention() does before the kernel runs, and nothing else: it validates,
describes and decides. From the second call of a problem on, that is one dictionary lookup.

    python benchmarks/dispatch_overhead.py [--output benchmarks/results/dispatch_overhead.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import timeit
from pathlib import Path

import torch

import portattn
from portattn.cli.environment import record

CALLS = 2_000
SAMPLES = 31
IMPORTS = 7
IMPORT = (
    "import time, torch; start = time.perf_counter(); import portattn; "
    "print(time.perf_counter() - start)"
)


def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    result = {
        **record(torch.device("cpu")),
        "decision_us": summary([seconds * 1e6 for seconds in decision_seconds()]),
        "import_ms": summary([import_seconds() * 1e3 for _ in range(IMPORTS)]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


def decision_seconds() -> list[float]:
    """Seconds of one decision after the first, one value per sample of many calls."""
    q = torch.randn(1, 16, 8, 64)
    k = torch.randn(1, 16, 2, 64)

    def decide() -> None:
        portattn.explain(q, k, k, causal=True)

    decide()
    return [total / CALLS for total in timeit.repeat(decide, number=CALLS, repeat=SAMPLES)]


def import_seconds() -> float:
    """Seconds of `import portattn` in a fresh process that has imported torch."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def summary(values: list[float]) -> dict[str, float]:
    """Median, quartiles and best."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "lower": lower, "upper": upper, "best": min(values)}


if __name__ == "__main__":
    main()
