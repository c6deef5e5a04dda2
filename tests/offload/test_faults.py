"""What goes wrong is said, leaves the store usable, and never changes a result in silence."""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import portattn
from portattn.errors import HostKVOutOfMemory, OffloadTimeoutError
from portattn.offload import HostKVStore, OffloadEngine, Share, coop_decode, engine, memory
from portattn.offload.link import HostLink
from tests.offload.links import DelayedLink

HALF = Share(0.0, 0.5, 0.5)


def make_store(**options: Any) -> HostKVStore:
    small: dict[str, Any] = {
        "dtype": torch.float32, "page_size": 4, "flush_tokens": 4, "limit_bytes": 2**20,
    }  # fmt: skip
    return HostKVStore(2, 1, 2, 16, **(small | options))


def run(store: HostKVStore, shares: Share = HALF, steps: int = 6, timeout: float = 20.0) -> float:
    """The largest error of some steps of both layers against attention over the whole."""
    worst = 0.0
    held: list[list[torch.Tensor]] = [[], []]
    with OffloadEngine(store, shares, timeout=timeout) as cooperating:
        for rows in (21, *[1] * steps):
            for layer in range(2):
                q, new = torch.randn(1, rows, 4, 16), torch.randn(1, rows, 2, 16)
                held[layer].append(new)
                out = coop_decode(q, store, new, new, layer=layer, engine=cooperating)
                whole = torch.cat(held[layer], dim=1)
                want = portattn.attention(q, whole, whole, causal=True, backend="reference")
                worst = max(worst, float((out - want).abs().max()))  # type: ignore[operator]
    return worst


@pytest.mark.parametrize("shares", [HALF, Share(0, 1, 0), Share(0, 0, 1)], ids=str)
def test_late_copies_change_nothing(shares: Share) -> None:
    assert run(make_store(link=DelayedLink(0.004)), shares) < 1e-5


def test_a_missing_wait_shows() -> None:
    link = DelayedLink(0.02)
    link.waits = False
    assert not run(make_store(link=link), Share(0, 0, 1)) < 1e-3


def test_streaming_overlaps_with_the_cpu() -> None:
    link = DelayedLink(0.0, gbs=1e-3)
    store = make_store(link=link)
    new = torch.randn(1, 401, 2, 16)
    with OffloadEngine(store, HALF) as cooperating:
        for layer in range(2):
            store.append(layer, new, new)
        for layer in (0, 1, 0, 1):
            step = torch.randn(1, 1, 2, 16)
            out = coop_decode(torch.randn(1, 1, 4, 16), store, step, step, layer=layer,
                              engine=cooperating)  # fmt: skip
            assert isinstance(out, torch.Tensor)
        # All but the very first layer's pages were on their way before they were asked for.
        moved = cooperating.metrics.streamed_bytes
        assert cooperating.metrics.prefetched_bytes >= 0.7 * moved > 0


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_workers_exception_is_the_callers(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    new = torch.randn(1, 21, 2, 16)
    real, broken = engine.part, [True]

    def fails(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and broken[0]:
            raise kind("injected")
        return real(*args, **options)

    monkeypatch.setattr(engine, "part", fails)
    with OffloadEngine(store) as cooperating:
        for layer in range(2):
            coop_decode(torch.randn(1, 21, 4, 16), store, new, new, layer=layer, engine=cooperating)
        store.append(0, new[:, :1], new[:, :1])
        q = torch.randn(1, 1, 4, 16)
        with pytest.raises(kind, match="injected"):
            cooperating.attend(0, q)
        broken[0] = False
        whole = torch.cat([new, new[:, :1]], dim=1)
        want = portattn.attention(q, whole, whole, causal=True)
        torch.testing.assert_close(cooperating.attend(0, q)[0], want)


def test_a_step_that_hangs_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    new = torch.randn(1, 9, 2, 16)
    for _ in range(2):
        for layer in range(2):
            store.append(layer, new, new)
    release, real = threading.Event(), engine.part

    def hangs(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            release.wait(30)
        return real(*args, **options)

    monkeypatch.setattr(engine, "part", hangs)
    with OffloadEngine(store, timeout=0.2) as cooperating:
        start = time.monotonic()
        with pytest.raises(OffloadTimeoutError, match="layer 0: the CPU attending to 8 keys"):
            cooperating.attend(0, torch.randn(1, 1, 4, 16))
        assert time.monotonic() - start < 10
        with pytest.raises(OffloadTimeoutError, match="make another"):
            cooperating.attend(0, torch.randn(1, 1, 4, 16))
        release.set()


def test_memory_that_ends_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(limit_bytes=None)
    new = torch.randn(1, 8, 2, 16)
    for layer in range(2):
        store.append(layer, new, new)
    monkeypatch.setattr(memory, "available_bytes", lambda: (0, "the memory limit of a test"))
    with pytest.raises(HostKVOutOfMemory, match="the memory limit of a test") as caught:
        store.append(0, new, new)
    assert caught.value.needed == 2 * store.page_bytes and caught.value.available == 0
    assert store.length(0) == store.length(1) == 8
    assert torch.equal(store.ordered(0)[0], new)
    monkeypatch.undo()
    store.append(0, new, new)
    assert torch.equal(store.ordered(0)[0], torch.cat([new, new], dim=1))


def test_a_budget_is_refused_before_it_is_taken() -> None:
    with pytest.raises(HostKVOutOfMemory) as caught:
        make_store(reserve_tokens=10**6)
    assert caught.value.max_length < 10**6
    assert make_store(reserve_tokens=100).pages == (0, 25)


def test_a_cgroups_limit_counts(tmp_path: Path) -> None:
    (line,) = [text for text in Path("/proc/self/cgroup").read_text().splitlines()[-1:]]
    if line.split(":")[1]:
        pytest.skip("this machine's last controller isn't version 2's")
    for name, value in (("memory.max", 1000), ("memory.current", 900)):
        (tmp_path / name).write_text(str(value))
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50\n")
    assert (150, f"the memory limit of cgroup {tmp_path}") in memory._cgroup_rooms(tmp_path)


def test_refused_pinning_is_a_warning_and_a_fact(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(HostLink):
        pins = True

        def register(self, address: int, size: int) -> str | None:
            return "RLIMIT_MEMLOCK"

    store = HostKVStore(
        2, 1, 2, 16, dtype=torch.float32, page_size=32, flush_tokens=32, limit_bytes=2**22,
        link=Refusing(torch.device("cpu")),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="portattn"):
        assert run(store, steps=80) < 1e-5
    assert store.unpinned == "RLIMIT_MEMLOCK"
    assert len([r for r in caplog.records if "not page-locked" in r.message]) == 1


@pytest.mark.parametrize("steps", [800, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_many_steps_grow_nothing(steps: int) -> None:
    store = make_store(device_tokens=3)
    new, q = torch.randn(1, 1, 2, 16), torch.randn(1, 1, 4, 16)
    with OffloadEngine(store, HALF) as cooperating:

        def decode(count: int) -> None:
            for step in range(count):
                for layer in range(2):
                    coop_decode(q, store, new, new, layer=layer, engine=cooperating)
                if step % 40 == 39:
                    store.crop(5)

        decode(200)
        files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decode(steps)
        assert len(os.listdir("/proc/self/fd")) == files
        assert threading.active_count() == threads
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 8 * 1024


def test_two_engines_in_one_process() -> None:
    errors: list[float] = []
    threads = [threading.Thread(target=lambda: errors.append(run(make_store()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 2 and max(errors) < 1e-5
