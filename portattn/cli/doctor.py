"""`portattn doctor`: what is wrong or slow about this installation, and what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from portattn.cli.checks import CHECKS, Finding
from portattn.cli.output import JsonFlag, print_json, print_table
from portattn.dispatch import registry
from portattn.dispatch.backend import HasLibrary
from portattn.errors import BackendUnavailableError

BuildFlag = Annotated[
    bool, typer.Option("--build", help="First compile the libraries into the cache folder.")
]


def doctor(json: JsonFlag = False, build: BuildFlag = False) -> None:
    """Check the installation; exit code 1 when something is broken."""
    if build:
        _build()
    findings = [finding for check in CHECKS for finding in check()]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table("checks", ("state", "what", "found", "what to do"), map(_row, findings))
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _build() -> None:
    """Build the library of every backend that has one; the checks say which can't be imported."""
    for name in registry.names():
        try:
            backend = registry.load(name)
        except BackendUnavailableError:
            continue
        if isinstance(backend, HasLibrary):
            typer.echo(f"built {backend.build_library()}", err=True)


def _row(finding: Finding) -> tuple[str, ...]:
    return finding.state, finding.subject, finding.found, finding.advice
