"""Windows of one triangle are every block of every causal mask and of every sliding window."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from portattn.backends.ascend.tiling_mask import tiling_mask, window_start

CPU = torch.device("cpu")
HALF = st.integers(1, 24)


@given(half=HALF, data=st.data())
def test_a_window_is_the_block(half: int, data: st.DataObject) -> None:
    """Exact for any block with rows + keys at most the mask's side, wherever it lies."""
    side = 2 * half
    rows = data.draw(st.integers(1, side - 1))
    keys = data.draw(st.integers(1, side - rows))
    delta = data.draw(st.integers(-3 * side, 3 * side))
    r, c = window_start(delta, rows, keys)
    assert r + rows <= side and c + keys <= side
    block = tiling_mask(side, torch.bool, CPU)[r : r + rows, c : c + keys]
    i, j = torch.arange(rows)[:, None], torch.arange(keys)[None]
    assert torch.equal(block, j > i + delta)


@given(half=HALF, data=st.data())
def test_two_windows_are_a_sliding_window(half: int, data: st.DataObject) -> None:
    side = 2 * half
    rows = data.draw(st.integers(1, side - 1))
    keys = data.draw(st.integers(1, side - rows))
    left, right, offset = (data.draw(st.integers(0, side)) for _ in range(3))
    mask = tiling_mask(side, torch.bool, CPU)

    def window(delta: int) -> torch.Tensor:
        r, c = window_start(delta, rows, keys)
        return mask[r : r + rows, c : c + keys]

    i, j = torch.arange(rows)[:, None], torch.arange(keys)[None]
    visible = ~window(offset + right) & window(offset - left - 1)
    assert torch.equal(visible, (j <= i + offset + right) & (j >= i + offset - left))


def test_a_block_that_is_too_large_would_not_fit() -> None:
    """The bound is sharp: one row more, and a window leaves the mask."""
    r, _ = window_start(5, 4, 5)
    assert r + 4 > 8


def test_the_mask_is_one_object_whatever_the_length() -> None:
    assert tiling_mask(512, torch.int8, CPU) is tiling_mask(512, torch.int8, CPU)
    assert tiling_mask(512, torch.int8, CPU).numel() == 512**2
