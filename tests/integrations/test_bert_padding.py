"""Packing and unpacking against rows picked one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portattn.errors import ShapeError
from portattn.integrations import flash_attn as fa

masks = st.integers(0, 7).flatmap(
    lambda seqlen: st.lists(
        st.lists(st.integers(0, 2), min_size=seqlen, max_size=seqlen), max_size=4
    )
)


@settings(max_examples=100, deadline=None)
@given(masks, st.sampled_from((torch.bool, torch.int32, torch.int64)))
def test_unpad_then_pad(rows: list[list[int]], dtype: torch.dtype) -> None:
    """A slot is a token (1), kept but unused (2), or padding (0)."""
    slots = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), len(rows[0]) if rows else 0)
    batch, seqlen = slots.shape
    x = torch.randn(batch, seqlen, 2, 3, requires_grad=True)
    masks = ((slots == 1).to(dtype), (slots == 2).to(dtype))
    packed, indices, cu_seqlens, longest, used = fa.unpad_input(x, *masks)
    kept = [(b, s) for b in range(batch) for s in range(seqlen) if rows[b][s]]
    lengths = [sum(map(bool, row)) for row in rows]
    assert packed.shape == (len(kept), 2, 3)
    assert all(torch.equal(packed[i], x[place]) for i, place in enumerate(kept))
    assert indices.tolist() == [b * seqlen + s for b, s in kept]
    assert cu_seqlens.dtype == used.dtype == torch.int32
    assert cu_seqlens.tolist() == [sum(lengths[:b]) for b in range(batch + 1)]
    assert longest == max(lengths, default=0) and type(longest) is int
    assert used.tolist() == [row.count(1) for row in rows]
    padded = fa.pad_input(packed, indices, batch, seqlen)
    assert torch.equal(padded, torch.where((slots > 0)[..., None, None], x, 0.0))
    (grad,) = torch.autograd.grad(padded.square().sum(), x)
    torch.testing.assert_close(grad, 2 * padded.detach())


def test_without_unused_slots() -> None:
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    packed, indices, cu_seqlens, longest, used = fa.unpad_input(x, mask)
    assert cu_seqlens.tolist() == [0, 2, 3] and longest == 2 and used.tolist() == [2, 1]
    assert torch.equal(packed, fa.index_first_axis(x.flatten(0, 1), indices))


def test_index_first_axis_adds_up_gradients_of_repeated_rows() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    rows = fa.index_first_axis(x, torch.tensor([2, 0, 2]))
    (grad,) = torch.autograd.grad(rows.sum(), x)
    assert grad[:, 0].tolist() == [1, 0, 2, 0]
    again = fa.index_put_first_axis(rows.detach()[:2], torch.tensor([2, 0]), 4)
    assert torch.equal(again[[2, 0]], x[[2, 0]]) and not again[[1, 3]].any()


def test_shapes_that_do_not_fit_are_named() -> None:
    x, mask = torch.zeros(2, 4, 3), torch.ones(2, 4)
    for call, argument in (
        (lambda: fa.unpad_input(x, mask[:, :3]), "attention_mask"),
        (lambda: fa.unpad_input(x, mask, mask[:1]), "unused_mask"),
        (lambda: fa.pad_input(x[0], torch.arange(3), 2, 4), "indices"),
    ):
        with pytest.raises(ShapeError) as caught:
            call()
        assert caught.value.argument == argument
