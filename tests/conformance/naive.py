"""The plain formula: the package holds it, for `portattn bench --verify`."""

from portattn.conformance.naive import *  # noqa: F403
