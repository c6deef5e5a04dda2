"""StructuredMask stands for the mask that transformers writes out, and is attended to as such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="pip install 'portattn[transformers]'")

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import masking_utils

from portattn.integrations.transformers.attention import attention_forward
from portattn.integrations.transformers.masks import attention_mask, rule_of
from portattn.integrations.transformers.structured_mask import StructuredMask

PATTERNS: dict[str, Callable[[int], Any]] = {
    "causal": lambda size: masking_utils.causal_mask_function,
    "full": lambda size: masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function,
    "window both ways": masking_utils.sliding_window_bidirectional_mask_function,
    "chunks": lambda size: masking_utils.chunked_causal_mask_function(size, torch.zeros(2).long()),
}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A call of the mask function, as one with a cache that holds more or less than is asked."""
    q_length = draw(st.integers(1, 9))
    kv_length = draw(st.integers(1, 20))
    q_offset = draw(st.integers(0, 20))
    padding = None
    if draw(st.booleans()):
        padding = torch.ones(2, draw(st.integers(1, 30)), dtype=torch.bool)
        padding[0, : draw(st.integers(0, 8))] = False
    return {
        "batch_size": 2,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": draw(st.integers(0, q_offset)),
        "mask_function": PATTERNS[draw(st.sampled_from(sorted(PATTERNS)))](
            draw(st.integers(1, 24))
        ),
        "attention_mask": padding,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "config": None,
    }


def written_out(request: dict[str, Any]) -> Tensor:
    mask = masking_utils.sdpa_mask(**{**request, "allow_is_causal_skip": False})
    assert mask is not None
    return mask


@settings(deadline=None, max_examples=300)
@given(requests())
def test_stands_for_the_mask_that_transformers_writes(request: dict[str, Any]) -> None:
    mask = attention_mask(**request)
    expected = written_out(request)
    assert mask is not None and mask.shape == expected.shape
    dense = mask.dense() if isinstance(mask, StructuredMask) else mask
    # Rows of padding see other padding here and there; nobody reads them.
    rows = _real_rows(request)
    assert torch.equal(dense[rows], expected[rows])


@settings(deadline=None, max_examples=150)
@given(requests())
def test_is_attended_to_as_written(request: dict[str, Any]) -> None:
    mask, expected = attention_mask(**request), written_out(request)
    assume(isinstance(mask, StructuredMask))
    query = torch.randn(2, 4, request["q_length"], 8)
    key, value = (torch.randn(2, 2, request["kv_length"], 8) for _ in range(2))
    bias = torch.randn(1, 4, request["q_length"], request["kv_length"])
    found, dense = (
        attention_forward(torch.nn.Module(), query, key, value, given, position_bias=bias)[0]
        for given in (mask, expected)
    )
    rows = _real_rows(request)[:, 0]
    torch.testing.assert_close(found[rows], dense[rows])


def _real_rows(request: dict[str, Any]) -> Tensor:
    """bool [B, 1, Sq]: the queries that are no padding themselves."""
    rows = torch.ones(2, 1, request["q_length"], dtype=torch.bool)
    padding = request["attention_mask"]
    if padding is not None:
        for query in range(request["q_length"]):
            position = request["q_offset"] + query
            rows[:, 0, query] = position >= padding.shape[1] or padding[:, position]
    return rows


def test_one_query_that_sees_all_needs_no_mask() -> None:
    request = {
        "batch_size": 1,
        "q_length": 1,
        "kv_length": 8,
        "q_offset": 7,
        "kv_offset": 0,
        "mask_function": masking_utils.causal_mask_function,
        "attention_mask": None,
        "device": "cpu",
    }
    assert attention_mask(**request, allow_is_causal_skip=True) is None
    assert attention_mask(**request, allow_is_causal_skip=False) is not None
    # A static cache has more keys than have been seen.
    assert attention_mask(**{**request, "kv_length": 9}, allow_is_causal_skip=True) is not None


def test_rules_of_the_models_own_are_written_out() -> None:
    def own(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return key <= query

    assert rule_of(own) is None
    assert rule_of(masking_utils.and_masks(own, masking_utils.causal_mask_function)) is None
    assert rule_of(masking_utils.or_masks(masking_utils.causal_mask_function)) is None


@pytest.fixture
def mask() -> StructuredMask:
    padding = torch.ones(2, 7, dtype=torch.bool)
    padding[0, :2] = False
    found = attention_mask(
        batch_size=2,
        q_length=5,
        kv_length=7,
        q_offset=2,
        kv_offset=0,
        mask_function=masking_utils.causal_mask_function,
        attention_mask=padding,
        device="cpu",
    )
    assert isinstance(found, StructuredMask)
    return found


def test_operations_see_a_bool_tensor(mask: StructuredMask) -> None:
    dense = mask.dense()
    assert mask.dtype == torch.bool and mask.shape == (2, 1, 5, 7)
    assert torch.equal(mask[:, :, -2:], dense[:, :, -2:])
    assert torch.equal(~mask, ~dense)
    assert torch.equal(mask & dense, dense)
    assert torch.equal(torch.where(mask, 0.0, -1.0), torch.where(dense, 0.0, -1.0))
    assert torch.equal(mask.float(), dense.float())
    assert "StructuredMask" in repr(mask)


def test_checkpointing_and_moving_keep_the_structure(mask: StructuredMask) -> None:
    for same in (mask.detach(), mask.contiguous(), mask.clone(), mask.to("cpu")):
        assert isinstance(same, StructuredMask)
        assert torch.equal(same.dense(), mask.dense())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_can_be_given_to_a_compiled_function(mask: StructuredMask, backend: str) -> None:
    def attend(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        return attention_forward(torch.nn.Module(), query, key, key, mask)[0]

    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(query, key, mask), attend(query, key, mask))
