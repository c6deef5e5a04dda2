"""A YAML reader for files from anywhere: plain mappings, lists and scalars, nothing else.

Refused: tags, anchors and aliases (a 200-byte file can expand to megabytes), duplicate keys (YAML
keeps the last one silently), keys that aren't strings, and scalars that YAML 1.1 reads as something
else than they look like (`on`, `no`, `1:30`, `010`). Values are built from the parser's events, so
nothing that isn't asked for here can come out, and every value knows its line.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from portattn.errors import ProfileError

MAX_BYTES = 64 * 1024
_MAX_DEPTH = 16
_SURPRISES = re.compile(
    r"(?i:y|n|yes|no|on|off)|[-+]?0[0-9_]+|[-+]?0[bBoOxX][0-9a-fA-F_]+"
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+]?(?=[^_]*_)\.?[0-9][0-9._]*|=|<<"
)
# libyaml reads a full 64 KiB in milliseconds, the parser in Python takes over a second.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Place = tuple[str | int, ...]
_Event = Any  # yaml.Event, whose attributes depend on its kind


@dataclass
class Document:
    """Plain values and the line on which each of them stands."""

    file: str
    values: Any = None
    lines: dict[Place, int] = field(default_factory=dict)

    def error(self, place: Place, problem: str) -> ProfileError:
        """A ProfileError at the nearest place that has a line."""
        near = place
        while near and near not in self.lines:
            near = near[:-1]
        return ProfileError(self.file, problem, line=self.lines.get(near, 1), key=dotted(place))


def dotted(place: Place) -> str | None:
    """("kernels", "cpu.forward", 0, "use") as kernels.cpu.forward[0].use."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None


def read(path: Path, *, private: bool = False) -> Document:
    """Read and parse a file; a `private` one must be nobody else's to write.

    Raises ProfileError with file, line and key.
    """
    file = str(path)
    try:
        # Opening a pipe would wait for a writer: only O_NONBLOCK opens anything at once.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            _refuse_file(file, status, private)
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(file, f"can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ProfileError(repr(file), f"is not a file name: {error}") from error
    return parse(raw, file)


def _refuse_file(file: str, status: os.stat_result, private: bool) -> None:
    """Refuse what must not even be read; the open file is asked, so it can't be swapped after."""
    if not stat.S_ISREG(status.st_mode):
        raise ProfileError(file, "is not a regular file")
    if status.st_size > MAX_BYTES:
        raise _too_large(file, status.st_size)
    if not private or not hasattr(os, "getuid"):
        return
    if status.st_uid not in (os.getuid(), 0):
        raise ProfileError(file, "belongs to another user, and is refused")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ProfileError(file, "can be written by others, and is refused: chmod go-w it")


def _too_large(file: str, size: int) -> ProfileError:
    return ProfileError(file, f"has {size} bytes; a profile may have {MAX_BYTES}")


def parse(raw: bytes, file: str) -> Document:
    """Parse bytes. Raises ProfileError with file, line and key."""
    if len(raw) > MAX_BYTES:
        raise _too_large(file, len(raw))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ProfileError(file, "is not UTF-8", line=line) from error
    try:
        return _Builder(file, text).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise ProfileError(file, f"is not YAML: {error.problem}", line=line) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ProfileError(file, "holds a control character", line=line) from error


class _Builder:
    """Builds a Document from the parser's events."""

    def __init__(self, file: str, text: str) -> None:
        self._events: Iterator[_Event] = yaml.parse(text, Loader=_LOADER)
        self._document = Document(file)
        self._resolver: Any = yaml.resolver.Resolver()
        self._constructor = yaml.constructor.SafeConstructor()

    def document(self) -> Document:
        """The one document of the stream."""
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise ProfileError(self._document.file, "is empty", line=1)
        self._document.values = self._value(next(self._events), ())
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._error(event, (), "only one YAML document is allowed")
        return self._document

    def _value(self, event: _Event, place: Place) -> Any:
        self._refuse(event, place)
        self._document.lines.setdefault(place, _line(event))
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(place)
        return self._scalar(event, place)

    def _refuse(self, event: _Event, place: Place) -> None:
        """Refuse what a profile never needs, before anything is built from it."""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise self._error(event, place, "anchors and aliases are not allowed")
        if getattr(event, "tag", None):
            raise self._error(event, place, f"tags are not allowed, found {event.tag}")
        if isinstance(event, yaml.CollectionStartEvent) and len(place) >= _MAX_DEPTH:
            raise self._error(event, place, f"is nested deeper than {_MAX_DEPTH}")

    def _sequence(self, place: Place) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, (*place, len(values))))
        return values

    def _mapping(self, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, place)
            inner = (*place, key)
            if key in values:
                raise self._error(event, inner, "is given twice in the same mapping")
            self._document.lines[inner] = _line(event)
            values[key] = self._value(next(self._events), inner)
        return values

    def _key(self, event: _Event, place: Place) -> str:
        self._refuse(event, place)
        if not isinstance(event, yaml.ScalarEvent):
            raise self._error(event, place, "a key must be a name, found a collection")
        key = self._scalar(event, place)
        if not isinstance(key, str):
            raise self._error(event, place, f"a key must be a name, found {_short(event.value)}")
        return key

    def _scalar(self, event: _Event, place: Place) -> Any:
        text = event.value
        if not event.implicit[0]:
            return text  # quoted, or a block of text
        if _SURPRISES.fullmatch(text):
            problem = "is ambiguous in YAML: write true, false, a plain number or quotes"
            raise self._error(event, place, f"{_short(text)} {problem}")
        tag = self._resolver.resolve(yaml.ScalarNode, text, (True, False))
        if tag == "tag:yaml.org,2002:timestamp":
            return text
        try:
            return self._constructor.construct_object(yaml.ScalarNode(tag, text))
        except (ValueError, OverflowError) as error:
            raise self._error(event, place, f"{_short(text)} can't be read: {error}") from error

    def _error(self, event: _Event, place: Place, problem: str) -> ProfileError:
        return ProfileError(self._document.file, problem, line=_line(event), key=dotted(place))


def _line(event: _Event) -> int:
    line: int = event.start_mark.line
    return line + 1


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
