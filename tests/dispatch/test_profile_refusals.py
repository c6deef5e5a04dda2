"""Profiles that are refused: which file, line and key, and what is legal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from portattn.dispatch import profile as profiles
from portattn.dispatch import profile_yaml, registry
from portattn.errors import BackendUnavailableError, ProfileError

Write = Callable[..., Path]

REFUSED = [
    # What is replaced, by what, the line, the key, and what the message says.
    ("schema: 1", "schema: 2", 1, "schema", "must be 1"),
    ("schema: 1", "schema: true", 1, "schema", "found True"),
    ("schema: 1\n", "", 1, "schema", "is missing"),
    ("match:", "matches:", 3, "matches", "legal are schema, name, match"),
    ("name: mine", "name: ../mine", 2, "name", "'../mine'"),
    ("name: mine", "name: mine\nname: other", 3, "name", "given twice"),
    ("name: mine", "name: &a mine", 2, "name", "anchors"),
    ("name: mine", "name: *a", 2, "name", "aliases"),
    ("name: mine", "name: !!python/name:os.system mine", 2, "name", "tags"),
    ("name: mine", "name: !env HOME", 2, "name", "tags"),
    ("type: cpu", "type: abacus", 3, "match.type", "'cpu', 'cuda'"),
    ("[avx2, avx512]", "[avx2, 512]", 3, "match.family[1]", "found 512"),
    ("cores: 4", "cores: 0", 4, "device.cores", "greater than 0"),
    ("cores: 4", "cores: 4.0", 4, "device.cores", "integer"),
    ("cores: 4", "cores: on", 4, "device.cores", "ambiguous"),
    ("cores: 4", "cores: 1:30", 4, "device.cores", "ambiguous"),
    ("cores: 4", "cores: 010", 4, "device.cores", "ambiguous"),
    ("cores: 4", "cores: 1_0", 4, "device.cores", "ambiguous"),
    ("float32: 0.5", "float32: .inf", 4, "device.tflops.float32", "finite"),
    ("float32: 0.5", "float31: 0.5", 4, "device.tflops.float31", "'float32'"),
    ("bandwidth_gbs: 20", "bandwidth_gbs: yes", 4, "device.bandwidth_gbs", "ambiguous"),
    ("bandwidth_gbs: 20", "bandwidth_gbs: 1.0e+20", 4, "device.bandwidth_gbs", "less than"),
    ("bandwidth_gbs: 20", "20: 20", 4, "device", "a key must be a name"),
    ("bandwidth_gbs: 20", "[a]: 20", 4, "device", "a key must be a name"),
    ("  decode: [cpu, reference]\n", "", 5, "preference", "lacks decode"),
    ("  decode: [cpu", "  decode: [gpu", 8, "preference.decode[0]", "one of torch_sdpa, triton"),
    ("  decode: [cpu", "  decode: [reference", 8, "preference.decode[1]", "named twice"),
    ("  decode: [cpu, reference]", "  decode: []", 8, "preference.decode", "at least 1"),
    ("  decode: [cpu, reference]", "  decode: cpu", 8, "preference.decode", "must be a list"),
    ("cpu.forward:", "cpu.sideways:", 10, "kernels.cpu.sideways", "cpu has cpu.forward"),
    ("cpu.forward:", "os.system:", 10, "kernels.os.system", "must be one of"),
    ("cpu.forward:", "reference.forward:", 10, "kernels.reference.forward", "none that can"),
    ("min: 64,", "min: 640,", 11, "kernels.cpu.forward[0].when.head_dim", "min 640 is more"),
    ("min: 64,", "least: 64,", 11, "kernels.cpu.forward[0].when.head_dim.least", "min, max"),
    ("causal: true", "causal: 1", 11, "kernels.cpu.forward[0].when.causal", "boolean"),
    ("{block_m: 32,", "{block_m: 31,", 12, "kernels.cpu.forward[0].use.block_m", "16, 32, 64"),
    ("{block_m: 32,", "{warps: 32,", 12, "kernels.cpu.forward[0].use.warps", "block_m, block_n"),
    ("{block_m: 32,", "{block_m: -1,", 12, "kernels.cpu.forward[0].use.block_m", "or equal to 0"),
    ("    - use: {block_m: 64}\n", "", 11, "kernels.cpu.forward[0]", "must have no `when`"),
    ("    - when:", "    - use: {}\n    - when:", 11, "kernels.cpu.forward[0]", "only the last"),
    ("backend: cpu", "backend: tpu", 15, "measured[0].backend", "must be one of"),
    ("operation: forward", "operation: sideways", 16, "measured[0].operation", "'forward'"),
    ("microseconds: 12.5", "microseconds: -1", 18, "measured[0].microseconds", "greater than 0"),
    ("config: {block_m: 64}", "config: {block_m: 9}", 19, "measured[0].config.block_m", "found 9"),
    (
        "    - use: {block_m: 64}",
        "    - use: {block_m: 64}\n      basis: felt",
        14,
        "kernels.cpu.forward[1].basis",
        "'tuned' or 'derived'",
    ),
    ('torch: "2.13"', "torch: 2.13", 20, "measured[0].versions.torch", "string"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "says"), REFUSED)
def test_a_refusal_names_file_line_key_and_what_is_legal(
    write: Write, whole: str, old: str, new: str, line: int, key: str, says: str
) -> None:
    assert old in whole
    file = write(whole.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        profiles.load_file(file)
    error = caught.value
    assert (error.file, error.line, error.key) == (str(file), line, key)
    assert says in error.problem
    assert str(error) == f"{file}:{line}: {key}: {error.problem}"


@pytest.mark.parametrize(
    ("raw", "line", "says"),
    [
        (b"", 1, "is empty"),
        (b"# nothing\n", 1, "is empty"),
        (b"- a list\n", 1, "must be a mapping"),
        (b"text\n", 1, "must be a mapping"),
        (b"a: 1\nb: \xff\xfe\n", 2, "not UTF-8"),
        (b"a: 1\nb: \x00\n", 2, "control character"),
        (b"a: 1\nb: [1, 2\n", 3, "not YAML"),
        (b"a: 1\n\tb: 2\n", 2, "not YAML"),
        (b"a: 1\n---\nb: 2\n", 2, "only one"),
        (b"a: " + b"[" * 5000, 1, "nested deeper"),
        (b"a:\n" + b"".join(b" " * n + b"- \n" for n in range(1, 40)), 17, "nested deeper"),
        (b"a: " + b"9" * 50_000, 1, ": a: "),
        (b"<<: {a: 1}\n", 1, "ambiguous"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", 1, "anchors"),
    ],
)
def test_what_is_no_profile_at_all(raw: bytes, line: int, says: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(raw)
    with pytest.raises(ProfileError) as caught:
        profiles.load_file(file)
    assert caught.value.line == line
    assert says in str(caught.value)


def test_a_large_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"#" * 10_000_000)
    monkeypatch.setattr(profile_yaml, "parse", None)
    with pytest.raises(ProfileError, match="has 10000000 bytes"):
        profiles.load_file(file)


@pytest.mark.parametrize(
    "name",
    ["../secrets", "/etc/passwd", "x86-avx2/../x86-avx2", "", ".", "x86-avx2\x00", "X86-AVX2"],
)
def test_a_name_leads_nowhere_else(name: str) -> None:
    for look in (profiles.by_name, profiles.path, profiles.resolve):
        with pytest.raises(ProfileError, match="not a shipped profile"):
            look(name)


def test_a_path_must_lead_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, says in (
        ("folder.yaml", "Is a directory"),
        ("pipe.yaml", "not a regular file"),
        ("absent.yaml", "No such file"),
    ):
        with pytest.raises(ProfileError, match=says):
            profiles.resolve(str(tmp_path / name))
    with pytest.raises(ProfileError, match="not a file name"):
        profiles.resolve("null\x00.yaml")


def test_sizes_of_a_backend_that_cant_be_imported_are_left_alone(
    write: Write, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise BackendUnavailableError(name, "no module")

    monkeypatch.setattr(registry, "load", missing)
    file = write(whole.replace("block_m: 32", "warps: 3"))
    assert profiles.load_file(file).name == "mine"
