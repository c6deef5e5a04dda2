"""What goes wrong without a word in other attention functions for transformers: here it doesn't."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="pip install 'portattn[transformers]'")

import transformers

from portattn.dispatch.select import Decision
from portattn.errors import ArgumentError, IntegrationError
from portattn.explain import record
from portattn.integrations import versions
from portattn.integrations.transformers import NAME, register
from portattn.integrations.transformers.attention import attention_forward
from tests.integrations.families import decoder, encoder, encoder_inputs, left_padded, tokens

# transformers leaves much of itself untyped.
tf: Any = transformers

IDS = tokens(2, 12)
PACKED: dict[str, Any] = {
    "input_ids": IDS[:1],
    "position_ids": torch.cat([torch.arange(5), torch.arange(7)])[None],
    "use_cache": False,
}
LENGTHS = torch.tensor([0, 5, 12], dtype=torch.int32)
STATED: dict[str, Any] = {
    "cu_seq_lens_q": LENGTHS,
    "cu_seq_lens_k": LENGTHS,
    "max_length_q": 7,
    "max_length_k": 7,
}
NO_LENGTHS: dict[str, Any] = {}


def close(found: Tensor, expected: Tensor, times: float = 1.0) -> None:
    """Within some roundings of the largest value."""
    assert float((found - expected).abs().max()) <= times * 1e-5 * float(expected.abs().max())


def ran(run: Callable[[], Any]) -> list[Decision]:
    with torch.no_grad(), record() as counts:
        run()
    return list(counts)


@pytest.mark.usefixtures("unregistered")
class TestRegistration:
    def test_attention_and_mask_come_and_go_together(self) -> None:
        tables = (tf.AttentionInterface(), tf.masking_utils.AttentionMaskInterface())
        assert all(NAME not in table for table in tables)
        with register():
            assert all(NAME in table for table in tables)
        assert all(NAME not in table for table in tables)

    def test_undoes_only_what_it_did(self) -> None:
        first, second = register(), register()
        second.undo()
        assert NAME in tf.AttentionInterface()
        first.undo()
        first.undo()
        assert NAME not in tf.AttentionInterface()

    def test_a_function_put_there_since_stays(self) -> None:
        registration = register()
        tf.AttentionInterface.register(NAME, print)
        registration.undo()
        assert tf.AttentionInterface()[NAME] is print

    def test_the_name_means_nothing_else_to_transformers(self) -> None:
        # "flash" is looked up as a flash-attn build, a "/" as a kernel to download.
        assert "flash" not in NAME and "/" not in NAME

    def test_other_releases_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for release in ("4.57.6", "6.0.0"):
            monkeypatch.setattr(versions, "version", lambda name, release=release: release)
            with pytest.raises(IntegrationError, match=rf"transformers {release} .*>=5,<6"):
                register()

    def test_only_sdpa_can_be_overridden(self) -> None:
        wrong: Any = "eager"
        with pytest.raises(ArgumentError, match="override"):
            register(override=wrong)

    def test_continuous_batching_through_an_override(self) -> None:
        prompts = [tokens(1, length)[0].tolist() for length in (4, 6, 20)]
        settings = tf.GenerationConfig(
            max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cuda_graph=False
        )
        eager = decoder("Mistral", "eager")
        expected = [
            eager.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0].tolist()
            for prompt in prompts
        ]
        before = tf.AttentionInterface()["sdpa"]
        model = decoder("Mistral", "sdpa")
        room = tf.ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
        with register(override="sdpa"), record() as counts:
            results = model.generate_batch(prompts, settings, room)
        assert tf.AttentionInterface()["sdpa"] is before
        found = [
            prompt + result.generated_tokens
            for prompt, result in zip(prompts, results.values(), strict=True)
        ]
        assert found == expected
        assert {decision.problem.layout for decision in counts} == {"varlen"}


@pytest.mark.usefixtures("registered")
class TestRefusals:
    def test_attention_weights(self) -> None:
        with pytest.raises(IntegrationError, match="output_attentions"):
            decoder("Llama", NAME)(IDS, output_attentions=True)
        with pytest.raises(IntegrationError, match="output_attentions"):
            encoder("Bert", NAME)(IDS, output_attentions=True)

    @pytest.mark.parametrize(
        "name", ["block_indices", "sinks", "block_table", "head_mask", "anything"]
    )
    def test_arguments_that_may_change_the_result(self, name: str) -> None:
        query = torch.randn(1, 2, 3, 8)
        given: dict[str, Any] = {name: torch.ones(1)}
        with pytest.raises(IntegrationError, match=name):
            attention_forward(torch.nn.Module(), query, query, query, **given)
        given[name] = None
        attention_forward(torch.nn.Module(), query, query, query, **given)

    def test_an_unknown_argument_of_the_model(self) -> None:
        with pytest.raises(IntegrationError, match="novelty"):
            decoder("Llama", NAME)(IDS, novelty=3)

    def test_masks_of_integers(self) -> None:
        query = torch.randn(1, 2, 3, 8)
        mask = torch.ones(1, 1, 3, 3, dtype=torch.int64)
        with pytest.raises(IntegrationError, match="attention_mask"):
            attention_forward(torch.nn.Module(), query, query, query, mask)

    def test_causal_attention_that_could_mean_two_things(self) -> None:
        query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 7, 8)
        with pytest.raises(IntegrationError, match="3 queries over 7 keys"):
            attention_forward(torch.nn.Module(), query, key, key, None, is_causal=True)

    @pytest.mark.parametrize("model", ["Bloom", "NllbMoe"])
    def test_models_made_for_their_own_attention(self, model: str) -> None:
        # Bloom adds the mask to its scores, NllbMoe counts padding by it: both expect floats.
        small = {
            "Bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
            "NllbMoe": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
            | {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
            | {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_experts": 2},
        }[model]
        config = getattr(tf, f"{model}Config")(vocab_size=64, **small)
        network = tf.AutoModel.from_config(config, attn_implementation=NAME)
        with pytest.raises(IntegrationError, match=f"{model} models"):
            network(**left_padded(2, 12))


@pytest.mark.usefixtures("registered")
class TestNoMaskIsWrittenOut:
    @pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2", "Cohere2", "Qwen2"])
    @pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}])
    def test_of_a_prompt(self, name: str, how: dict[str, Any]) -> None:
        model = decoder(name, NAME)
        for decision in ran(lambda: model.generate(IDS, max_new_tokens=1, pad_token_id=0, **how)):
            assert "mask" not in decision.problem.features
            assert decision.problem.causal

    def test_of_padding_only_the_keys_that_are_real(self) -> None:
        model = decoder("Mistral", NAME)
        for decision in ran(lambda: model(**left_padded(2, 12))):
            assert {"causal", "mask", "window"} <= decision.problem.features

    def test_of_packed_sequences(self) -> None:
        model = decoder("Mistral", NAME)
        for given in (PACKED, {**PACKED, **STATED}, {**PACKED, **STATED, "use_cache": True}):
            for decision in ran(partial(model, **given)):
                assert decision.problem.layout == "varlen"
                assert "mask" not in decision.problem.features

    def test_of_one_query(self) -> None:
        model = decoder("Mistral", NAME)
        for decision in ran(
            lambda: model.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
        ):
            if decision.problem.seqlen_q == 1:
                assert decision.problem.seqlen_k <= 5, "the window is five keys"
                assert "mask" not in decision.problem.features


@pytest.mark.usefixtures("registered")
class TestStatedLengths:
    @pytest.mark.parametrize("extra", [{}, {"attention_mask": torch.ones(1, 12).long()}])
    @pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2", "GptOss"])
    def test_sequences_do_not_see_each_other(self, name: str, extra: dict[str, Any]) -> None:
        eager, ours = decoder(name, "eager"), decoder(name, NAME)
        with torch.no_grad():
            parts = (IDS[:1, :5], IDS[:1, 5:])
            expected = torch.cat([eager(part).logits for part in parts], 1)
            close(ours(**PACKED, **STATED, **extra).logits, expected)

    def test_beside_a_mask_of_the_callers_own(self) -> None:
        """Both hold: a query sees what its mask shows of its own sequence."""
        query = torch.randn(1, 2, 12, 8)
        mask = torch.rand(1, 1, 12, 12) < 0.7
        same = torch.tensor([0] * 5 + [1] * 7)
        both = mask & (same[:, None] == same)
        found, expected = (
            attention_forward(torch.nn.Module(), query, query, query, given, **lengths)[0]
            for given, lengths in ((mask, STATED), (both, NO_LENGTHS))
        )
        torch.testing.assert_close(found, expected)

    def test_need_both_sides(self) -> None:
        query = torch.randn(1, 2, 12, 8)
        with pytest.raises(IntegrationError, match="together"):
            attention_forward(torch.nn.Module(), query, query, query, cu_seq_lens_q=LENGTHS)


@pytest.mark.usefixtures("registered")
class TestAlignment:
    """Several queries over more keys than queries: which keys does the first one see?"""

    def test_last_queries_alone(self) -> None:
        # Gemma 4 keeps the last tokens' queries and, if there is one, cuts the mask accordingly.
        config = {**decoder("Gemma4Text", "eager").config.to_dict(), "num_hidden_layers": 4}
        config["layer_types"] = ["sliding_attention", "full_attention"] * 2
        config["num_kv_shared_layers"] = 2
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = tf.AutoModelForCausalLM.from_config(tf.Gemma4TextConfig(**config)).eval()
            for keep in (1, 3):
                logits = {}
                for implementation in ("eager", NAME):
                    model.set_attn_implementation(implementation)
                    logits[implementation] = model(IDS, logits_to_keep=keep).logits
                close(logits[NAME], logits["eager"])

    def test_several_guesses_at_once(self) -> None:
        repeating = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
        settings = {"max_new_tokens": 16, "do_sample": False, "prompt_lookup_num_tokens": 3}
        found, expected = (
            decoder("Mistral", name).generate(repeating, **settings) for name in (NAME, "eager")
        )
        assert found.tolist() == expected.tolist()

    def test_parts_through_a_cache(self) -> None:
        model = decoder("Gemma2", NAME)
        cache = tf.DynamicCache(config=model.config)
        with torch.no_grad():
            parts = [model(part, past_key_values=cache).logits for part in IDS.split((6, 5, 1), 1)]
            close(torch.cat(parts, 1), decoder("Gemma2", "eager")(IDS).logits)


@pytest.mark.usefixtures("registered")
class TestTraining:
    @pytest.mark.parametrize("checkpointing", [None, False, True])
    @pytest.mark.parametrize("name", ["Mistral", "Gemma2", "GptOss", "DeepseekV3"])
    def test_gradients(self, name: str, checkpointing: bool | None) -> None:
        inputs = left_padded(2, 12)
        # The first real token would be predicted from padding, whose row is anybody's guess.
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"].cumsum(1) < 2, -100)
        gradients = []
        for implementation in ("eager", NAME):
            model = decoder(name, implementation).train()
            if checkpointing is not None:
                model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            model(**inputs, labels=labels).loss.backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        for expected, found in zip(*gradients, strict=True):
            close(found, expected, times=10)

    def test_gradient_of_a_position_bias(self) -> None:
        inputs = encoder_inputs("T5")
        labels = inputs.pop("decoder_input_ids")
        gradients = []
        for implementation in ("eager", NAME):
            model = encoder("T5", implementation)
            model(**inputs, labels=labels).loss.backward()
            attention = model.decoder.block[0].layer[0].SelfAttention
            gradients.append(attention.relative_attention_bias.weight.grad)
        close(gradients[1], gradients[0], times=10)

    def test_dropout_in_training_alone(self) -> None:
        model = decoder("Llama", NAME)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.25
        assert {d.problem.dropout_p for d in ran(lambda: model(IDS))} == {0.0}
        assert {d.problem.dropout_p for d in ran(lambda: model.train()(IDS))} == {0.25}
        query = torch.randn(1, 2, 3, 8)
        module = torch.nn.Module().eval()
        first, second = (
            attention_forward(module, query, query, query, dropout=0.5)[0] for _ in range(2)
        )
        assert torch.equal(first, second)

    def test_autocast(self) -> None:
        inputs = left_padded(2, 12)
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            expected = decoder("Llama", "eager")(**inputs).logits[real]
            with torch.autocast("cpu", torch.bfloat16):
                errors = [
                    (decoder("Llama", name)(**inputs).logits[real].float() - expected).abs().mean()
                    for name in (NAME, "eager")
                ]
        assert errors[0] <= 2 * errors[1]


@pytest.mark.usefixtures("registered")
class TestCompile:
    @pytest.mark.parametrize("padded", [False, True])
    def test_whole_model(self, padded: bool) -> None:
        inputs = left_padded(2, 12) if padded else {"input_ids": IDS}
        real = inputs.get("attention_mask", torch.ones(2, 12)).bool()
        model = decoder("Mistral", NAME)
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            found = compiled(**inputs, use_cache=False).logits
            close(found[real], decoder("Mistral", "eager")(**inputs).logits[real])

    def test_layer_by_layer(self) -> None:
        inputs = left_padded(2, 12)
        real = inputs["attention_mask"].bool()
        model = decoder("Mistral", NAME)
        torch._dynamo.reset()
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            found = model(**inputs, use_cache=False).logits[real]
            close(found, decoder("Mistral", "eager")(**inputs).logits[real])


@pytest.mark.usefixtures("registered")
def test_learned_queries_without_a_batch() -> None:
    """One set of queries for a batch of keys."""
    query, key = torch.randn(1, 2, 3, 8), torch.randn(4, 2, 5, 8)
    found = attention_forward(torch.nn.Module(), query, key, key)[0]
    expanded = attention_forward(torch.nn.Module(), query.expand(4, -1, -1, -1), key, key)[0]
    assert torch.equal(found, expanded)


def test_a_learned_scale_keeps_its_gradient() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    query = torch.randn(1, 2, 3, 8)
    attention_forward(torch.nn.Module(), query, query, query, scaling=scale)[0].sum().backward()
    assert scale.grad is not None and float(scale.grad) != 0.0
