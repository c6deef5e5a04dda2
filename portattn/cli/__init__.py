"""The `portattn` command; nothing else of portattn imports it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; says how to install what it needs when that is missing."""
    try:
        from portattn.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.exit(
            f"portattn's command line needs {error.name}, which is not installed.\n"
            "Install it with: pip install 'portattn[cli]'"
        )
    app()
