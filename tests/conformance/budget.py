"""How close is close enough: the package holds it, for `portattn bench --verify`."""

from portattn.conformance.budget import *  # noqa: F403
