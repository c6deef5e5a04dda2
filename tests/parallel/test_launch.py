"""Several processes begin and end together: whoever fails is named, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from portattn.errors import ArgumentError
from portattn.parallel import launch

ROOT = Path(__file__).resolve().parent.parent.parent
START = "import sys; from portattn.parallel import launch; sys.exit(launch.start(2, sys.argv[1:]))"
SECONDS = 60


def begun(trouble: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, "-m", "tests.parallel.worker", trouble, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def facts(folder: Path) -> list[tuple[int, int]]:
    """Process and port of each rank."""
    told = [file.read_text().split() for file in folder.glob("*.rank")]
    return [(int(pid), int(port)) for pid, port in told]


def nothing_left(folder: Path) -> bool:
    """Every rank's process has gone, and the port can be had."""
    for pid, port in facts(folder):
        limit = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        if Path(f"/proc/{pid}").exists():
            return False
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
    return len(facts(folder)) == 2


def test_only_the_first_rank_speaks(tmp_path: Path) -> None:
    process = begun("none", tmp_path)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out == "rank 0 speaks\n"
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("killed", ["rank 1", "SIGKILL"]),
        ("stalled", ["rank 1 runs but got no further than collective 3"]),
        ("broken", ["rank 1", "these weights are broken"]),
        ("other", ["prompt", "'same' on rank 0, 'other' on rank 1"]),
    ],
)
def test_one_ranks_trouble_ends_all(trouble: str, told: list[str], tmp_path: Path) -> None:
    process = begun(trouble, tmp_path)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode not in (0, None)
    last = err[err.rindex("Error: rank") :]
    for words in told:
        assert words in last
    assert nothing_left(tmp_path)


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    process = begun("endless", tmp_path)
    limit = time.monotonic() + SECONDS
    while len(facts(tmp_path)) < 2 and time.monotonic() < limit:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert nothing_left(tmp_path)


@pytest.mark.skipif("RANK" in os.environ, reason="runs under torchrun")
def test_a_process_of_its_own_has_no_place() -> None:
    assert launch.here() is None


def test_a_backend_that_does_not_fit() -> None:
    place = launch.Place(0, 1, 0, 1)
    with (
        pytest.raises(ArgumentError, match="backend: must be gloo for cpu"),
        launch.joined(place, torch.device("cpu"), backend="nccl"),
    ):
        raise AssertionError("joined")
