"""Whatever a file holds: a valid profile or a ProfileError, and soon."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from portattn.dispatch import profile as profiles
from portattn.dispatch import profile_yaml
from portattn.dispatch.profile_check import checked
from portattn.dispatch.profile_schema import HardwareProfile, Overlay
from portattn.errors import ProfileError

SHIPPED = [profiles.path(name).read_bytes() for name in profiles.names()]
# Other work on the machine must not fail a property; `loads` holds the time that counts.
PATIENT = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


def loads(raw: bytes) -> bool:
    """Whether bytes are a profile; anything but a profile or a ProfileError is a failure."""
    start = time.process_time()
    try:
        profile = checked(profile_yaml.parse(raw, "fuzz.yaml"), HardwareProfile)
    except ProfileError as error:
        assert error.file == "fuzz.yaml"
        assert len(str(error)) < 2000
        if error.line is not None:
            assert 1 <= error.line <= len(raw.decode(errors="replace").splitlines()) + 1
        return False
    finally:
        assert time.process_time() - start < 1.0
    assert profile.preference_for("forward")
    return True


@PATIENT
@given(st.binary(max_size=2000))
@example(b"\xef\xbb\xbfschema: 1")
@example(b"\xff\xfes\x00")
@example(b"%YAML 1.1\n---\n!!map {}")
@example(b"a: \xc2\x85b")
def test_any_bytes(raw: bytes) -> None:
    assert not loads(raw)


@PATIENT
@given(st.text(alphabet="ab1:-?[]{}&*!|>'\"%@`,#~ \n\t.<=_", max_size=300))
def test_any_punctuation(text: str) -> None:
    assert not loads(text.encode())


words = st.sampled_from(
    ["schema", "name", "match", "device", "kernels", "cpu.forward", "use", "when", "min", "int",
     "float32", "tuple", "range", "count", "forward", "reference", "cpu", "tflops", "[key]"]
)  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | words
)
structures: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@PATIENT
@given(st.dictionaries(words, structures, max_size=6))
def test_any_structure(structure: dict[str, Any]) -> None:
    assert not loads(yaml.safe_dump(structure, allow_unicode=True).encode())


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value within a structure is."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    inner = (
        each
        for key, item in pairs
        for each in ([(*place, key)] + (places(item, (*place, key)) if is_nested(item) else []))
    )
    return list(inner)


def is_nested(value: Any) -> bool:
    return isinstance(value, (dict, list))


@PATIENT
@given(st.sampled_from(SHIPPED), st.randoms(use_true_random=False), structures)
def test_a_shipped_profile_with_any_value_replaced(
    raw: bytes, chance: random.Random, value: Any
) -> None:
    structure = yaml.safe_load(raw)
    *path, last = chance.choice(places(structure))
    target = structure
    for part in path:
        target = target[part]
    target[last] = value
    loads(yaml.safe_dump(structure, allow_unicode=True).encode())


@PATIENT
@given(st.sampled_from(SHIPPED), st.data())
def test_a_shipped_profile_with_any_bytes_replaced(raw: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 20)))
    loads(raw[:start] + data.draw(st.binary(max_size=20)) + raw[end:])


@PATIENT
@given(st.dictionaries(words, structures, max_size=6))
def test_any_structure_as_overlay(structure: dict[str, Any]) -> None:
    document = profile_yaml.Document("fuzz.yaml", structure)
    try:
        checked(document, Overlay)
    except ProfileError as error:
        assert error.file == "fuzz.yaml"


FULL = profile_yaml.MAX_BYTES
HEAVY: dict[str, Callable[[int], bytes]] = {
    "list": lambda size: b"a: [" + b"1," * (size // 2 - 4) + b"1]",
    "lines": lambda size: b"-\n" * (size // 2),
    "keys": lambda size: b"".join(b"k%05d: 1\n" % n for n in range(size // 10)),
    "maps in lists": lambda size: b"- a:\n" * (size // 5),
    "unknown backends": lambda size: b"preference: {forward: [" + b"x," * (size // 2 - 20) + b"]}",
    "deep": lambda size: b"[" * size,
    "question marks": lambda size: b"? " * (size // 2),
    "digits": lambda size: b"a: " + b"9" * (size - 3),
    "underscores": lambda size: b"a: " + b"1_" * (size // 2 - 4) + b"x",
    "colons": lambda size: b"a: " + b"1:1" * (size // 3 - 4) + b"x",
    "dots": lambda size: b"a: " + b"1." * (size // 2 - 4) + b"x",
    "escapes": lambda size: b'a: "' + b"\\n" * (size // 2 - 4) + b'"',
    "quote": lambda size: b"a: '" + b"x" * (size - 4),
    "folded": lambda size: b"a: >\n" + b" x\n" * (size // 3 - 3),
    "comments": lambda size: b"#\n" * (size // 2),
    "anchors": lambda size: b"".join(b"- &a%d x\n" % n for n in range(size // 12)),
    "percent": lambda size: b"%" * size,
    "versions": lambda size: b"measured: [{versions: {" + b"a" * (size - 40) + b": 1}}]",
}


@pytest.mark.parametrize("kind", HEAVY)
def test_the_largest_file_takes_less_than_a_second(kind: str) -> None:
    raw = HEAVY[kind](FULL)
    assert 0.9 * FULL < len(raw) <= FULL or kind in ("anchors", "keys")
    assert not loads(raw)


def test_an_overlay_of_many_measurements_takes_less_than_a_second() -> None:
    record = b" - {backend: cpu, operation: forward, when: {head_dim: 64}, microseconds: 1.5}\n"
    raw = b"schema: 1\nname: a\nmeasured:\n" + record * ((FULL - 40) // len(record))
    start = time.process_time()
    checked(profile_yaml.parse(raw, "fuzz.yaml"), Overlay)
    assert time.process_time() - start < 1.0
