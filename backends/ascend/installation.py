"""What an NPU needs beside portattn, and which of it is there: driver, CANN, torch-npu, Triton.

The pairs of torch-npu and CANN are those of the version table in torch-npu's README. Nothing is
imported here: torch-npu can't be without CANN.
"""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path

import torch

from portattn.backends.ascend.constraints import triton_reasons

# CANN that the first torch-npu release for a torch was published with.
CANN_OF = {"2.6": "8.2.RC1", "2.7": "8.3.RC1", "2.8": "8.3.RC1", "2.9": "8.5.0", "2.10": "9.0.0"}
_DRIVER = Path("/usr/local/Ascend/driver/version.info")
_TOOLKIT = Path("/usr/local/Ascend/ascend-toolkit/latest")
_VERSION = re.compile(r"^\s*\[?(?:runtime_running_)?version\]?\s*=\s*\[?([\w.]+)", re.I | re.M)


def software(driver: Path = _DRIVER, toolkit: Path | None = None) -> tuple[str, str]:
    """What is installed, and what to install for both routes; "" when nothing is missing.

    `toolkit` is CANN's folder: where it isn't given, ASCEND_HOME_PATH, then where it installs to.
    """
    folder = toolkit or Path(os.environ.get("ASCEND_HOME_PATH", _TOOLKIT))
    cann = _first_version(sorted(folder.glob("*-linux/ascend_toolkit_install.info")))
    cann = cann or _first_version([folder / "version.cfg", folder / "version.info"])
    found = {
        "driver": _first_version([driver]),
        "CANN": cann,
        "torch-npu": _package("torch-npu"),
        "triton-ascend": _package("triton-ascend"),
    }
    text = ", ".join(f"{name} {version or 'not found'}" for name, version in found.items())
    if found["triton-ascend"] and _package("triton"):
        text += ", triton besides"
    return text, "; ".join(_advice(found))


def _advice(found: dict[str, str | None]) -> list[str]:
    torchs = ".".join(torch.__version__.split(".")[:2])
    wanted = CANN_OF.get(torchs)
    cann = f"CANN {wanted} or newer" if wanted else "the CANN that torch-npu's version table names"
    advice = []
    if not found["driver"]:
        advice.append("for an NPU: the driver and firmware that go with CANN")
    if not found["CANN"]:
        advice.append(f"{cann} for torch {torchs}, and source its set_env.sh")
    mine = found["torch-npu"]
    if not mine or ".".join(mine.split(".")[:2]) != torchs:
        advice.append(f"pip install torch-npu=={torchs}.*")
    if not found["triton-ascend"] or _package("triton"):
        advice += triton_reasons()
    return advice


def _first_version(files: list[Path]) -> str | None:
    for file in files:
        try:
            given = _VERSION.search(file.read_text(errors="replace"))
        except OSError:
            continue
        if given:
            return given[1]
    return None


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
