"""Whatever ends a run, and whenever: nothing that was measured is lost, nothing half is read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from portattn import tuning
from portattn.dispatch import profile as profiles
from portattn.dispatch.device import Device
from portattn.errors import ProfileError, TuningError
from portattn.tuning import engine, journal, overlay
from tests.tuning.conftest import PROFILE
from tests.tuning.fake import PROBLEM, TARGET, FakeBackend

DELAYS = {16: 0.002, 32: 0.0, 64: 0.002, 1024: 0.003}
ROOT = Path(__file__).resolve().parents[2]


def run(here: Device, **options: Any) -> tuning.Report:
    return tuning.tune(here, among=(TARGET,), **{"budget": 60.0, **options})


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


@pytest.mark.parametrize("call", [1, 2, 5, 9, 14, 20, 40])
def test_an_interrupt_at_any_call_loses_nothing(here: Device, install: Any, call: int) -> None:
    def stop(number: int) -> None:
        if number == call:
            raise KeyboardInterrupt

    fake = install(FakeBackend(DELAYS))
    fake.at_call = stop
    first = run(here)
    assert first.interrupted
    assert first.open == (TARGET.name,)
    kept = records(first.journal)
    fake.at_call = lambda number: None
    second = run(here)
    assert not second.interrupted
    assert second.resumed == len(kept)
    after = records(second.journal)
    assert after[: len(kept)] == kept
    screened = Counter(r["config"]["block_n"] for r in after if r["event"] == "screened")
    assert screened == Counter(DELAYS.keys())  # each once over both runs
    (outcome,) = second.outcomes
    best = outcome.best("cpu")
    assert best is not None and best.config == {"block_n": 32}
    samples = [r for r in after if r["event"] == "sample" and r["entry"] == "cpu: block_n=32"]
    # What was sampled before counts; only the round that was cut off is done again.
    assert outcome.rounds == 9
    assert len(samples) <= 10


def test_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "small-cpu.yaml").write_text(PROFILE, encoding="utf-8")
    file, written = folder / "tuning" / "small-cpu.jsonl", folder / "profiles" / "small-cpu.yaml"
    seen: list[bytes] = []
    for lines in (4, 24):  # while screening; in the final rounds
        with victim(folder) as process:
            wait_for(process, file, lines)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
        text = file.read_bytes()
        assert all(text.startswith(before) for before in seen)
        seen.append(text[: text.rindex(b"\n") + 1])
        assert not written.exists()
    with victim(folder) as process:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.strip()) == (0, b"done"), err
    after = records(file)
    assert file.read_bytes().startswith(seen[-1])
    screened = Counter(r["config"]["block_n"] for r in after if r["event"] == "screened")
    assert set(screened) == {16, 32, 64, 1024} and max(screened.values()) == 1
    assert "block_n: 32" in written.read_text()
    assert profiles.overlay(profiles.load_file(folder / "small-cpu.yaml"), written)


def victim(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.tuning.victim", str(folder)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(process: subprocess.Popen[bytes], file: Path, lines: int) -> None:
    for _ in range(12_000):
        if file.exists() and file.read_bytes().count(b"\n") >= lines:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError("the process measured nothing")


def test_a_result_that_was_not_written_yet_is_written_by_the_next_run(
    here: Device, install: Any, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(FakeBackend(DELAYS))
    with monkeypatch.context() as patch:
        patch.setattr(overlay, "update", interrupted)
        assert run(here).interrupted
    assert not configuration.exists()
    calls = len(fake.calls)
    report = run(here)
    assert len(fake.calls) == calls
    assert report.overlay is not None and report.overlay.exists()


def interrupted(*args: Any, **kwargs: Any) -> Path:
    raise KeyboardInterrupt


def test_a_candidate_that_takes_the_process_down_is_left_out(here: Device, install: Any) -> None:
    fake = install(FakeBackend(DELAYS))
    book = journal.Journal(
        journal.path("small-cpu"), engine.context(here, engine.candidates.kernels(here))
    )
    with book:
        for _ in range(2):
            book.add(
                event="trying", target=TARGET.name, kernel="cpu.decode", config={"block_n": 32}
            )
    (outcome,) = run(here).outcomes
    assert 32 not in fake.calls
    ((_, config, reason, more),) = outcome.refused
    assert more == 0
    assert config == {"block_n": 32}
    assert "ended 2 times" in reason


def test_a_line_that_was_cut_off_is_left_out_and_closed(tmp_path: Path) -> None:
    file = tmp_path / "tuning" / "a.jsonl"
    with journal.Journal(file, "one") as book:
        for number in range(1, 3):
            book.add(event="trying", number=number)
            assert len(records(file)) == number  # before the next measurement begins
        book.add(event="screened", us=1.0)
    with journal.Journal(file, "two") as book:
        assert book.records == []
        book.add(event="screened", us=2.0)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"context": "one", "event": "scr')
    with journal.Journal(file, "one") as book:
        assert [record["us"] for record in book.of(event="screened")] == [1.0]
        book.add(event="screened", us=3.0)
    with journal.Journal(file, "one") as book:
        assert [record["us"] for record in book.of(event="screened")] == [1.0, 3.0]
    assert file.read_bytes().startswith(whole)
    assert file.stat().st_mode & 0o077 == 0


def test_two_tuners_dont_work_at_once(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="files are locked where the system has fcntl")
    file = tmp_path / "tuning" / "a.jsonl"
    first, second = journal.Journal(file, "one"), journal.Journal(file, "one")
    with first, pytest.raises(TuningError, match="another"):
        second.__enter__()
    with journal.Journal(file, "one"):
        pass


HAND_WRITTEN = """\
schema: 1
name: small-cpu
# My own choice.
preference: {decode: [reference, cpu]}
kernels:
  cpu.decode:
    - when: {dtype: float32, batch: 2}
      use: {block_n: 64}
    - when: {dtype: bfloat16}
      use: {block_n: 16}
    - use: {block_n: 1024}
"""


def test_what_a_person_wrote_is_kept(here: Device, install: Any, configuration: Path) -> None:
    install(FakeBackend(DELAYS))
    configuration.mkdir(parents=True)
    file = configuration / "small-cpu.yaml"
    file.write_text(HAND_WRITTEN, encoding="utf-8")
    file.chmod(0o600)
    report = run(here)
    profile = profiles.for_device(here)
    assert profile.preference_for("decode") == ("reference", "cpu")
    tuned, half, last = profile.kernels["cpu.decode"]
    assert (dict(tuned.use), tuned.basis) == ({"block_n": 32}, "tuned")
    assert (dict(half.use), half.basis) == ({"block_n": 16}, None)
    assert last.when is None
    before = report.outcomes[0].before("cpu")
    assert before is not None and before.config == {"block_n": 64}
    copy = journal.path("small-cpu").with_suffix(".before.yaml")
    assert copy.read_text(encoding="utf-8") == HAND_WRITTEN


def test_a_write_that_fails_changes_nothing(
    here: Device, install: Any, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(FakeBackend(DELAYS))
    file = run(here).overlay
    assert file is not None
    before = file.read_bytes()
    profile = profiles.for_device(here)

    def full(source: str, target: object) -> None:
        assert Path(source).read_bytes() != before
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            overlay.update(profile, links={"host_gbs": 3.0})
    with pytest.raises(ProfileError, match="must be one of 16, 32, 64, 1024, found 48"):
        overlay.update(
            profile, rules={"cpu.decode": [{"when": {"batch": 7}, "use": {"block_n": 48}}]}
        )
    assert file.read_bytes() == before
    assert list(configuration.iterdir()) == [file]
    assert profiles.rule(profiles.for_device(here), "cpu.decode", PROBLEM).config["block_n"] == 32
