"""`portattn profile`: the hardware profiles, shown and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from portattn.cli.output import JsonFlag, print_json, print_table, print_text
from portattn.dispatch import profile as profiles
from portattn.dispatch import profile_yaml

profile = typer.Typer(help="Hardware profiles: list, show, check.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A profile's name, as `portattn profile list` shows it.")]


@profile.command("list")
def list_profiles(json: JsonFlag = False) -> None:
    """List the profiles that ship with portattn."""
    rows = [(name, str(profiles.as_device(profiles.resolve(name)))) for name in profiles.names()]
    if json:
        print_json([{"name": name, "device": device} for name, device in rows])
    else:
        print_table("profiles", ("name", "device"), rows)


@profile.command()
def show(name: Name) -> None:
    """Print a profile's file."""
    print_text(profiles.path(name).read_text(encoding="utf-8").rstrip())


@profile.command()
def path(name: Name) -> None:
    """Print where a profile's file is."""
    print_text(str(profiles.path(name)))


@profile.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A profile or overlay of your own.", exists=True)],
) -> None:
    """Check a profile, or an overlay of a shipped one; errors name line, key and what is legal."""
    values = profile_yaml.read(file).values
    # Only a whole profile says which devices it is for.
    if isinstance(values, dict) and "match" not in values and "name" in values:
        changed = profiles.overlay(profiles.resolve(str(values["name"])), file)
        print_text(f"{file}: ok, overlay of {changed.name}")
    else:
        print_text(f"{file}: ok, profile {profiles.load_file(file).name}")
