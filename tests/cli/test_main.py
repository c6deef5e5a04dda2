"""The command as a program: entry points, exit codes, a missing library."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

BLOCKED = """
import sys
sys.modules[{module!r}] = None
from portattn.cli import main
main()
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a program of its own."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_python_m_portattn_is_the_command() -> None:
    done = python("-m", "portattn", "--help")
    assert done.returncode == 0
    for command in ("info", "explain", "generate", "bench", "profile", "doctor"):
        assert command in done.stdout


def test_refusal_is_one_message_without_traceback() -> None:
    done = python("-m", "portattn", "explain", "--profile", "no-such-device")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "no-such-device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_missing_library_says_what_to_install(module: str) -> None:
    done = python("-c", BLOCKED.format(module=module))
    assert done.returncode == 1
    assert "pip install 'portattn[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["explain", "--dtype", "int3"],
        ["explain", "--backend", "no-such-backend"],
        ["explain", "--device", "no such device"],
        ["explain", "--window", "many"],
        ["explain", "--heads", "8", "--kv-heads", "3"],
        ["explain", "--page-size", "16"],
        ["bench", "--seqlen", "long"],
        ["bench", "--seqlen", "0"],
        ["bench", "--dtype", "int3"],
        ["bench", "--operation", "sideways"],
        ["bench", "--heads", "8", "--kv-heads", "3"],
        ["profile", "validate", "no/such/file.yaml"],
    ],
)
def test_wrong_use_exits_with_2(run: Any, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
