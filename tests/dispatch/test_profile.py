"""Hardware profiles: those that ship, which one a device has, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.dispatch import profile_yaml, registry
from portattn.dispatch.device import Device
from portattn.dispatch.problem import OPERATIONS, AttentionProblem
from portattn.dispatch.profile_schema import Range, Rule, When
from portattn.errors import BackendUnavailableError

Write = Callable[..., Path]

CPU = Device("cpu", "intel", "avx2", "A CPU", cores=4)
PROBLEM = AttentionProblem("forward", "dense", torch.float32, 1, 64, 64, 8, 2, 64, 64, 0.125)


@pytest.mark.parametrize("name", profiles.names())
def test_a_shipped_profile_is_valid_and_named_as_its_file(name: str) -> None:
    profile = profiles.by_name(name)
    assert profile.name == name
    assert profiles.path(name).stem == name
    assert profiles.resolve(name) is profile
    for operation in OPERATIONS:
        # Something must always be able to run.
        assert profile.preference_for(operation)[-1] == "reference"


@pytest.mark.parametrize("name", profiles.names())
def test_a_shipped_profile_names_only_kernels_of_its_device(name: str) -> None:
    profile = profiles.by_name(name)
    if profile.match.type is not None:
        for kernel in profile.kernels:
            try:
                capability = registry.load(kernel.partition(".")[0]).capability
            except BackendUnavailableError:
                continue  # its library isn't installed here
            assert profile.match.type in capability.devices


def rules() -> Iterator[Any]:
    for name in profiles.names():
        for kernel, candidates in profiles.by_name(name).kernels.items():
            for number in range(1, len(candidates) + 1):
                yield pytest.param(name, kernel, number, id=f"{name}-{kernel}-{number}")


@pytest.mark.parametrize(("name", "kernel", "number"), list(rules()))
def test_every_shipped_rule_is_reached(name: str, kernel: str, number: int) -> None:
    profile = profiles.by_name(name)
    reached = {profiles.rule(profile, kernel, problem).source for problem in problems_near(profile)}
    basis = profile.kernels[kernel][number - 1].basis
    suffix = "" if basis is None else f", {basis}"
    assert f"profile {name}: {kernel} rule {number}{suffix}" in reached


def problems_near(profile: profiles.HardwareProfile) -> Iterator[AttentionProblem]:
    """A problem for each rule, that meets the rule's own conditions; and one that meets none."""
    yield replace(PROBLEM, seqlen_q=10_000, seqlen_k=10_000, head_dim=250)
    for candidates in profile.kernels.values():
        for rule in candidates:
            yield meeting(rule)


def meeting(rule: Rule) -> AttentionProblem:
    changes: dict[str, Any] = {}
    when = rule.when or When()
    for name in when.model_fields_set:
        value = getattr(when, name)
        if isinstance(value, Range):
            value = value.min if value.min is not None else value.max
        if name == "dtype":
            value = getattr(torch, value if isinstance(value, str) else value[0])
        if name == "window":
            value = (16, 0) if value else (-1, -1)
        if name == "more_keys":
            name, value = "seqlen_k", PROBLEM.seqlen_q * (2 if value else 1)
        if name == "gqa":
            name, value = "heads", value * PROBLEM.kv_heads
        changes[name] = value
    return replace(PROBLEM, **changes)


def test_both_parsers_read_the_shipped_profiles_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in profiles.names():
        raw = profiles.path(name).read_bytes()
        compiled = profile_yaml.parse(raw, name)
        with monkeypatch.context() as patch:
            patch.setattr(profile_yaml, "_LOADER", yaml.SafeLoader)
            assert profile_yaml.parse(raw, name) == compiled
        assert compiled.values == yaml.safe_load(raw)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (Device("cpu", "intel", "sse4", "c"), "x86-sse4"),
        (Device("cpu", "amd", "avx2", "c"), "x86-avx2"),
        (Device("cpu", "intel", "avx512", "c"), "x86-avx512"),
        (Device("cpu", "amd", "avx512_bf16", "c"), "x86-avx512"),
        (Device("cpu", "intel", "amx", "c"), "x86-amx"),
        (Device("cpu", "arm", "neon", "c"), "arm-neon"),
        (Device("cpu", "unknown", "unknown", "c"), "generic-cpu"),
        (Device("cuda", "nvidia", "sm_70", "V100", 0, 32 * 2**30, 80), "nvidia-v100"),
        (Device("cuda", "nvidia", "sm_70", "V100", 0, 16 * 2**30, 80), "nvidia-v100-16"),
        (Device("cuda", "nvidia", "sm_75", "Tesla T4", 0, 15 * 2**30, 40), "nvidia-t4"),
        (Device("cuda", "nvidia", "sm_80", "A100", 0, 79 * 2**30, 108), "nvidia-a100"),
        (Device("cuda", "nvidia", "sm_80", "A100", 0, 39 * 2**30, 108), "nvidia-a100-40"),
        (
            Device("cuda", "nvidia", "sm_89", "NVIDIA GeForce RTX 4090", 0, 23 * 2**30, 128),
            "nvidia-rtx4090",
        ),
        (Device("cuda", "nvidia", "sm_90a", "NVIDIA H100", 0, 79 * 2**30, 132), "nvidia-h100"),
        (Device("cuda", "nvidia", "sm_90a", "NVIDIA H200", 0, 139 * 2**30, 132), "nvidia-h200"),
        (
            Device("cuda", "nvidia", "sm_86", "NVIDIA GeForce RTX 3090", 0, 23 * 2**30, 82),
            "nvidia-rtx3090",
        ),
        (Device("cuda", "nvidia", "sm_89", "NVIDIA L40S", 0, 44 * 2**30, 142), "nvidia-l40s"),
        (Device("cuda", "nvidia", "sm_89", "NVIDIA L4", 0, 22 * 2**30, 58), "generic-accelerator"),
        (Device("cuda", "nvidia", "sm_100a", "NVIDIA B200", 0, 178 * 2**30, 148), "nvidia-b200"),
        (
            Device("cuda", "nvidia", "sm_120a", "NVIDIA GeForce RTX 5090", 0, 31 * 2**30, 170),
            "nvidia-rtx5090",
        ),
        (Device("npu", "huawei", "ascend910b", "Ascend910B2", 0, 61 * 2**30), "ascend-910b2"),
        (Device("npu", "huawei", "ascend910b", "Ascend910B4", 0, 29 * 2**30), "ascend-910b4"),
        (Device("npu", "huawei", "ascend910b", "Ascend910B"), "ascend-910b"),
        (Device("npu", "huawei", "ascend910", "Ascend910A"), "ascend-910a"),
        (Device("cuda", "nvidia", "sm_86", "RTX A6000"), "generic-accelerator"),
        (Device("cuda", "nvidia", "sm_137", "Tomorrow"), "generic-accelerator"),
        (Device("cuda", "amd", "gfx942", "MI300X"), "generic-accelerator"),
        (Device("npu", "huawei", "ascend950", "Ascend950"), "ascend-950"),
        (Device("mps", "apple", "mps", "Apple GPU"), "generic-accelerator"),
        (Device("xpu", "intel", "xpu", "Arc"), "generic-accelerator"),
    ],
    ids=str,
)
def test_a_device_gets_the_closest_profile(device: Device, name: str) -> None:
    assert profiles.for_device(device).name == name
    scores = [profiles.by_name(each).match.specificity(device) for each in profiles.names()]
    known = sorted(score for score in scores if score is not None)
    assert len(known) == 1 or known[-1] > known[-2], "two profiles fit equally well"


def test_another_product_of_the_family_has_no_rates() -> None:
    h20 = Device("cuda", "nvidia", "sm_90a", "NVIDIA H20", 0, 95 * 2**30, 78)
    profile = profiles.for_device(h20)
    assert profile.name == "nvidia-h100"
    assert profile.device.shared_kib == 227
    assert not profile.device.tflops
    assert profile.device.bandwidth_gbs is None
    assert profiles.by_name("nvidia-h100").device.tflops


def test_this_machine_has_a_profile_of_its_own_kind() -> None:
    for device in devices.available():
        profile = profiles.for_device(device)
        assert profile is profiles.for_device(device)
        assert profile.match.type in (None, device.type)


@pytest.mark.parametrize("name", profiles.names())
def test_a_profile_fits_the_device_it_describes(name: str) -> None:
    device = profiles.as_device(profiles.by_name(name))
    if not name.startswith("generic"):
        assert profiles.closest(device).name == name
    if device.type == "cpu" and device.family != "unknown":
        assert device.isa[-1] == device.family


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, write: Write, whole: str) -> None:
    monkeypatch.setenv("PORTATTN_PROFILE", "nvidia-t4")
    assert profiles.for_device(CPU).name == "nvidia-t4"
    monkeypatch.setenv("PORTATTN_PROFILE", str(write(whole)))
    assert profiles.for_device(CPU).name == "mine"
    monkeypatch.setenv("PORTATTN_PROFILE", "")
    assert profiles.for_device(CPU).name == "x86-avx2"


def test_rules_and_measurements(write: Write, whole: str) -> None:
    profile = profiles.load_file(write(whole))
    plain = profiles.rule(profile, "cpu.forward", PROBLEM)
    assert (dict(plain.config), plain.source) == (
        {"block_m": 64},
        "profile mine: cpu.forward rule 2",
    )
    causal = replace(PROBLEM, causal=True)
    assert profiles.rule(profile, "cpu.forward", causal).config == {"block_m": 32, "block_n": 64}
    windowed = replace(causal, window=(8, 0))
    assert profiles.rule(profile, "cpu.forward", windowed).config == {"block_m": 64}
    none = profiles.rule(profile, "cpu.decode", PROBLEM)
    assert (dict(none.config), none.source) == ({}, "the kernel's own defaults")
    with pytest.raises(TypeError):
        plain.config["block_m"] = 16  # type: ignore[index]
    assert profiles.measured_us(profile, "cpu", PROBLEM) == 12.5
    assert profiles.measured_us(profile, "reference", PROBLEM) is None
    assert profiles.measured_us(profile, "cpu", replace(PROBLEM, operation="backward")) is None
    assert profiles.measured_us(profile, "cpu", replace(PROBLEM, heads=2)) is None
    assert profiles.measured_us(profile, "cpu", replace(PROBLEM, dtype=torch.float64)) is None


def test_a_rule_says_what_it_is_based_on(write: Write, whole: str) -> None:
    text = whole.replace("- use: {block_m: 64}", "- use: {block_m: 64}\n      basis: derived")
    profile = profiles.load_file(write(text))
    source = profiles.rule(profile, "cpu.forward", PROBLEM).source
    assert source == "profile mine: cpu.forward rule 2, derived"


@pytest.mark.parametrize(
    ("when", "changes"),
    [
        ({"dtype": "float16"}, {"dtype": torch.float16}),
        ({"dtype": ["float16", "bfloat16"]}, {"dtype": torch.bfloat16}),
        ({"page_size": {"min": 1}}, {"page_size": 16}),
        ({"layout": "varlen"}, {"layout": "varlen"}),
        ({"causal": True}, {"causal": True}),
        ({"window": True}, {"window": (4, -1)}),
        ({"more_keys": True}, {"seqlen_q": 8, "seqlen_k": 9}),
        ({"head_dim": 96}, {"head_dim": 96}),
        ({"head_dim_v": 96}, {"head_dim_v": 96}),
        ({"batch": {"min": 4}}, {"batch": 4}),
        ({"heads": 16}, {"heads": 16}),
        ({"seqlen_q": {"max": 8}}, {"seqlen_q": 8}),
        ({"seqlen_k": {"min": 100, "max": 200}}, {"seqlen_k": 150}),
        ({"gqa": 1}, {"heads": 2}),
    ],
)
def test_each_condition(when: dict[str, Any], changes: dict[str, Any]) -> None:
    condition = When.model_validate(when)
    assert condition.holds(replace(PROBLEM, **changes))
    assert not condition.holds(PROBLEM)


def test_a_profile_cant_be_changed() -> None:
    profile = profiles.by_name("x86-avx2")
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"
    with pytest.raises(AttributeError):
        profile.preference["forward"].append("cpu")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", registry.names())
def test_a_profile_may_have_rules_for_every_kernel_of_a_backend(name: str, write: Write) -> None:
    try:
        kernels = registry.load(name).capability.kernels
    except BackendUnavailableError as error:
        pytest.skip(f"its kernels can't be asked for: {error}")
    assert set(kernels) <= set(OPERATIONS)
    rules = {
        f"{name}.{kernel}": [{"use": {key: legal[0] for key, legal in parameters.items()}}]
        for kernel, parameters in kernels.items()
    }
    preference = {operation: list({name, "reference"}) for operation in OPERATIONS}
    text = yaml.safe_dump(
        {"schema": 1, "name": "mine", "match": {}, "preference": preference, "kernels": rules}
    )
    assert set(profiles.load_file(write(text)).kernels) == set(rules)
