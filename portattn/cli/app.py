"""The commands, and how their failures are shown."""

from __future__ import annotations

import typer
from typer.core import TyperGroup

from portattn.cli.bench.command import bench
from portattn.cli.doctor import doctor
from portattn.cli.explain import explain
from portattn.cli.generate import generate
from portattn.cli.info import info
from portattn.cli.plan import plan
from portattn.cli.profile import profile
from portattn.cli.tune import tune
from portattn.errors import PortattnError


class Commands(TyperGroup):
    """Shows portattn's own errors as one message; any other is a bug and keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command; exit code 1 when portattn refuses what was asked."""
        try:
            return super().invoke(ctx)
        except PortattnError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    name="portattn",
    help="One attention API for every device: what runs where, why, and how fast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (info, explain, generate, plan, bench, tune, doctor):
    app.command()(command)
app.add_typer(profile, name="profile")
