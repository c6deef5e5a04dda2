"""Which library is loaded, which is refused, and what is said about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import portattn
from portattn.backends.cpu import build, library
from portattn.dispatch import device as devices
from portattn.dispatch import select
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import ArgumentError
from tests.backends.cpu.compiled import LINUX, variants

pytestmark = pytest.mark.skipif(
    not variants(), reason="needs the compiled library: make test builds it"
)
PROBLEM = AttentionProblem("decode", "cache", torch.float32, 1, 1, 100, 4, 2, 32, 32, 0.2)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache's folder with a copy of the built library, and no other library to be found."""
    built = library.state().path
    assert built is not None
    monkeypatch.setenv("PORTATTN_CACHE_DIR", str(tmp_path))
    folder = library.cache_folder()
    folder.mkdir(mode=0o700)
    for name in (build.LIBRARY, build.RECORD):
        (folder / name).write_bytes((built.parent / name).read_bytes())
        (folder / name).chmod(0o600)
    monkeypatch.setattr(library, "_package_folder", lambda: tmp_path / "nothing")
    library.forget()
    select.forget()
    yield folder
    library.forget()
    select.forget()


def test_the_library_in_the_cache_is_found(elsewhere: Path) -> None:
    assert library.state().path == elsewhere / build.LIBRARY
    assert library.load() is not None


def _tamper(folder: Path) -> None:
    file = folder / build.LIBRARY
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    # Another file in its place: the one that is loaded must stay whole.
    file.unlink()
    file.write_bytes(data)
    file.chmod(0o600)


def _stale(folder: Path) -> None:
    file = folder / build.RECORD
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "sources": "0" * 64}))


def _linked(folder: Path) -> None:
    file = folder / build.LIBRARY
    file.rename(folder / "real.so")
    file.symlink_to(folder / "real.so")


REFUSED = {
    "isn't the file that was built": _tamper,
    "was built from other sources": _stale,
    "is a link": _linked,
    "has no record of its digest": lambda folder: (folder / build.RECORD).unlink(),
    "has no readable record": lambda folder: (folder / build.RECORD).write_text("[1]"),
    "can be written by others": lambda folder: folder.chmod(0o777),
    "by others": lambda folder: (folder / build.LIBRARY).chmod(0o620),
    "isn't built": lambda folder: (folder / build.LIBRARY).unlink(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(elsewhere: Path, reason: str) -> None:
    REFUSED[reason](elsewhere)
    library.forget()
    assert library.load() is None
    assert reason in library.state().reason


def test_without_the_library_torch_runs_and_the_decision_says_why(elsewhere: Path) -> None:
    here = devices.of(torch.device("cpu"))
    with_library = select.select(PROBLEM, here)
    assert with_library.backend == "cpu"
    assert with_library.detail.startswith("compiled decode kernel")
    assert not with_library.notes
    _tamper(elsewhere)
    library.forget()
    without = select.select(PROBLEM, here)
    assert without.candidates == ("torch_sdpa", "cpu", "reference")
    assert "doctor --build" in without.notes[0] and "isn't the file" in without.notes[0]
    forced = select.select(PROBLEM, here, backend="cpu")
    assert forced.detail.startswith("tiled torch operations")
    q = torch.randn(1, 1, 4, 32)
    k = torch.randn(1, 9, 2, 32)
    torch.testing.assert_close(
        portattn.attention(q, k, k, backend="cpu"), portattn.attention(q, k, k, backend="reference")
    )


def test_float64_is_left_to_torch_and_said(generator: torch.Generator) -> None:
    q = torch.randn(1, 1, 4, 32, generator=generator, dtype=torch.float64)
    decision = portattn.explain(q, q, q, backend="cpu")
    assert decision.detail == "tiled torch operations: the compiled tiles have no float64"


@pytest.mark.parametrize("name", variants())
def test_environment_chooses_the_instruction_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTATTN_CPU_ISA", name)
    q = torch.randn(1, 1, 4, 32)
    assert portattn.explain(q, q, q, backend="cpu").detail.endswith(f", {name}")


def test_an_instruction_set_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTATTN_CPU_ISA", "avx9")
    with pytest.raises(ArgumentError, match=f"must be one of .*{variants()[-1]}.*avx9"):
        portattn.attention(*[torch.randn(1, 1, 4, 32)] * 3, backend="cpu")


@pytest.mark.skipif(not LINUX, reason="looks for a compiler where Linux has it")
def test_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong flag is told in the compiler's words and leaves nothing; without one it works."""
    with pytest.raises(build.BuildError, match="no-such-flag"):
        build.build(tmp_path, flags=["-fno-such-flag-at-all"])
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(build, "COMPILERS", ("/nowhere/cc",))
    monkeypatch.setenv("CC", "cc")
    with pytest.raises(build.BuildError, match=r"/nowhere/cc.*install one"):
        build.build(tmp_path)


def test_importing_builds_and_loads_nothing() -> None:
    program = (
        "import subprocess, ctypes, sys\n"
        "import portattn, torch\n"
        "def refuse(*a, **k): raise AssertionError('at import')\n"
        "subprocess.Popen.__init__ = ctypes.CDLL.__init__ = refuse\n"
        "import portattn.backends.cpu\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ, timeout=120)
