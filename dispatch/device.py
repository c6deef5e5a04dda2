"""Device: vendor, architecture family and memory of one device, without starting it early."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass(frozen=True)
class Device:
    """One device as dispatch sees it.

    `family` is an architecture, compared only for equality: "sm_90a", "ascend910b", or on CPUs the
    widest instruction set: "sse4", "avx2", "avx512", "avx512_bf16", "amx", "neon".
    `type` is torch's device type. `isa` lists every instruction set of a CPU.
    """

    type: str
    vendor: str
    family: str
    name: str
    index: int = 0
    memory_bytes: int = 0
    cores: int = 0
    isa: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.vendor} {self.family})"


# Compute capabilities with an architecture-specific target are families of their own.
CUDA_FAMILIES = {
    (7, 0): "sm_70",
    (7, 2): "sm_72",
    (7, 5): "sm_75",
    (8, 0): "sm_80",
    (8, 6): "sm_86",
    (8, 7): "sm_87",
    (8, 9): "sm_89",
    (9, 0): "sm_90a",
    (10, 0): "sm_100a",
    (10, 3): "sm_103a",
    (12, 0): "sm_120a",
}

# From narrowest to widest: the CPU flags that each instruction set adds to the one before it.
_X86_ISA = (
    ("sse4", {"sse4_2"}),
    ("avx2", {"avx2", "fma"}),
    ("avx512", {"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    ("avx512_bf16", {"avx512_bf16"}),
    ("amx", {"amx_tile", "amx_bf16"}),
)
_TORCH_CAPABILITY = {"AVX2": "avx2", "AVX512": "avx512"}
_CPU_VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}


def of(device: torch.device) -> Device:
    """The Device behind a torch device; detected once per process."""
    index = device.index
    if index is None:
        index = _current(device.type)
    return _detect(device.type, index)


def _current(kind: str) -> int:
    """The index that a torch device without one stands for."""
    if kind in ("cuda", "xpu", "npu"):
        index: int = getattr(torch, kind).current_device()
        return index
    return 0


def available() -> list[Device]:
    """Every device that torch can use here, accelerators first."""
    found = []
    for kind in ("cuda", "xpu", "npu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            found += [_detect(kind, index) for index in range(module.device_count())]
    if torch.backends.mps.is_available():
        found.append(_detect("mps", 0))
    return [*found, _detect("cpu", 0)]


@cache
def _detect(kind: str, index: int) -> Device:
    if kind == "cpu":
        return _cpu()
    if kind == "cuda":
        return _cuda(index)
    if kind == "npu":
        return _npu(index)
    if kind == "mps":
        memory = torch.mps.recommended_max_memory()
        return Device(kind, "apple", "mps", "Apple GPU", index, memory)
    if kind == "xpu":
        properties = torch.xpu.get_device_properties(index)
        return Device(kind, "intel", "xpu", properties.name, index, properties.total_memory)
    return Device(kind, "unknown", kind, kind, index)


def _cuda(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        vendor, family = "amd", hip_family(properties.gcnArchName)
    else:
        vendor, family = "nvidia", cuda_family(properties.major, properties.minor)
    return Device(
        "cuda",
        vendor,
        family,
        properties.name,
        index,
        properties.total_memory,
        properties.multi_processor_count,
    )


def _npu(index: int) -> Device:
    module = torch.npu  # type: ignore[attr-defined]
    name = module.get_device_name(index)
    memory = module.get_device_properties(index).total_memory
    return Device("npu", "huawei", ascend_family(name), name, index, memory)


def cuda_family(major: int, minor: int) -> str:
    """The architecture family of a compute capability; an unknown one is a family of its own."""
    return CUDA_FAMILIES.get((major, minor), f"sm_{major}{minor}")


def hip_family(arch_name: str) -> str:
    """The family of an AMD GPU: its architecture without feature flags, gfx942:xnack- as gfx942."""
    return arch_name.partition(":")[0]


def ascend_family(name: str) -> str:
    """The family of an NPU: Ascend910B2 as ascend910b, Ascend910_9391 as ascend910_93."""
    lowered = name.lower().replace(" ", "")
    match = re.match(r"(ascend)?(910b|910_93|310p|910)", lowered)
    return f"ascend{match[2]}" if match else lowered


def _cpu() -> Device:
    text = _read("/proc/cpuinfo")
    vendor, name, isa = parse_cpuinfo(text) if text else _without_cpuinfo()
    return Device("cpu", vendor, isa[-1] if isa else "unknown", name, 0, _memory(), _cores(), isa)


def parse_cpuinfo(text: str) -> tuple[str, str, tuple[str, ...]]:
    """Vendor, model name and instruction sets, narrowest first, from /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if "Features" in fields:
        isa = ("neon",) if "asimd" in fields["Features"].split() else ()
        return "arm", fields.get("model name", "Arm CPU"), isa
    flags = set(fields.get("flags", "").split())
    vendor = _CPU_VENDORS.get(fields.get("vendor_id", ""), "unknown")
    return vendor, fields.get("model name", "x86 CPU"), _x86_isa(flags)


def _x86_isa(flags: set[str]) -> tuple[str, ...]:
    """Instruction sets up to the first that is missing: virtual machines hide some in between."""
    isa: list[str] = []
    for name, needed in _X86_ISA:
        if not needed <= flags:
            break
        isa.append(name)
    return tuple(isa)


def isa_up_to(family: str) -> tuple[str, ...]:
    """Every instruction set of a CPU family, narrowest first; empty for other families."""
    x86 = [name for name, _ in _X86_ISA]
    if family in x86:
        return tuple(x86[: x86.index(family) + 1])
    return ("neon",) if family == "neon" else ()


def _without_cpuinfo() -> tuple[str, str, tuple[str, ...]]:
    """What platform and torch can tell where there is no /proc."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm", platform.processor() or "Arm CPU", ("neon",)
    widest = _TORCH_CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), "sse4")
    return "unknown", platform.processor() or "x86 CPU", isa_up_to(widest)


def _memory() -> int:
    """Bytes of physical memory, or the cgroup's limit where that is lower."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows has no sysconf, and not every system the names
        return 0
    limits = [int(text) for text in _cgroup("memory.max") if text.isdigit()]
    return min([total, *limits])


def _cores() -> int:
    """Cores this process may use: its affinity, cut by the cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for text in _cgroup("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _cgroup(setting: str) -> list[str]:
    """A setting of this process's control group and of every group above it; each one binds."""
    root = Path("/sys/fs/cgroup")
    own = re.search(r"^0::/(.*)$", _read("/proc/self/cgroup"), re.MULTILINE)
    group = root / own[1] if own else root
    found = (_read(str(folder / setting)).strip() for folder in (group, *group.parents))
    return [text for text in found if text]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
