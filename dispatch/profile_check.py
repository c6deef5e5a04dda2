"""From a document to a profile: the schema, then what the registered backends declare.

Every refusal is a ProfileError with the file, the line, the key, what was found and what is legal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from portattn.dispatch import registry
from portattn.dispatch.profile_schema import HardwareProfile, Measurement, Overlay, Rule
from portattn.dispatch.profile_yaml import Document, Place
from portattn.errors import BackendUnavailableError, ProfileError

_Checked = TypeVar("_Checked", HardwareProfile, Overlay)
_Parameters = Mapping[str, tuple[int, ...]]


def checked(document: Document, model: type[_Checked]) -> _Checked:
    """The document as a model. Raises ProfileError."""
    if not isinstance(document.values, dict):
        raise document.error((), "must be a mapping of keys to values")
    try:
        profile = model.model_validate(document.values)
    except ValidationError as error:
        raise _schema_error(document, error, model) from error
    _check_backends(profile, document)
    return profile


def _schema_error(
    document: Document, error: ValidationError, model: type[BaseModel]
) -> ProfileError:
    # A value that fits no member of a union fails once for each: the deepest place is nearest.
    # A misspelt key is also a missing one: what was written says more.
    def rank(item: Any) -> tuple[int, bool]:
        return len(_place(document.values, item)), item["type"] == "extra_forbidden"

    first = max(error.errors(), key=rank)
    return document.error(_place(document.values, first), _explain(first, model))


def _place(values: Any, error: Any) -> Place:
    """The error's location without what pydantic adds to it: union members' names and '[key]'."""
    place: list[str | int] = []
    for part in error["loc"]:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            if error["type"] != "missing" or part != error["loc"][-1]:
                continue
        place.append(part)
    return tuple(place)


def _explain(error: Any, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        known: Any = model
        for part in error["loc"][:-1]:
            known = _model_behind(known, part)
        return f"unknown key; legal are {_keys(known)}" if known else "unknown key"
    if error["type"] == "missing":
        return "is missing"
    problem = _WORDS.get(error["type"]) or _in_plain_words(error["msg"])
    found = error.get("input")
    if error["type"] == "value_error" or isinstance(found, (dict, list)):
        return problem
    shown = repr(found)
    return f"{problem}, found {shown if len(shown) < 80 else shown[:77] + '...'}"


_WORDS = {
    "model_type": "must be a mapping of keys to values",
    "mapping_type": "must be a mapping of keys to values",
    "tuple_type": "must be a list",
}


def _in_plain_words(message: str) -> str:
    """Pydantic's message in the words of the file."""
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("Tuple should", "must").replace(" after validation", "")
    return f"{message[0].lower()}{message[1:]}"


def _keys(model: type[BaseModel]) -> str:
    return ", ".join(field.alias or name for name, field in model.model_fields.items())


def _model_behind(model: Any, part: str | int) -> Any:
    """The model of a field's values, through lists, mappings and unions."""
    fields = getattr(model, "model_fields", {})
    if part not in fields:
        return model  # an index, a mapping's key or a union member's name
    pending = [fields[part].annotation]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        pending.extend(getattr(kind, "__args__", ()))
    return None


def _check_backends(profile: HardwareProfile | Overlay, document: Document) -> None:
    for operation, names in profile.preference.items():
        _check_preference(names, ("preference", operation), document)
    for kernel, rules in profile.kernels.items():
        _check_rules(kernel, rules, ("kernels", kernel), document)
    for index, record in enumerate(profile.measured):
        _check_measurement(record, ("measured", index), document)


def _check_preference(names: Sequence[str], place: Place, document: Document) -> None:
    for index, name in enumerate(names):
        _check_name(name, (*place, index), document)
        if name in names[:index]:
            raise document.error((*place, index), f"{name} is named twice")


def _check_rules(kernel: str, rules: Sequence[Rule], place: Place, document: Document) -> None:
    backend, _, operation = kernel.partition(".")
    parameters = _parameters(backend, operation, place, document)
    _check_order(rules, place, document)
    for index, rule in enumerate(rules):
        _check_sizes(rule.use, parameters, (*place, index, "use"), document)


def _check_measurement(record: Measurement, place: Place, document: Document) -> None:
    _check_name(record.backend, (*place, "backend"), document)
    if record.config:
        place = (*place, "config")
        parameters = _parameters(record.backend, record.operation, place, document)
        _check_sizes(record.config, parameters, place, document)


def _check_name(name: str, place: Place, document: Document) -> None:
    if name not in registry.names():
        legal = ", ".join(registry.names())
        raise document.error(place, f"must be one of {legal}, found {name!r}")


def _check_order(rules: Sequence[Rule], place: Place, document: Document) -> None:
    """A rule for every problem can only stand last, and must, or some problems have none."""
    for index, rule in enumerate(rules):
        last = index == len(rules) - 1
        if rule.when is None and not last:
            raise document.error((*place, index), "only the last rule may lack `when`")
        if rule.when is not None and last:
            raise document.error((*place, index), "the last rule must have no `when`")


def _parameters(
    backend: str, operation: str, place: Place, document: Document
) -> _Parameters | None:
    """A kernel's parameters and their legal values, None where its backend can't be imported."""
    _check_name(backend, place, document)
    try:
        kernels = registry.load(backend).capability.kernels
    except BackendUnavailableError:
        return None  # it runs nothing here, so no size can reach it
    if operation not in kernels:
        legal = ", ".join(f"{backend}.{name}" for name in kernels)
        has = f"has {legal}" if legal else "has none that can be tuned"
        raise document.error(place, f"{backend}.{operation} is not a kernel; {backend} {has}")
    return kernels[operation]


def _check_sizes(
    sizes: Mapping[str, int], parameters: _Parameters | None, place: Place, document: Document
) -> None:
    if parameters is None:
        return
    for name, value in sizes.items():
        legal = parameters.get(name)
        if legal is None:
            names = ", ".join(parameters)
            raise document.error((*place, name), f"unknown parameter; legal are {names}")
        if value not in legal:
            values = ", ".join(map(str, legal))
            raise document.error((*place, name), f"must be one of {values}, found {value}")
