"""What the tests of dispatch share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from portattn.dispatch import profile as profiles

WHOLE = """\
schema: 1
name: mine
match: {type: cpu, family: [avx2, avx512]}
device: {cores: 4, tflops: {float32: 0.5}, bandwidth_gbs: 20}
preference:
  forward: [cpu, reference]
  backward: [cpu, reference]
  decode: [cpu, reference]
kernels:
  cpu.forward:
    - when: {head_dim: {min: 64, max: 128}, causal: true, window: false}
      use: {block_m: 32, block_n: 64}
    - use: {block_m: 64}
measured:
  - backend: cpu
    operation: forward
    when: {dtype: float32, gqa: 4}
    microseconds: 12.5
    config: {block_m: 64}
    versions: {torch: "2.13"}
"""


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty configuration folder of the user's own; gives the overlays' folder."""
    monkeypatch.delenv("PORTATTN_PROFILE", raising=False)
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    monkeypatch.setattr(profiles, "overlay_path", lambda name: folder / f"{name}.yaml")
    profiles.forget()
    yield folder
    profiles.forget()


@pytest.fixture
def whole() -> str:
    """A profile that uses every part of the schema."""
    return WHOLE


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file that only its owner can write, my.yaml unless another is named."""

    def write_file(text: str, file: Path = tmp_path / "my.yaml") -> Path:
        file.write_text(text, encoding="utf-8")
        file.chmod(0o600)
        return file

    return write_file
