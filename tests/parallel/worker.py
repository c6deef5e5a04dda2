"""What test_launch runs on each rank: sums, and the trouble that its first argument names."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from portattn.parallel import launch, tensor

CULPRIT = 1
PATIENCE = 4.0


def main(trouble: str, folder: str) -> None:
    place = launch.here()
    assert place is not None
    facts = Path(folder, f"{place.rank}.tmp")
    facts.write_text(f"{os.getpid()} {os.environ['MASTER_PORT']}")
    facts.rename(Path(folder, f"{place.rank}.rank"))
    x, weight = torch.ones(4, 8), torch.ones(2, 8)
    with launch.joined(place, torch.device("cpu"), seconds=PATIENCE) as group:
        culprit = place.rank == CULPRIT
        launch.same_on_all(group, prompt="other" if trouble == "other" and culprit else "same")
        print(f"rank {place.rank} speaks", flush=True)
        for step in range(3 if trouble == "none" else 10**6):
            tensor.linear(x, weight, group)
            if step == 2 and culprit and trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 2 and culprit and trouble == "stalled":
                time.sleep(600)
            if step == 2 and culprit and trouble == "broken":
                raise ValueError("these weights are broken")
            time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
