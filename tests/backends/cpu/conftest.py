"""Leaves the library as it was found: with the instruction set that the environment names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from portattn.backends.cpu import library


@pytest.fixture(autouse=True)
def _own_variant() -> Iterator[None]:
    yield
    library._variant = None
