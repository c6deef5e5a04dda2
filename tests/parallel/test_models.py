"""transformers' models over gloo ranks: SmolLM2's tokens, and heads that don't divide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from portattn.errors import IntegrationError
from portattn.integrations import models
from portattn.integrations.transformers.spread import SpreadCache, spread
from portattn.integrations.transformers.tensor_parallel import heads_of, kv_heads_of
from portattn.parallel import ContextParallel
from tests.parallel import ranks

PROMPT = "Gravity is"
LONG = "The three primary colours are red, yellow and blue. Mixed with white, red becomes"


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


def spread_tokens() -> dict[str, Any]:
    """What SmolLM2 goes on with where ranks share the tokens: of a prompt that is spread, with
    turns of 3 tokens, and of one that is too short for it; and a prompt's logits."""
    model, tokenizer = models.load_model()
    parallel = ContextParallel(ring=dist.group.WORLD)
    found: dict[str, Any] = {}
    with torch.no_grad(), spread(model):
        for prompt, block in ((LONG, 3), (PROMPT, 3)):
            cache = SpreadCache(model.config, parallel, block=block)
            inputs = tokenizer(prompt, return_tensors="pt")
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False, past_key_values=cache)
            held = cache.layers[0].kept.local.seqlens.tolist()
            found[prompt] = out[0].tolist(), held[0]
        cache = SpreadCache(model.config, parallel)
        inputs = tokenizer(LONG, return_tensors="pt")
        logits = model(**inputs, past_key_values=cache).logits
        alone = model(**inputs).logits
        found["logits"] = torch.allclose(logits, alone, atol=1e-3, rtol=1e-3)
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_smollm2_says_the_same_with_its_tokens_spread(count: int) -> None:
    model, tokenizer = models.load_model()
    found = ranks.run(spread_tokens, count)
    for prompt in (LONG, PROMPT):
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            alone = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
        assert [mine[prompt][0] for mine in found] == [alone] * count
        held = [mine[prompt][1] for mine in found]
        # The last token's keys are never computed; nobody holds all, and nobody two's share.
        assert sum(held) == len(alone) - 1
        assert max(held) - min(held) <= 4
    assert all(mine["logits"] for mine in found)


def test_what_can_not_be_spread() -> None:
    model, tokenizer = models.load_model()
    inputs = tokenizer([LONG], return_tensors="pt")
    cache = SpreadCache(model.config, ContextParallel())
    inputs["attention_mask"][0, 0] = 0
    with spread(model), pytest.raises(IntegrationError, match="padded"):
        model(**inputs, past_key_values=cache)
    handle, _ = cache.layers[0].update(torch.zeros(1, 3, 2, 64), torch.zeros(1, 3, 2, 64))
    with pytest.raises(IntegrationError, match=r"keys or values \(repeat\)"):
        handle.repeat(1)


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
