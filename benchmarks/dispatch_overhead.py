"""What portattn costs beside the kernel: each call's way to a decision, and the import.

explain() does what attention() does before the kernel runs, and nothing else: it validates,
describes and decides. From the second call of a problem on, that is one dictionary lookup.
Where there is an NVIDIA GPU, also the host's part of whole calls that keep it busy for less time
than they take: launched one after the other, the wall clock shows the host.

    python benchmarks/dispatch_overhead.py [--output benchmarks/results/dispatch_overhead.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import portattn
from portattn.cli.environment import record

CALLS = 2_000
LAUNCHES = 100
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
    if torch.cuda.is_available():
        result |= record(torch.device("cuda", 0))
        result["eager_call_us"] = {
            name: summary([seconds * 1e6 for seconds in launch_seconds(call)])
            for name, call in gpu_calls().items()
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


def gpu_calls() -> dict[str, Callable[[], object]]:
    """Small problems through the API, and torch's own call for the same forward."""
    q = torch.randn(1, 128, 8, 64, dtype=torch.bfloat16, device="cuda")
    k = torch.randn(1, 128, 2, 64, dtype=torch.bfloat16, device="cuda")
    length = k.shape[1]
    used = torch.full((1,), length, dtype=torch.int32, device="cuda")
    cache = portattn.ContiguousKVCache.from_tensors(k, k, used, longest=length)
    heads_first = [x.transpose(1, 2) for x in (q, k, k)]

    def sdpa() -> object:
        return F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)

    calls: dict[str, Callable[[], object]] = {"torch's SDPA, forward": sdpa}
    for backend in (None, "triton", "torch_sdpa"):
        calls[f"{backend or 'chosen'}, forward"] = partial(
            portattn.attention, q, k, k, causal=True, backend=backend
        )
    # torch_sdpa leaves a cache of this head dimension to others.
    calls["triton, decode"] = partial(
        portattn.attention_with_kvcache, q[:, :1], cache, backend="triton"
    )
    return calls


@torch.no_grad()
def launch_seconds(call: Callable[[], object]) -> list[float]:
    """Seconds of one call in a row of few enough that the launch queue never fills."""
    samples = []
    for _ in range(SAMPLES + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            call()
        samples.append((time.perf_counter() - start) / LAUNCHES)
    return samples[3:]


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
