"""Importing portattn is cheap and starts nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

SCRIPT = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import portattn
seconds = time.process_time() - start
print(json.dumps({
    "seconds": seconds,
    "modules": sorted({name.partition(".")[0] for name in set(sys.modules) - before}),
    "cuda": torch.cuda.is_initialized(),
}))
"""
OPTIONAL = {"pydantic", "yaml", "transformers", "diffusers", "triton", "cupy", "typer", "rich"}
BUDGET_SECONDS = 0.050


def test_import_costs_little_beyond_torch() -> None:
    # Of the processor, and the best of several: a busy machine adds time, it never takes any away.
    assert min(run["seconds"] for run in _runs()) <= BUDGET_SECONDS


def test_import_loads_no_optional_library_and_starts_no_device() -> None:
    run = _runs()[0]
    assert not OPTIONAL & set(run["modules"])
    assert run["cuda"] is False


@cache
def _runs() -> list[dict[str, Any]]:
    return [_run() for _ in range(4)]


def _run() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
