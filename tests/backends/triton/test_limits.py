"""What is said of a tile before it is compiled holds after it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from portattn.dispatch import registry
from portattn.dispatch.backend import HasTuningReasons
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.tuning import candidates, targets

limits = pytest.importorskip("portattn.backends.triton.limits", exc_type=ImportError)
TABLE = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "triton-resources.json"
DEVICES = {
    family: Device("cuda", "nvidia", family, family, cores=100) for family in limits.SHARED_KIB
}


def compiled() -> Iterator[Any]:
    """family, variant, kernel and what the committed table says it uses."""
    for key, used in json.loads(TABLE.read_text(encoding="utf-8"))["kernels"].items():
        family, variant, *_, kernel = key.split(", ")
        # Neither of these two keeps tiles in shared memory, so neither has a bound.
        own = kernel not in ("prepare_kernel", "merge_kernel") and not variant.startswith("hopper")
        if own and family in limits.SHARED_KIB:
            yield pytest.param(family, variant, kernel, used["shared"], id=key)


@pytest.mark.parametrize(("family", "variant", "kernel", "shared"), list(compiled()))
def test_the_bound_is_below_what_the_compiler_used(
    family: str, variant: str, kernel: str, shared: int
) -> None:
    operation, dims, *rest = variant.split()
    dim, _, dim_v = dims.removeprefix("D").partition("/")
    heads, kv_heads = (32, 8) if "32/8" in rest else (16, 1) if dim == "576" else (8, 8)
    stored = {"int8": torch.int8, "float8": torch.float8_e4m3fn}.get(rest[-1] if rest else "")
    decode = operation == "decode"
    problem = AttentionProblem(
        operation,  # type: ignore[arg-type]
        "cache" if decode else "dense",
        torch.float16,
        4,
        1 if decode else 4096,
        4096,
        heads,
        kv_heads,
        int(dim),
        int(dim_v or dim),
        0.1,
        kv_dtype=stored,
    )
    own = {
        need.loop: need.shared
        for need in limits.needs(f"triton.{operation}", {}, problem, DEVICES[family])
    }
    bound = own[kernel.removesuffix("_kernel")]
    assert shared / 3 < bound <= shared


@pytest.mark.parametrize("family", DEVICES)
def test_no_default_is_refused_and_what_is_too_large_is(family: str) -> None:
    backend, device = registry.load("triton"), DEVICES[family]
    assert isinstance(backend, HasTuningReasons)
    largest = {"forward": {"block_m": 256, "block_n": 256, "warps": 4, "stages": 5}}
    largest["decode"] = {"block_n": 256, "stages": 7}
    largest["backward"] = {"dq_block_n": 128, "dq_stages": 4, "dq_block_m": 128, "dq_warps": 4}
    for target in targets.usual(device):
        problem = target.problem
        name = f"triton.{problem.operation}"
        assert backend.tuning_reasons_against(name, {}, problem, device) == []
        if problem.head_dim >= 128:
            reasons = backend.tuning_reasons_against(
                name, largest[problem.operation], problem, device
            )
            assert any("KiB of shared memory" in reason for reason in reasons)


def test_most_of_the_space_is_left_out_on_a_small_card() -> None:
    device = DEVICES["sm_86"]
    backend = registry.load("triton")
    kernel = candidates.Kernel("triton", "forward", backend.capability.kernels["forward"], backend)
    problem = targets.chosen(targets.usual(device), ["forward-d128-causal-2048"])[0].problem
    space = candidates.configurations(kernel, problem, device)
    fit = [c for c in space if not candidates.reasons_against(kernel, c, problem, device)]
    assert len(space) == 500
    assert 0 < len(fit) < 250
    assert {"block_m": 128, "block_n": 64, "warps": 8, "stages": 2} in fit
