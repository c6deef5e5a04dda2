"""What a backend can't do, it says: each limit it declares, crossed one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from portattn.dispatch import device as devices
from portattn.dispatch import registry
from portattn.dispatch.device import Device
from portattn.dispatch.problem import FEATURES, OPERATIONS, AttentionProblem
from portattn.dispatch.select import select
from portattn.errors import NoBackendError

PLAIN = AttentionProblem("forward", "dense", torch.float32, 1, 8, 8, 2, 2, 16, 16, 0.25)
# A value of the problem that needs each feature.
NEEDS = {
    "causal": {"causal": True, "window": (-1, 0)},
    "window": {"window": (3, 0)},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi": True},
    "bias": {"bias": True},
    "bias_grad": {"bias_grad": True},
    "mask": {"mask": True},
    "sinks": {"sinks": True},
    "gqa": {"kv_heads": 1},
    "head_dim_v": {"head_dim_v": 8},
    "dropout": {"dropout_p": 0.1},
    "deterministic": {"deterministic": True},
    "lse_grad": {"lse_grad": True},
    "paged": {"page_size": 16},
    "leftpad": {"leftpad": True},
    "strided": {"unit_stride": False},
    "kv_scale": {"kv_scale": True, "kv_dtype": torch.int8},
}
DEVICES = {
    "cpu": Device("cpu", "intel", "avx2", "a CPU"),
    "cuda": Device("cuda", "nvidia", "sm_80", "a GPU"),
    "npu": Device("npu", "huawei", "ascend910b", "an NPU"),
}


def test_every_feature_has_a_problem() -> None:
    assert set(NEEDS) == set(FEATURES)
    for feature, changes in NEEDS.items():
        assert feature in replace(PLAIN, **changes).features  # type: ignore[arg-type]


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("feature", FEATURES)
def test_features(name: str, feature: str) -> None:
    backend = registry.load(name)
    problem = replace(PLAIN, **NEEDS[feature])  # type: ignore[arg-type]
    reasons = backend.reasons_against(problem, _home(name))
    if feature not in backend.capability.features:
        assert f"{feature} is not supported" in reasons


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("kind", DEVICES)
def test_devices(name: str, kind: str) -> None:
    backend = registry.load(name)
    reasons = backend.reasons_against(PLAIN, DEVICES[kind])
    if kind not in backend.capability.devices:
        assert any(f"not on {kind}" in reason for reason in reasons)


@pytest.mark.parametrize("name", registry.names())
def test_dtypes_dims_operations_and_layouts(name: str) -> None:
    backend, home = registry.load(name), _home(name)
    capability = backend.capability
    own = torch.float32 if torch.float32 in capability.dtypes else torch.bfloat16
    refused = [
        (replace(PLAIN, dtype=torch.int8), "dtype int8 is not supported"),
        (
            replace(PLAIN, dtype=own, kv_dtype=torch.int16),
            "keys and values of int16 are not supported",
        ),
        (
            replace(PLAIN, head_dim=capability.max_head_dim + 1),
            f"head_dim {capability.max_head_dim + 1} is more than",
        ),
    ]
    for operation in OPERATIONS:
        for layout in ("dense", "varlen", "cache"):
            problem = replace(PLAIN, operation=operation, layout=layout)  # type: ignore[arg-type]
            layouts = capability.operations.get(operation, frozenset())
            if not layouts:
                refused.append((problem, f"has no {operation}"))
            elif layout not in layouts:
                refused.append((problem, f"{operation} has no {layout} layout"))
    for problem, words in refused:
        reasons = backend.reasons_against(problem, home)
        assert any(words in reason for reason in reasons), (words, reasons)


def test_the_error_lists_every_candidate_with_its_reasons() -> None:
    problem = replace(PLAIN, dtype=torch.int8)
    with pytest.raises(NoBackendError) as caught:
        select(problem, devices.of(torch.device("cpu")))
    assert {r.backend for r in caught.value.rejections} == {"torch_sdpa", "cpu", "reference"}
    for name in ("torch_sdpa", "cpu", "reference"):
        assert f"  {name}:\n    - dtype int8 is not supported" in str(caught.value)


@pytest.mark.parametrize("name", registry.names())
def test_an_explicit_choice_raises_its_own_reasons(name: str) -> None:
    with pytest.raises(NoBackendError) as caught:
        select(replace(PLAIN, dtype=torch.int8), devices.of(torch.device("cpu")), backend=name)
    assert [r.backend for r in caught.value.rejections] == [name]


def _home(name: str) -> Device:
    kinds = registry.load(name).capability.devices
    return next(device for kind, device in DEVICES.items() if kind in kinds)
