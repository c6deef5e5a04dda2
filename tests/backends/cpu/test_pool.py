"""The library's threads: fork, many callers, none busy without work."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
import time

import pytest
import torch
from torch import Tensor

from portattn.backends.cpu.decode_call import decode
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem
from tests.backends.cpu.compiled import LINUX, library, variants

pytestmark = pytest.mark.skipif(
    not variants(), reason="needs the compiled library: make test builds it"
)
PROBLEM = AttentionProblem("decode", "cache", torch.float32, 2, 1, 900, 8, 4, 64, 64, 0.125)
THREADS = 2


def _tensors(seed: int) -> AttentionTensors:
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 1, 8, 64, generator=draw)
    k, v = (torch.randn(2, 900, 4, 64, generator=draw) for _ in "kv")
    return AttentionTensors(q, k, v, seqused_k=torch.tensor([900, 333], dtype=torch.int32))


def _run(compiled: ctypes.CDLL, tensors: AttentionTensors) -> Tensor:
    return decode(compiled, tensors, PROBLEM, 64, THREADS)[0]


def _child(seed: int, results: multiprocessing.SimpleQueue[list[float]]) -> None:
    torch.set_num_threads(1)
    compiled = library(variants()[-1])
    before = compiled.pa_pool_size()
    out = _run(compiled, _tensors(seed))
    results.put([before, compiled.pa_pool_size(), *out.flatten().tolist()])


@pytest.mark.skipif(not LINUX, reason="forks")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    compiled, tensors = library(variants()[-1]), _tensors(3)
    want = _run(compiled, tensors).flatten().tolist()
    assert compiled.pa_pool_size() >= THREADS - 1
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    stop = threading.Event()
    other = threading.Thread(target=lambda: [_run(compiled, tensors) for _ in iter(stop.is_set, 1)])
    other.start()  # forks meet a pool at work
    try:
        for _ in range(5):
            process = context.Process(target=_child, args=(3, results))
            process.start()
            process.join(60)
            assert process.exitcode == 0
            before, after, *got = results.get()
            assert (before, after) == (0, THREADS - 1)
            assert got == want
    finally:
        stop.set()
        other.join()
    assert _run(compiled, tensors).flatten().tolist() == want


def test_many_callers() -> None:
    compiled = library(variants()[-1])
    given = [_tensors(seed) for seed in range(8)]
    want = [_run(compiled, tensors) for tensors in given]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(50):
            if not torch.equal(_run(compiled, given[n]), want[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong and not any(thread.is_alive() for thread in threads)


@pytest.mark.skipif(not LINUX, reason="counts a process's processor time")
def test_an_idle_pool_uses_no_processor() -> None:
    compiled = library(variants()[-1])
    _run(compiled, _tensors(0))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.01


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity to set")
def test_no_more_threads_than_processors() -> None:
    """One processor allowed: the calls that follow wake nobody."""
    compiled, allowed = library(variants()[-1]), os.sched_getaffinity(0)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    os.sched_setaffinity(0, {min(allowed)})
    try:
        process = context.Process(target=_child, args=(1, results))
        process.start()
        process.join(60)
    finally:
        os.sched_setaffinity(0, allowed)
    assert process.exitcode == 0
    before, after, *got = results.get()
    assert (before, after) == (0, 0)
    assert got == _run(compiled, _tensors(1)).flatten().tolist()
