"""Detection of devices: recorded texts in, families out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from portattn.dispatch import device as devices

# As recorded on one machine of each kind, without the flags that no test needs.
SAPPHIRE_RAPIDS = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 bmi2 avx512f avx512dq avx512cd \
avx512bw avx512vl avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8
bugs\t\t: spectre_v1

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: another
flags\t\t: fpu
"""
ZEN_3 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx avx2 bmi2 sha_ni vaes
"""
NEHALEM = """\
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) CPU X5570 @ 2.93GHz
flags\t\t: fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt
"""
NEOVERSE = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp sve bf16
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


@pytest.mark.parametrize(
    ("text", "vendor", "isa"),
    [
        (SAPPHIRE_RAPIDS, "intel", ("sse4", "avx2", "avx512", "avx512_bf16", "amx")),
        (ZEN_3, "amd", ("sse4", "avx2")),
        (NEHALEM, "intel", ("sse4",)),
        (NEOVERSE, "arm", ("neon",)),
        ("Features : half thumb vfpv3\n", "arm", ()),
        ("vendor_id : HygonGenuine\nflags : sse4_2\n", "unknown", ("sse4",)),
        ("", "unknown", ()),
        ("no colon in here\n:\n", "unknown", ()),
    ],
)
def test_cpuinfo(text: str, vendor: str, isa: tuple[str, ...]) -> None:
    found_vendor, name, found_isa = devices.parse_cpuinfo(text)
    assert (found_vendor, found_isa) == (vendor, isa)
    assert name


def test_the_first_processor_names_the_model() -> None:
    assert devices.parse_cpuinfo(SAPPHIRE_RAPIDS)[1] == "Intel(R) Xeon(R) Platinum 8480+"


def test_an_instruction_set_needs_the_narrower_ones() -> None:
    """A virtual machine may hide AVX-512 and leave the flag of an extension of it."""
    hidden = SAPPHIRE_RAPIDS.replace("avx512bw ", "")
    assert devices.parse_cpuinfo(hidden)[2] == ("sse4", "avx2")


@pytest.mark.parametrize(
    ("machine", "capability", "vendor", "family"),
    [
        ("arm64", "DEFAULT", "arm", "neon"),
        ("x86_64", "AVX2", "unknown", "avx2"),
        ("AMD64", "AVX512", "unknown", "avx512"),
        ("x86_64", "DEFAULT", "unknown", "sse4"),
    ],
)
def test_without_cpuinfo(
    monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, vendor: str, family: str
) -> None:
    monkeypatch.setattr(devices, "_read", lambda path: "")
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = devices._cpu()
    assert (found.vendor, found.family) == (vendor, family)
    assert found.isa[-1] == family
    assert found.isa == devices.isa_up_to(family)


@pytest.mark.parametrize(
    ("capability", "family"),
    [((7, 0), "sm_70"), ((8, 9), "sm_89"), ((9, 0), "sm_90a"), ((12, 0), "sm_120a")],
)
def test_cuda_families(capability: tuple[int, int], family: str) -> None:
    assert devices.cuda_family(*capability) == family


def test_an_unknown_capability_is_a_family_of_its_own() -> None:
    unknown = devices.cuda_family(13, 7)
    assert unknown == "sm_137"
    assert unknown not in devices.CUDA_FAMILIES.values()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Ascend910B2", "ascend910b"),
        ("Ascend 910B4", "ascend910b"),
        ("910B3", "ascend910b"),
        ("Ascend910_9391", "ascend910_93"),
        ("Ascend910A", "ascend910"),
        ("Ascend310P3", "ascend310p"),
        ("Ascend950", "ascend950"),
    ],
)
def test_ascend_families(name: str, family: str) -> None:
    assert devices.ascend_family(name) == family


def gpu(**changes: object) -> SimpleNamespace:
    """What torch says of a GPU."""
    facts = {
        "name": "A GPU",
        "major": 9,
        "minor": 0,
        "total_memory": 80 * 2**30,
        "multi_processor_count": 132,
        "gcnArchName": "gfx942:sramecc+:xnack-",
    }
    return SimpleNamespace(**{**facts, **changes})


def test_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu())
    found = devices._cuda(1)
    assert found == devices.Device("cuda", "nvidia", "sm_90a", "A GPU", 1, 80 * 2**30, 132)
    assert str(found) == "A GPU (nvidia sm_90a)"


def test_rocm_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu())
    found = devices._cuda(0)
    assert (found.type, found.vendor, found.family) == ("cuda", "amd", "gfx942")


def test_npu_device(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        get_device_name=lambda index: "Ascend910B2",
        get_device_properties=lambda index: gpu(),
        current_device=lambda: 0,
    )
    monkeypatch.setattr(torch, "npu", module, raising=False)
    found = devices._npu(0)
    assert (found.vendor, found.family, found.memory_bytes) == (
        "huawei",
        "ascend910b",
        80 * 2**30,
    )


def test_a_device_without_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(devices, "_detect", lambda kind, index: asked.append((kind, index)))
    for name in ("cuda", "cuda:1", "cpu"):
        devices.of(torch.device(name))
    assert asked == [("cuda", 3), ("cuda", 1), ("cpu", 0)]


def test_this_cpu_is_detected_once() -> None:
    found = devices.of(torch.device("cpu"))
    assert found is devices.of(torch.device("cpu", 0))
    assert found.type == "cpu"
    assert found.cores >= 1
    assert devices.available()[-1] is found


def control_groups(tree: dict[str, str]) -> object:
    """A reader of files that has only these."""
    return lambda path: tree.get(path, "")


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 1), ("400000 100000", 4), ("max 100000", 8), ("", 8)]
)
def test_cores_respect_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    tree = {"/sys/fs/cgroup/cpu.max": f"{quota}\n"}
    monkeypatch.setattr(devices, "_read", control_groups(tree))
    assert devices._cores() == cores


def test_the_tightest_of_nested_groups_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    tree = {
        "/proc/self/cgroup": "1:name=systemd:/x\n0::/outer/inner\n",
        "/sys/fs/cgroup/outer/inner/cpu.max": "600000 100000\n",
        "/sys/fs/cgroup/outer/cpu.max": "200000 100000\n",
        "/sys/fs/cgroup/outer/inner/memory.max": "1048576\n",
        "/sys/fs/cgroup/memory.max": "max\n",
    }
    monkeypatch.setattr(devices, "_read", control_groups(tree))
    assert devices._cores() == 2
    assert devices._memory() == 1048576


def test_importing_starts_no_device() -> None:
    program = (
        "import portattn.dispatch.device, torch; assert not torch.cuda.is_initialized(); "
        "import sys; assert 'pydantic' not in sys.modules and 'yaml' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
