"""Tiny random models of many families: portattn's attention against transformers' eager."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import portattn
from portattn.errors import ArgumentError, IntegrationError
from portattn.explain import record
from portattn.integrations import transformers as integration
from portattn.integrations import versions
from portattn.integrations.transformers.attention import attention_forward

tf = pytest.importorskip("transformers", reason="pip install 'portattn[transformers]' runs these")

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = BASE | {"head_dim": 8}
MOE = {"num_local_experts": 2, "num_experts_per_tok": 1}
MLA = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
DECODERS: dict[str, Callable[[], Any]] = {
    "Llama": lambda: tf.LlamaConfig(**BASE),
    "Mistral": lambda: tf.MistralConfig(**WIDE, sliding_window=6),
    "Qwen2": lambda: tf.Qwen2Config(**BASE),
    "Qwen3": lambda: tf.Qwen3Config(**WIDE),
    "Gemma2": lambda: tf.Gemma2Config(**WIDE, sliding_window=6, query_pre_attn_scalar=8),
    "Gemma3": lambda: tf.Gemma3TextConfig(**WIDE, sliding_window=6, query_pre_attn_scalar=8),
    "GptOss": lambda: tf.GptOssConfig(**WIDE, **MOE, sliding_window=6),
    "Phi3": lambda: tf.Phi3Config(**BASE),
    "Cohere": lambda: tf.CohereConfig(**BASE),
    "Cohere2": lambda: tf.Cohere2Config(**BASE, sliding_window=6),
    "DeepseekV3": lambda: tf.DeepseekV3Config(**(BASE | MLA)),
    "GPT2": lambda: tf.GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with integration.register():
        yield


def pair(make: Callable[[], Any], auto: Any) -> tuple[Any, Any]:
    """The same random weights under eager and under portattn."""
    torch.manual_seed(torch.initial_seed() % 2**31)
    eager = auto.from_config(make(), attn_implementation="eager").eval()
    ours = auto.from_config(copy.deepcopy(eager.config), attn_implementation="portattn").eval()
    ours.load_state_dict(eager.state_dict())
    return eager, ours


def padded(left: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 97, (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :left] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def close(ours: Tensor, eager: Tensor) -> None:
    torch.testing.assert_close(ours, eager, rtol=2e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("left", [0, 4], ids=["unpadded", "left-padded"])
@pytest.mark.parametrize("family", DECODERS)
def test_decoder_logits_and_generation(family: str, left: int) -> None:
    eager, ours = pair(DECODERS[family], tf.AutoModelForCausalLM)
    inputs = padded(left)
    real = inputs["attention_mask"].bool()
    with record() as counts:
        logits = ours(**inputs).logits
    assert counts and all(decision.backend != "reference" for decision in counts)
    close(logits[real], eager(**inputs).logits[real])
    for options in ({}, {"num_beams": 3}):
        settings = options | {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
        assert torch.equal(
            ours.generate(**inputs, **settings), eager.generate(**inputs, **settings)
        )


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "GptOss"])
def test_static_cache(family: str) -> None:
    eager, ours = pair(DECODERS[family], tf.AutoModelForCausalLM)
    settings = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    for left in (0, 4):
        inputs = padded(left)
        static = ours.generate(
            **inputs, **settings, cache_implementation="static", disable_compile=True
        )
        assert torch.equal(static, eager.generate(**inputs, **settings))


@torch.no_grad()
@pytest.mark.parametrize("explicit", [False, True], ids=["position_ids", "cu_seq_lens"])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "GptOss"])
def test_packed_sequences_do_not_see_each_other(family: str, explicit: bool) -> None:
    eager, ours = pair(DECODERS[family], tf.AutoModelForCausalLM)
    first, second = torch.randint(3, 97, (1, 5)), torch.randint(3, 97, (1, 9))
    positions = torch.cat((torch.arange(5), torch.arange(9)))[None]
    packed: dict[str, Any] = {"input_ids": torch.cat((first, second), 1), "use_cache": False}
    packed["position_ids"] = positions
    if explicit:
        cu = torch.tensor([0, 5, 14], dtype=torch.int32)
        packed |= {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 9, "max_length_k": 9}
    logits = ours(**packed).logits
    if not explicit:
        # Some models look for packing in position_ids and some don't: each as under eager.
        close(logits, eager(**packed).logits)
    if explicit or family != "GptOss":
        close(logits[:, :5], eager(input_ids=first).logits)
        close(logits[:, 5:], eager(input_ids=second).logits)


@torch.no_grad()
def test_chunks_through_a_dynamic_cache() -> None:
    """A second chunk of several queries is aligned to the end of its keys."""
    eager, ours = pair(DECODERS["Mistral"], tf.AutoModelForCausalLM)
    ids = torch.randint(3, 97, (1, 14))
    cache = tf.DynamicCache(config=ours.config)
    parts = [ours(input_ids=part, past_key_values=cache).logits for part in ids.split((6, 5, 3), 1)]
    close(torch.cat(parts, 1), eager(input_ids=ids).logits)


@torch.no_grad()
def test_bert_and_vit() -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4}
    eager, ours = pair(lambda: tf.BertConfig(vocab_size=97, **small, **heads), tf.AutoModel)
    inputs = padded(4)
    real = inputs["attention_mask"].bool()
    close(ours(**inputs).last_hidden_state[real], eager(**inputs).last_hidden_state[real])
    eager, ours = pair(
        lambda: tf.ViTConfig(**small, **heads, image_size=32, patch_size=8), tf.AutoModel
    )
    pixels = torch.randn(2, 3, 32, 32)
    close(ours(pixels).last_hidden_state, eager(pixels).last_hidden_state)


@torch.no_grad()
def test_t5() -> None:
    """Position bias, cross attention, encoder padding; greedy and beam."""
    config = {
        "vocab_size": 97,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    eager, ours = pair(lambda: tf.T5Config(**config), tf.AutoModelForSeq2SeqLM)
    inputs = padded(0)
    inputs["attention_mask"][0, 7:] = 0
    decoder = torch.randint(3, 97, (2, 6))
    close(
        ours(**inputs, decoder_input_ids=decoder).logits,
        eager(**inputs, decoder_input_ids=decoder).logits,
    )
    for beams in (1, 3):
        settings = {"max_new_tokens": 7, "num_beams": beams, "eos_token_id": None}
        assert torch.equal(
            ours.generate(**inputs, **settings), eager.generate(**inputs, **settings)
        )


@torch.no_grad()
def test_whisper() -> None:
    config = {
        "vocab_size": 97,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "max_target_positions": 30,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    eager, ours = pair(lambda: tf.WhisperConfig(**config), tf.AutoModelForSpeechSeq2Seq)
    inputs = {
        "input_features": torch.randn(2, 8, 40),
        "decoder_input_ids": torch.randint(3, 97, (2, 6)),
    }
    close(ours(**inputs).logits, eager(**inputs).logits)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_training_gradients(family: str) -> None:
    eager, ours = pair(DECODERS[family], tf.AutoModelForCausalLM)
    inputs = padded(0)
    for model in (eager, ours):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for (name, theirs), mine in zip(eager.named_parameters(), ours.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_attention_and_mask_come_and_go_together() -> None:
    masking = __import__("transformers.masking_utils", fromlist=["x"])
    modeling = __import__("transformers.modeling_utils", fromlist=["x"])
    with integration.register() as handle:
        assert "portattn" in modeling.ALL_ATTENTION_FUNCTIONS
        assert "portattn" in masking.ALL_MASK_ATTENTION_FUNCTIONS
    handle.undo()
    outer = "portattn" in modeling.ALL_ATTENTION_FUNCTIONS
    assert outer, "undo puts back what was registered before"


@torch.no_grad()
def test_continuous_batching_through_an_override() -> None:
    eager, ours = pair(DECODERS["Llama"], tf.AutoModelForCausalLM)
    ours.set_attn_implementation("sdpa")
    prompts = [torch.randint(3, 97, (n,)).tolist() for n in (5, 9, 3)]
    settings = tf.GenerationConfig(
        max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cuda_graph=False
    )
    with integration.register(override="sdpa"), record() as counts:
        results = ours.generate_batch(inputs=prompts, generation_config=settings)
    assert counts
    for prompt, result in zip(prompts, results.values(), strict=True):
        want = eager.generate(
            torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None
        )[0, len(prompt) :]
        assert result.generated_tokens == want.tolist()
    with pytest.raises(ArgumentError, match="override"):
        integration.register(override="no such")


def call(**kwargs: Any) -> Tensor:
    q = torch.randn(1, 4, 5, 8)
    return attention_forward(torch.nn.Module(), q, q, q, None, **kwargs)[0]


def test_unknown_features_raise() -> None:
    call(use_cache=True, position_ids=torch.arange(5), output_attentions=False, novelty=None)
    with pytest.raises(IntegrationError, match="'block_indices' is not known"):
        call(block_indices=torch.zeros(1))
    with pytest.raises(IntegrationError, match="output_attentions"):
        call(output_attentions=True)


def test_versions_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "4.57.0")
    with pytest.raises(IntegrationError, match=r"transformers 4\.57\.0 is not supported"):
        integration.register()


def test_dropout_only_in_training() -> None:
    eager, ours = pair(
        lambda: tf.LlamaConfig(**BASE, attention_dropout=0.5), tf.AutoModelForCausalLM
    )
    ids = padded(0)["input_ids"]
    with torch.no_grad():
        close(ours(ids).logits, eager(ids).logits)
        ours.train()
        assert not torch.equal(ours(ids).logits, ours(ids).logits)
    assert portattn.__version__
