"""The problems every backend is held to, which `portattn bench --verify` runs too."""

from portattn.conformance.cases import *  # noqa: F403
