"""transformers' models over gloo ranks: SmolLM2's tokens, and heads that don't divide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from portattn.integrations import models
from portattn.integrations.transformers.tensor_parallel import heads_of, kv_heads_of
from tests.parallel import ranks

PROMPT = "Gravity is"


def tokens(count: int) -> tuple[list[int], int]:
    """What SmolLM2 goes on with, and the query heads of this rank's first layer."""
    model, tokenizer = models.load_model(ranks=count)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    attention = model.model.layers[0].self_attn
    weight = attention.q_proj.weight
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return out[0].tolist(), local.shape[0] // attention.head_dim


# 9 query heads on 3 key heads: 3 ranks divide both, 2 neither.
@pytest.mark.parametrize(("count", "shares"), [(3, [3, 3, 3]), (2, [4, 5])])
def test_smollm2_says_the_same(count: int, shares: list[int]) -> None:
    alone, _ = tokens(1)
    found = ranks.run(tokens, count, count)
    assert [said for said, _ in found] == [alone] * count
    assert [heads for _, heads in found] == shares


@given(groups=st.integers(1, 12), size=st.integers(1, 8), data=st.data())
def test_shares_of_heads(groups: int, size: int, data: st.DataObject) -> None:
    heads = groups * size
    count = data.draw(st.integers(1, heads))
    held = [heads_of(rank, count, heads) for rank in range(count)]
    assert [head for mine in held for head in mine] == list(range(heads))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for mine in held:
        read = kv_heads_of(mine, size)
        assert len(mine) % len(read) == 0
        local = len(mine) // len(read)
        assert [read[place // local] for place in range(len(mine))] == [h // size for h in mine]
