"""A YAML reader for files from anywhere: plain mappings, lists and scalars, nothing else.

Refused: tags, anchors and aliases (a 200-byte file can expand to megabytes), duplicate keys (YAML
keeps the last one silently), keys that aren't strings, and scalars that YAML 1.1 reads as something
else than they look like (`on`, `no`, `1:30`, `010`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from portattn.errors import ProfileError

MAX_BYTES = 64 * 1024
_MAX_DEPTH = 16
_SURPRISES = re.compile(
    r"(?i:y|n|yes|no|on|off)|[-+]?0[0-9_]+|[-+]?0[bBoOxX][0-9a-fA-F_]+"
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+]?[0-9]+_[0-9_]*|=|<<"
)

Path_ = tuple[str | int, ...]


@dataclass
class Document:
    """Plain values and the line on which each of them stands."""

    file: str
    values: Any
    lines: dict[Path_, int] = field(default_factory=dict)

    def error(self, path: Path_, problem: str) -> ProfileError:
        """A ProfileError at the nearest place that has a line."""
        near = path
        while near and near not in self.lines:
            near = near[:-1]
        return ProfileError(self.file, problem, line=self.lines.get(near, 1), key=dotted(path))


def dotted(path: Path_) -> str | None:
    """("kernels", "cpu.forward", 0, "use") as kernels.cpu.forward[0].use."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None


def read(path: Path, shown: str | None = None) -> Document:
    """Read and parse a file. Raises ProfileError with file, line and key."""
    file = shown or str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(file, f"can't be read: {error.strerror}") from error
    return parse(raw, file)


def parse(raw: bytes, file: str) -> Document:
    """Parse bytes. Raises ProfileError with file, line and key."""
    if len(raw) > MAX_BYTES:
        raise ProfileError(file, f"is larger than the {MAX_BYTES // 1024} KiB a profile may have")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ProfileError(file, "is not UTF-8", line=line) from error
    try:
        _refuse_events(text, file)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = 1 if mark is None else mark.line + 1
        raise ProfileError(file, f"is not YAML: {error.problem}", line=line) from error
    except yaml.YAMLError as error:
        raise ProfileError(file, f"is not YAML: {error}", line=1) from error
    document = Document(file, None)
    if root is None:
        raise ProfileError(file, "is empty", line=1)
    document.values = _value(root, (), document)
    return document


def _refuse_events(text: str, file: str) -> None:
    """Refuse what a profile never needs, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ProfileError(file, "anchors and aliases are not allowed", line=line)
        if getattr(event, "tag", None):
            raise ProfileError(file, f"tags are not allowed, found {event.tag}", line=line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ProfileError(file, f"is nested deeper than {_MAX_DEPTH}", line=line)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _value(node: yaml.Node, path: Path_, document: Document) -> Any:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), document) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    return _scalar(node, path, document)


def _mapping(node: yaml.MappingNode, path: Path_, document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ProfileError(document.file, "a key must be a name", line=line, key=dotted(path))
        key = _scalar(key_node, path, document)
        if not isinstance(key, str):
            problem = f"a key must be a name, found {key_node.value}"
            raise ProfileError(document.file, problem, line=line, key=dotted(path))
        if key in values:
            problem = "is given twice in the same mapping"
            raise ProfileError(document.file, problem, line=line, key=dotted((*path, key)))
        document.lines[(*path, key)] = line
        values[key] = _value(value_node, (*path, key), document)
    return values


def _scalar(node: yaml.ScalarNode, path: Path_, document: Document) -> Any:
    if node.style in ("'", '"'):
        return node.value
    if _SURPRISES.fullmatch(node.value):
        problem = f"{node.value} is ambiguous in YAML: write true, false, a plain number or quotes"
        raise ProfileError(
            document.file, problem, line=node.start_mark.line + 1, key=dotted(path)
        )
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)  # type: ignore[no-untyped-call]
    except (ValueError, OverflowError) as error:
        raise document.error(path, f"{node.value} can't be read: {error}") from error
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]
