"""The cache that appends in place holds, whatever is done with it, what transformers' own holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="pip install 'portattn[transformers]'")

from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from portattn.integrations.transformers.growing_cache import GrowingCache

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)


def rows(number: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = torch.randn(2, batch, 2, number, 8)
    return k, v


def test_the_same_as_transformers_own_through_everything_that_changes_a_cache() -> None:
    torch.manual_seed(1)
    grown, plain = GrowingCache(CONFIG), DynamicCache(config=CONFIG)

    def append(number: int, batch: int) -> None:
        k, v = rows(number, batch)
        for x, y in zip(grown.update(k, v, 0), plain.update(k, v, 0), strict=True):
            assert torch.equal(x, y)
        assert grown.get_seq_length() == plain.get_seq_length()

    def both(name: str, *given: Any) -> None:
        for cache in (grown, plain):
            getattr(cache, name)(*given)

    for number in (5, 1, 1, 300, 1, 400, 1):  # past the room twice
        append(number, 2)
    both("crop", -700)
    append(1, 2)
    both("reorder_cache", torch.tensor([1, 0]))
    append(1, 2)
    both("batch_repeat_interleave", 2)
    append(2, 4)
    both("batch_select_indices", torch.tensor([3, 0]))
    append(1, 2)
    both("reset")
    append(3, 2)


def test_what_was_returned_keeps_its_values() -> None:
    cache = GrowingCache(CONFIG)
    returned = []
    for number in (3, 1, 300, 1):
        keys, _ = cache.update(*rows(number), 0)
        returned.append((keys, keys.clone()))
    cache.crop(-301)
    cache.update(*rows(2), 0)
    assert all(torch.equal(keys, before) for keys, before in returned)


def test_a_step_writes_its_own_rows_only() -> None:
    cache = GrowingCache(CONFIG)
    keys, values = cache.update(*rows(8), 0)
    later = cache.update(*rows(1), 0)
    assert [t.data_ptr() for t in later] == [keys.data_ptr(), values.data_ptr()]


def test_gradients_and_inference_mode() -> None:
    cache = GrowingCache(CONFIG)
    k, v = rows(4)
    k.requires_grad_()
    cache.update(k, v, 0)[0].sum().backward()
    assert k.grad is not None
    cache = GrowingCache(CONFIG)
    with torch.inference_mode():
        cache.update(*rows(4), 0)
    with torch.no_grad():
        assert cache.update(*rows(1), 0)[0].shape[2] == 5


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_generation(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    prompt = torch.randint(0, 64, (1, 12)).repeat(1, 2)
    given = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, **options}
    expected = model.generate(prompt, **given)
    found = model.generate(prompt, **given, past_key_values=GrowingCache(CONFIG))
    assert found.tolist() == expected.tolist()
