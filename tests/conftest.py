"""What all tests share: a seed that is shown, and memory that is never accidentally zero."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Without a GPU, Triton's kernels run in its interpreter; it asks when a kernel is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="repeat a run with its random inputs")


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--seed")
    config.stash[_SEED] = int.from_bytes(os.urandom(4), "big") if given is None else given


def pytest_report_header(config: pytest.Config) -> str:
    return f"random inputs: --seed {config.stash[_SEED]}"


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers that differ from run to run and from test to test, repeatable by --seed."""
    seed = request.config.stash[_SEED]
    name = sum(ord(letter) * (place + 1) for place, letter in enumerate(request.node.nodeid))
    return torch.Generator().manual_seed(seed * 1_000_003 + name)


@pytest.fixture
def dirty_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty and its kin hand out NaN, so that a read before a write shows."""

    def filled(function: Any) -> Any:
        def fill(*args: Any, **kwargs: Any) -> torch.Tensor:
            made: torch.Tensor = function(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return fill

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
    yield
