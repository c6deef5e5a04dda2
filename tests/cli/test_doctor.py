"""`portattn doctor --build`: one backend that is missing keeps none of the others."""

from __future__ import annotations

from typing import Any

import pytest

from portattn.cli.older_gpus import WORKING, judge
from portattn.dispatch import registry
from portattn.errors import BackendUnavailableError
from tests.cli.conftest import Run


def _with(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    """A registry of a backend whose import fails, before one with a library."""

    class Backend:
        library_state = staticmethod(lambda: ("somewhere", ""))
        build_library = staticmethod(build)

    def load(name: str) -> Any:
        if name == "absent":
            raise BackendUnavailableError(name, "no module of its own")
        return Backend()

    monkeypatch.setattr("portattn.cli.doctor.CHECKS", ())
    monkeypatch.setattr(registry, "names", lambda: ("absent", "present"))
    monkeypatch.setattr(registry, "load", load)


def test_an_absent_backend_is_passed_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, lambda: "/somewhere/library.so")
    result = run("doctor", "--build")
    assert result.exit_code == 0, result.output
    assert "built /somewhere/library.so" in result.output


def test_a_build_that_fails_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise BackendUnavailableError("present", "no compiler")

    _with(monkeypatch, fail)
    result = run("doctor", "--build")
    assert result.exit_code == 1
    assert "no compiler" in result.stderr


@pytest.mark.parametrize(
    ("family", "cuda", "architectures", "cupy", "state", "says"),
    [
        ("sm_70", "12.8", ["sm_70", "sm_90"], ["cupy-cuda12x"], "ok", "CUDA 12.8"),
        ("sm_70", "13.0", ["sm_75", "sm_90"], ["cupy-cuda12x"], "fail", "not compiled for sm_70"),
        ("sm_70", "12.8", ["sm_70"], ["cupy-cuda13x"], "warn", "CUDA 13 has dropped sm_70"),
        ("sm_70", "12.8", ["sm_70"], ["cupy-cuda12x", "cupy-cuda13x"], "fail", "overwrite"),
        ("sm_75", "13.0", ["sm_75"], ["cupy-cuda13x"], "ok", "CUDA 13.0"),
        ("sm_75", "13.0", ["sm_75"], ["cupy-cuda12x"], "warn", "two CUDA runtimes"),
        ("sm_75", "13.0", ["sm_75"], [], "warn", "no CuPy"),
        ("sm_72", "12.6", [], ["cupy"], "ok", "cupy"),
    ],
)
def test_cuda_for_older_gpus(
    family: str, cuda: str, architectures: list[str], cupy: list[str], state: str, says: str
) -> None:
    found = judge(family, cuda, architectures, cupy)
    assert found[0] == state
    assert says in found[1]
    assert (WORKING[family] in found[2]) == (state != "ok")
