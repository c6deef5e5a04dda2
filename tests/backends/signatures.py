"""Signatures of an installed library, read from its source without importing it."""

from __future__ import annotations

import ast
import inspect
from importlib import metadata
from pathlib import Path


def source(package: str, file: str) -> str | None:
    """The text of a package's file, None where the package isn't installed."""
    try:
        place = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        return None
    return place.read_text(encoding="utf-8") if place.exists() else None


def signature(text: str, name: str) -> inspect.Signature:
    """The signature of a function, or of a method named Class.method; its last definition counts.

    Earlier ones are overloads.
    """
    owner, _, function = name.rpartition(".")
    body: list[ast.stmt] = ast.parse(text).body
    if owner:
        (klass,) = (n for n in body if isinstance(n, ast.ClassDef) and n.name == owner)
        body = klass.body
    found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == function]
    if not found:
        raise LookupError(f"there is no {name}")
    return _without_values(found[-1].args)


def _without_values(arguments: ast.arguments) -> inspect.Signature:
    kinds = inspect.Parameter
    plain = [*arguments.posonlyargs, *arguments.args]
    required = len(plain) - len(arguments.defaults)
    parameters = [
        kinds(
            one.arg,
            kinds.POSITIONAL_OR_KEYWORD,
            default=kinds.empty if index < required else None,
        )
        for index, one in enumerate(plain)
    ]
    if arguments.vararg is not None:
        parameters.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(
            kinds(one.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None)
        )
    if arguments.kwarg is not None:
        parameters.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(parameters)
