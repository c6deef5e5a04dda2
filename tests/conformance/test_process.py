"""In a process that lives long, forks, and runs many threads."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import torch

import portattn

LINUX = Path("/proc/self/statm").exists()


def answer(seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, n, 2, 8, generator=made) for n in (5, 5 + seed % 7))
    out = portattn.attention(q, k, k, causal=True, window_size=(3, 0))
    assert isinstance(out, torch.Tensor)
    return out


def child(seed: int, results: multiprocessing.SimpleQueue[list[float]]) -> None:
    torch.set_num_threads(1)
    results.put(answer(seed).flatten().tolist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_give_the_same_answer(method: str) -> None:
    # A forked child inherits torch's thread pool without its threads.
    torch.set_num_threads(1)
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    process = context.Process(target=child, args=(3, results))
    process.start()
    got = results.get()
    process.join(60)
    assert process.exitcode == 0
    assert got == answer(3).flatten().tolist()


def test_sixteen_threads() -> None:
    want = [answer(seed) for seed in range(16)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(25):
            if not torch.equal(answer(seed), want[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not LINUX, reason="reads /proc; runs on Linux")
def test_a_thousand_calls_leave_nothing_behind() -> None:
    def used() -> tuple[int, int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages, len(os.listdir("/proc/self/fd")), threading.active_count()

    for seed in range(200):
        answer(seed)
    before = used()
    for seed in range(1000):
        answer(seed)
    after = used()
    assert after[1:] == before[1:]
    # 8 MiB in pages of 4 KiB: far below a thousand of anything that a call allocates.
    assert after[0] - before[0] < 2048


def test_offsets_beyond_32_bits() -> None:
    """Keys that lie more than 2**31 elements apart, in memory that is never touched between."""
    stride = 2**31 + 8
    try:
        store = torch.empty(stride + 64, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("4 GiB of address space are not to be had here")
    near = torch.randn(1, 2, 2, 16).half()
    far = store.as_strided((1, 2, 2, 16), (0, stride, 16, 1))
    far.copy_(near)
    q = torch.randn(1, 3, 2, 16).half()
    for backend in ("torch_sdpa", "cpu", "reference"):
        got = portattn.attention(q, far, far, backend=backend)
        assert torch.equal(got, portattn.attention(q, near, near, backend=backend))
