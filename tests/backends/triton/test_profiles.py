"""Derived rules of the shipped profiles: what the kernels choose by themselves, within the card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from portattn.dispatch import profile as profiles
from portattn.dispatch.problem import AttentionProblem
from portattn.dispatch.profile_schema import Rule

TABLE = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "triton-resources.json"
PROBLEM = AttentionProblem(
    "forward", "dense", torch.bfloat16, 4, 4096, 4096, 32, 8, 64, 64, 0.125, causal=True
)


def derived() -> Iterator[Any]:
    for name in profiles.names():
        for kernel, rules in profiles.by_name(name).kernels.items():
            for number, rule in enumerate(rules, 1):
                if kernel.startswith("triton.") and rule.basis == "derived":
                    yield pytest.param(name, kernel, rule, id=f"{name}-{kernel}-{number}")


@pytest.mark.parametrize(("name", "kernel", "rule"), list(derived()))
def test_a_derived_rule_is_what_the_kernel_takes_by_itself(
    name: str, kernel: str, rule: Rule
) -> None:
    """Where the kernel's own choice changes, its reasons hold for the rule as well."""
    tiles = pytest.importorskip("portattn.backends.triton.tiles", exc_type=ImportError)
    device = profiles.as_device(profiles.by_name(name))
    assert rule.when is not None
    dim = rule.when.head_dim.max  # type: ignore[union-attr]
    problem = replace(PROBLEM, head_dim=dim, head_dim_v=dim)
    if kernel == "triton.decode":
        problem = replace(problem, operation="decode", layout="cache", seqlen_q=1)
        takes = tiles.decode(problem, device, {}), tiles.decode(problem, device, rule.use)
    elif kernel == "triton.backward":
        problem = replace(problem, operation="backward")
        takes = tuple(tiles.backward(problem, device.family, use) for use in ({}, rule.use))
    else:
        takes = tuple(tiles.forward(problem, device.family, use) for use in ({}, rule.use))
    assert profiles.rule(profiles.by_name(name), kernel, problem).config == rule.use
    assert takes[0] == takes[1]


@pytest.mark.parametrize("name", sorted({str(param.values[0]) for param in derived()}))
def test_what_the_compiler_needs_fits_the_card(name: str) -> None:
    """By the committed table of compiled kernels, which test_compiled.py keeps true."""
    profile = profiles.by_name(name)
    family = profiles.as_device(profile).family.removesuffix("a")
    table = json.loads(TABLE.read_text(encoding="utf-8"))["kernels"]
    own = {
        key: used for key, used in table.items() if key.split(",")[0].removesuffix("a") == family
    }
    assert own, f"the table lacks {family}"
    assert profile.device.shared_kib is not None
    for key, used in own.items():
        assert used["shared"] <= profile.device.shared_kib * 1024, key
