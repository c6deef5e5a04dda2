"""What the integrations' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_choices_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own settings must not decide a test."""
    monkeypatch.delenv("PORTATTN_BACKEND", raising=False)
    monkeypatch.delenv("PORTATTN_PROFILE", raising=False)


@pytest.fixture
def registered() -> Iterator[None]:
    """portattn is known to transformers during the test."""
    from portattn.integrations.transformers import register

    with register():
        yield


@pytest.fixture
def unregistered() -> Iterator[None]:
    """portattn isn't known to transformers at first, whatever ran before in this process."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    tables = (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping)
    found = [table.pop("portattn", None) for table in tables]
    yield
    for table, function in zip(tables, found, strict=True):
        table.pop("portattn", None)
        if function is not None:
            table["portattn"] = function
