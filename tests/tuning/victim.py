"""A process that tunes the fake backend until it is killed: python victim.py FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from portattn import tuning
from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.dispatch import registry
from tests.tuning.fake import TARGET, FakeBackend


def main(folder: Path) -> None:
    fake, load = FakeBackend({16: 0.006, 32: 0.002, 64: 0.006, 1024: 0.012}), registry.load
    os.environ["PORTATTN_PROFILE"] = str(folder / "small-cpu.yaml")
    profiles.overlay_path = lambda name: folder / "profiles" / f"{name}.yaml"
    registry.load = lambda name: fake if name == "cpu" else load(name)  # type: ignore[assignment]
    registry.names = lambda: ("cpu", "torch_sdpa", "reference")
    tuning.tune(devices.of(torch.device("cpu")), among=(TARGET,), budget=60.0)
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
