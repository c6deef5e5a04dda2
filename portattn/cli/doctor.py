"""`portattn doctor`: what is wrong or slow about this installation, and what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from portattn.cli.checks import CHECKS, Finding
from portattn.cli.output import JsonFlag, print_json, print_table
from portattn.dispatch import registry
from portattn.dispatch.backend import HasLibrary

BuildFlag = Annotated[
    bool, typer.Option("--build", help="First compile the libraries into the cache folder.")
]


def doctor(json: JsonFlag = False, build: BuildFlag = False) -> None:
    """Check the installation; exit code 1 when something is broken."""
    if build:
        for backend in map(registry.load, registry.names()):
            if isinstance(backend, HasLibrary):
                typer.echo(f"built {backend.build_library()}", err=True)
    findings = [finding for check in CHECKS for finding in check()]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table("checks", ("state", "what", "found", "what to do"), map(_row, findings))
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _row(finding: Finding) -> tuple[str, ...]:
    return finding.state, finding.subject, finding.found, finding.advice
