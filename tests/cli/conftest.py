"""What the command line's tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from portattn.cli.app import app

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run a command in this process; an exception that isn't an exit is a failure."""

    def run_command(*arguments: str) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run_command


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """Run a command with --json and give what it printed, parsed."""

    def run_command(*arguments: str) -> Any:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run_command


@pytest.fixture(autouse=True)
def no_choices_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own settings must not decide a test."""
    monkeypatch.delenv("PORTATTN_BACKEND", raising=False)
    monkeypatch.delenv("PORTATTN_PROFILE", raising=False)
