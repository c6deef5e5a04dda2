"""Hardware profiles: those that ship, how one is found, overlays, and every refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from portattn.errors import BackendUnavailableError, ProfileError

CPU = Device("cpu", "intel", "avx2", "A CPU", cores=4)
PROBLEM = AttentionProblem("forward", "dense", torch.float32, 1, 64, 64, 8, 2, 64, 64, 0.125)
WHOLE = """\
schema: 1
name: mine
match: {type: cpu, family: [avx2, avx512]}
device: {cores: 4, tflops: {float32: 0.5}, bandwidth_gbs: 20}
preference:
  forward: [cpu, reference]
  backward: [cpu, reference]
  decode: [cpu, reference]
kernels:
  cpu.forward:
    - when: {head_dim: {min: 64, max: 128}, causal: true, window: false}
      use: {block_m: 32, block_n: 64}
    - use: {block_m: 64}
measured:
  - backend: cpu
    operation: forward
    when: {dtype: float32, gqa: 4}
    microseconds: 12.5
    config: {block_m: 64}
    versions: {torch: "2.13"}
"""


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty configuration folder of the user's own; gives the overlays' folder."""
    monkeypatch.delenv("PORTATTN_PROFILE", raising=False)
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    monkeypatch.setattr(profiles, "overlay_path", lambda name: folder / f"{name}.yaml")
    profiles.forget()
    yield folder
    profiles.forget()


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    return file


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
            capability = registry.load(kernel.partition(".")[0]).capability
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
    assert f"profile {name}: {kernel} rule {number}" in reached


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
            value = getattr(torch, value)
        if name == "window":
            value = (16, 0) if value else (-1, -1)
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
        (Device("npu", "huawei", "ascend910b", "Ascend910B2", 0, 61 * 2**30), "ascend-910b"),
        (Device("cuda", "nvidia", "sm_86", "RTX A6000"), "generic-accelerator"),
        (Device("cuda", "nvidia", "sm_137", "Tomorrow"), "generic-accelerator"),
        (Device("cuda", "amd", "gfx942", "MI300X"), "generic-accelerator"),
        (Device("npu", "huawei", "ascend950", "Ascend950"), "generic-accelerator"),
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


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PORTATTN_PROFILE", "nvidia-t4")
    assert profiles.for_device(CPU).name == "nvidia-t4"
    monkeypatch.setenv("PORTATTN_PROFILE", str(write(tmp_path / "my.yaml", WHOLE)))
    assert profiles.for_device(CPU).name == "mine"
    monkeypatch.setenv("PORTATTN_PROFILE", "")
    assert profiles.for_device(CPU).name == "x86-avx2"


def test_rules_and_measurements(tmp_path: Path) -> None:
    profile = profiles.load_file(write(tmp_path / "my.yaml", WHOLE))
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


@pytest.mark.parametrize(
    ("when", "changes"),
    [
        ({"dtype": "float16"}, {"dtype": torch.float16}),
        ({"layout": "varlen"}, {"layout": "varlen"}),
        ({"causal": True}, {"causal": True}),
        ({"window": True}, {"window": (4, -1)}),
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


REFUSED = [
    # What is replaced, by what, the line, the key, and what the message says.
    ("schema: 1", "schema: 2", 1, "schema", "must be 1"),
    ("schema: 1", "schema: true", 1, "schema", "found True"),
    ("schema: 1\n", "", 1, "schema", "is missing"),
    ("match:", "matches:", 3, "matches", "legal are schema, name, match"),
    ("name: mine", "name: ../mine", 2, "name", "'../mine'"),
    ("name: mine", "name: mine\nname: other", 3, "name", "given twice"),
    ("name: mine", "name: &a mine", 2, "name", "anchors"),
    ("name: mine", "name: *a", 2, "name", "aliases"),
    ("name: mine", "name: !!python/name:os.system mine", 2, "name", "tags"),
    ("name: mine", "name: !env HOME", 2, "name", "tags"),
    ("type: cpu", "type: abacus", 3, "match.type", "'cpu', 'cuda'"),
    ("[avx2, avx512]", "[avx2, 512]", 3, "match.family[1]", "found 512"),
    ("cores: 4", "cores: 0", 4, "device.cores", "greater than 0"),
    ("cores: 4", "cores: 4.0", 4, "device.cores", "integer"),
    ("cores: 4", "cores: on", 4, "device.cores", "ambiguous"),
    ("cores: 4", "cores: 1:30", 4, "device.cores", "ambiguous"),
    ("cores: 4", "cores: 010", 4, "device.cores", "ambiguous"),
    ("cores: 4", "cores: 1_0", 4, "device.cores", "ambiguous"),
    ("float32: 0.5", "float32: .inf", 4, "device.tflops.float32", "finite"),
    ("float32: 0.5", "float31: 0.5", 4, "device.tflops.float31", "'float32'"),
    ("bandwidth_gbs: 20", "bandwidth_gbs: yes", 4, "device.bandwidth_gbs", "ambiguous"),
    ("bandwidth_gbs: 20", "bandwidth_gbs: 1.0e+20", 4, "device.bandwidth_gbs", "less than"),
    ("bandwidth_gbs: 20", "20: 20", 4, "device", "a key must be a name"),
    ("bandwidth_gbs: 20", "[a]: 20", 4, "device", "a key must be a name"),
    ("  decode: [cpu, reference]\n", "", 5, "preference", "lacks decode"),
    ("  decode: [cpu", "  decode: [gpu", 8, "preference.decode[0]", "one of torch_sdpa, cpu"),
    ("  decode: [cpu", "  decode: [reference", 8, "preference.decode[1]", "named twice"),
    ("  decode: [cpu, reference]", "  decode: []", 8, "preference.decode", "at least 1"),
    ("  decode: [cpu, reference]", "  decode: cpu", 8, "preference.decode", "must be a list"),
    ("cpu.forward:", "cpu.sideways:", 10, "kernels.cpu.sideways", "cpu has cpu.forward"),
    ("cpu.forward:", "os.system:", 10, "kernels.os.system", "must be one of"),
    ("cpu.forward:", "reference.forward:", 10, "kernels.reference.forward", "none that can"),
    ("min: 64,", "min: 640,", 11, "kernels.cpu.forward[0].when.head_dim", "min 640 is more"),
    ("min: 64,", "least: 64,", 11, "kernels.cpu.forward[0].when.head_dim.least", "min, max"),
    ("causal: true", "causal: 1", 11, "kernels.cpu.forward[0].when.causal", "boolean"),
    ("{block_m: 32,", "{block_m: 31,", 12, "kernels.cpu.forward[0].use.block_m", "16, 32, 64"),
    ("{block_m: 32,", "{warps: 32,", 12, "kernels.cpu.forward[0].use.warps", "block_m, block_n"),
    ("{block_m: 32,", "{block_m: -1,", 12, "kernels.cpu.forward[0].use.block_m", "or equal to 0"),
    ("    - use: {block_m: 64}\n", "", 11, "kernels.cpu.forward[0]", "must have no `when`"),
    ("    - when:", "    - use: {}\n    - when:", 11, "kernels.cpu.forward[0]", "only the last"),
    ("backend: cpu", "backend: tpu", 15, "measured[0].backend", "must be one of"),
    ("operation: forward", "operation: sideways", 16, "measured[0].operation", "'forward'"),
    ("microseconds: 12.5", "microseconds: -1", 18, "measured[0].microseconds", "greater than 0"),
    ("config: {block_m: 64}", "config: {block_m: 9}", 19, "measured[0].config.block_m", "found 9"),
    ('torch: "2.13"', "torch: 2.13", 20, "measured[0].versions.torch", "string"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "says"), REFUSED)
def test_a_refusal_names_file_line_key_and_what_is_legal(
    tmp_path: Path, old: str, new: str, line: int, key: str, says: str
) -> None:
    assert old in WHOLE
    file = write(tmp_path / "my.yaml", WHOLE.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        profiles.load_file(file)
    error = caught.value
    assert (error.file, error.line, error.key) == (str(file), line, key)
    assert says in error.problem
    assert str(error) == f"{file}:{line}: {key}: {error.problem}"


@pytest.mark.parametrize(
    ("raw", "line", "says"),
    [
        (b"", 1, "is empty"),
        (b"# nothing\n", 1, "is empty"),
        (b"- a list\n", 1, "must be a mapping"),
        (b"text\n", 1, "must be a mapping"),
        (b"a: 1\nb: \xff\xfe\n", 2, "not UTF-8"),
        (b"a: 1\nb: \x00\n", 2, "control character"),
        (b"a: 1\nb: [1, 2\n", 3, "not YAML"),
        (b"a: 1\n\tb: 2\n", 2, "not YAML"),
        (b"a: 1\n---\nb: 2\n", 2, "only one"),
        (b"a: " + b"[" * 5000, 1, "nested deeper"),
        (b"a:\n" + b"".join(b" " * n + b"- \n" for n in range(1, 40)), 17, "nested deeper"),
        (b"a: " + b"9" * 50_000, 1, ": a: "),
        (b"<<: {a: 1}\n", 1, "ambiguous"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", 1, "anchors"),
    ],
)
def test_what_is_no_profile_at_all(raw: bytes, line: int, says: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(raw)
    with pytest.raises(ProfileError) as caught:
        profiles.load_file(file)
    assert caught.value.line == line
    assert says in str(caught.value)


def test_a_large_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"#" * 10_000_000)
    monkeypatch.setattr(profile_yaml, "parse", None)
    with pytest.raises(ProfileError, match="has 10000000 bytes"):
        profiles.load_file(file)


@pytest.mark.parametrize(
    "name",
    ["../secrets", "/etc/passwd", "x86-avx2/../x86-avx2", "", ".", "x86-avx2\x00", "X86-AVX2"],
)
def test_a_name_leads_nowhere_else(name: str) -> None:
    for look in (profiles.by_name, profiles.path, profiles.resolve):
        with pytest.raises(ProfileError, match="not a shipped profile"):
            look(name)


def test_a_path_must_lead_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, says in (
        ("folder.yaml", "Is a directory"),
        ("pipe.yaml", "not a regular file"),
        ("absent.yaml", "No such file"),
    ):
        with pytest.raises(ProfileError, match=says):
            profiles.resolve(str(tmp_path / name))
    with pytest.raises(ProfileError, match="not a file name"):
        profiles.resolve("null\x00.yaml")


def test_sizes_of_a_backend_that_cant_be_imported_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise BackendUnavailableError(name, "no module")

    monkeypatch.setattr(registry, "load", missing)
    file = write(tmp_path / "my.yaml", WHOLE.replace("block_m: 32", "warps: 3"))
    assert profiles.load_file(file).name == "mine"


OVERLAY = """\
schema: 1
name: x86-avx2
device: {bandwidth_gbs: 25}
links: {host_gbs: 10}
preference: {forward: [cpu, reference]}
kernels:
  cpu.forward:
    - use: {block_m: 16, block_n: 16}
measured:
  - {backend: cpu, operation: forward, when: {}, microseconds: 3.0}
"""


def test_an_overlay_changes_what_it_names(configuration: Path) -> None:
    write(configuration / "x86-avx2.yaml", OVERLAY)
    shipped, profile = profiles.by_name("x86-avx2"), profiles.for_device(CPU)
    assert profile.device.bandwidth_gbs == 25
    assert profile.device.tflops_per_core == shipped.device.tflops_per_core
    assert profile.links.host_gbs == 10
    assert profile.preference_for("forward") == ("cpu", "reference")
    assert profile.preference_for("decode") == shipped.preference_for("decode")
    assert profiles.rule(profile, "cpu.forward", PROBLEM).config == {"block_m": 16, "block_n": 16}
    assert profile.kernels["cpu.decode"] == shipped.kernels["cpu.decode"]
    assert profiles.measured_us(profile, "cpu", PROBLEM) == 3.0
    assert profiles.measured_us(shipped, "cpu", PROBLEM) is None


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "says"),
    [
        ("name: x86-avx2", "name: x86-amx", 2, "name", "must be x86-avx2"),
        ("links:", "match:", 4, "match", "unknown key"),
        ("block_m: 16", "block_m: 17", 8, "kernels.cpu.forward[0].use.block_m", "found 17"),
        ("[cpu, reference]", "[mine]", 5, "preference.forward[0]", "must be one of"),
        ("microseconds: 3.0", "seconds: 3.0", 10, "measured[0].seconds", "unknown key"),
    ],
)
def test_an_overlay_with_a_fault_changes_nothing(
    configuration: Path, old: str, new: str, line: int, key: str, says: str
) -> None:
    before = profiles.for_device(CPU)
    profiles.forget()
    file = write(configuration / "x86-avx2.yaml", OVERLAY.replace(old, new, 1))
    for _ in range(2):  # the fault isn't forgotten after the first call
        with pytest.raises(ProfileError) as caught:
            profiles.for_device(CPU)
        assert (caught.value.file, caught.value.line, caught.value.key) == (str(file), line, key)
        assert says in caught.value.problem
    file.unlink()
    assert profiles.for_device(CPU) == before


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666])
def test_an_overlay_that_others_can_write_is_refused(configuration: Path, mode: int) -> None:
    write(configuration / "x86-avx2.yaml", OVERLAY).chmod(mode)
    with pytest.raises(ProfileError, match="written by others"):
        profiles.for_device(CPU)


def test_an_overlay_of_another_user_is_refused(
    configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(configuration / "x86-avx2.yaml", OVERLAY)
    if os.getuid() == 0:
        os.chown(file, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ProfileError, match="another user"):
        profiles.for_device(CPU)


def test_an_overlay_is_judged_by_the_file_behind_a_link(configuration: Path) -> None:
    target = write(configuration.parent / "elsewhere.yaml", OVERLAY)
    target.chmod(0o666)
    (configuration / "x86-avx2.yaml").symlink_to(target)
    with pytest.raises(ProfileError, match="written by others"):
        profiles.for_device(CPU)
    target.unlink()
    with pytest.raises(ProfileError, match="No such file"):
        profiles.for_device(CPU)


def test_a_profile_cant_be_changed() -> None:
    profile = profiles.by_name("x86-avx2")
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"
    with pytest.raises(AttributeError):
        profile.preference["forward"].append("cpu")  # type: ignore[attr-defined]
