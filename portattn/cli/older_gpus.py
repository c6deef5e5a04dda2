"""Which torch, CUDA and CuPy fit together on Volta and Turing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import distributions
from typing import Literal

WORKING = {
    "sm_70": "torch 2.10 for CUDA 12.8, cupy-cuda12x, nvidia-cuda-nvrtc-cu12==12.9.86, a driver of "
    "branch 580 at most",
    "sm_75": "torch for CUDA 12.6 or later, and cupy-cuda12x or cupy-cuda13x as torch's CUDA is",
}
WORKING["sm_72"] = "JetPack's own torch for CUDA 11.4 or 12, and CuPy built there"


def installed_cupy() -> list[str]:
    """The distributions that bring a module cupy, of which there should be one."""
    names = {dist.metadata["Name"].lower() for dist in distributions() if dist.metadata["Name"]}
    return sorted(name for name in names if name == "cupy" or name.startswith("cupy-cuda"))


def judge(
    family: str, cuda: str | None, architectures: Iterable[str], cupy: Sequence[str]
) -> tuple[Literal["ok", "warn", "fail"], str, str]:
    """State, what was found and what to do.

    `cuda` is torch.version.cuda, `architectures` are torch's, `cupy` is installed_cupy().
    """
    found = f"torch for CUDA {cuda}, {' and '.join(cupy) or 'no CuPy'}"
    advice = f"a combination that fits: {WORKING[family]}"
    if family == "sm_70" and not {"sm_70", "compute_70"} & set(architectures):
        return "fail", f"{found}: torch was not compiled for {family}", advice
    if len(cupy) > 1:
        return "fail", f"{found}: they overwrite each other's files", f"keep one; {advice}"
    if not cupy:
        return "warn", f"{found}: the volta kernels can't be compiled", advice
    major = cupy[0].removeprefix("cupy-cuda").removesuffix("x")
    if major.isdigit() and int(major) > 12 and family != "sm_75":
        return "warn", f"{found}: CUDA {major} has dropped {family}", advice
    if major.isdigit() and cuda and cuda.partition(".")[0] != major:
        return "warn", f"{found}: two CUDA runtimes in a process", advice
    return "ok", found, ""
