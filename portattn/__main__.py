"""`python -m portattn` is the `portattn` command."""

from portattn.cli import main

main()
