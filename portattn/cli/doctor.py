"""`portattn doctor`: what is wrong or slow about this installation, and what to do."""

from __future__ import annotations

from dataclasses import asdict

import typer

from portattn.cli.checks import CHECKS, Finding
from portattn.cli.output import JsonFlag, print_json, print_table


def doctor(json: JsonFlag = False) -> None:
    """Check the installation; exit code 1 when something is broken."""
    findings = [finding for check in CHECKS for finding in check()]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table("checks", ("state", "what", "found", "what to do"), map(_row, findings))
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _row(finding: Finding) -> tuple[str, ...]:
    return finding.state, finding.subject, finding.found, finding.advice
