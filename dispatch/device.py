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

# From narrowest to widest: the CPU flag that shows each instruction set.
_CPU_ISA = (
    ("sse4", ("sse4_2",)),
    ("avx2", ("avx2", "fma")),
    ("avx512", ("avx512f", "avx512bw", "avx512dq", "avx512vl")),
    ("avx512_bf16", ("avx512_bf16",)),
    ("amx", ("amx_tile", "amx_bf16")),
    ("neon", ("asimd",)),
)
_CPU_VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}


def of(device: torch.device) -> Device:
    """The Device behind a torch device; detected once per process."""
    index = device.index
    if device.type == "cuda" and index is None:
        index = torch.cuda.current_device()
    return _detect(device.type, index or 0)


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
        name = torch.npu.get_device_name(index)  # type: ignore[attr-defined]
        memory = torch.npu.get_device_properties(index).total_memory  # type: ignore[attr-defined]
        return Device(kind, "huawei", ascend_family(name), name, index, memory)
    vendors = {"mps": "apple", "xpu": "intel"}
    return Device(kind, vendors.get(kind, "unknown"), kind, kind, index)


def _cuda(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        vendor, family = "amd", properties.gcnArchName.split(":")[0]
    else:
        vendor = "nvidia"
        family = cuda_family(properties.major, properties.minor)
    return Device(
        "cuda",
        vendor,
        family,
        properties.name,
        index,
        properties.total_memory,
        properties.multi_processor_count,
    )


def cuda_family(major: int, minor: int) -> str:
    """The architecture family of a compute capability; an unknown one is a family of its own."""
    return CUDA_FAMILIES.get((major, minor), f"sm_{major}{minor}")


def ascend_family(name: str) -> str:
    """"Ascend910B2" and "Ascend910_9391" as families: ascend910b, ascend910_93."""
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
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    isa = tuple(name for name, needed in _CPU_ISA if flags.issuperset(needed))
    if "Features" in fields:
        return "arm", fields.get("model name", "Arm CPU"), isa
    vendor = _CPU_VENDORS.get(fields.get("vendor_id", ""), "unknown")
    return vendor, fields.get("model name", "x86 CPU"), isa


def _without_cpuinfo() -> tuple[str, str, tuple[str, ...]]:
    """What platform and torch can tell where there is no /proc."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm", platform.processor() or "Arm CPU", ("neon",)
    widest = torch.backends.cpu.get_cpu_capability()
    isa = {"AVX2": ("sse4", "avx2"), "AVX512": ("sse4", "avx2", "avx512")}.get(widest, ("sse4",))
    return "unknown", platform.processor() or "x86 CPU", isa


def _memory() -> int:
    """Bytes of physical memory, or the cgroup's limit where that is lower."""
    if not hasattr(os, "sysconf"):
        return 0
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _cores() -> int:
    """Cores this process may use: its affinity, cut by the cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
