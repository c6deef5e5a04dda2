"""Writes what was measured into the user's overlay of a profile: whole, or not at all."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from portattn.dispatch import profile as profiles
from portattn.dispatch import profile_yaml
from portattn.dispatch.profile_schema import HardwareProfile, When
from portattn.tuning import journal

_HEADER = "# Measured by `portattn tune` on this device; it rewrites this file whole.\n"

# Older than any write takes: what a process left that was killed at it.
_ABANDONED_SECONDS = 3600

Rules = Mapping[str, Sequence[Mapping[str, Any]]]


def update(
    profile: HardwareProfile,
    *,
    rules: Rules | None = None,
    measured: Iterable[Mapping[str, Any]] = (),
    device: Mapping[str, Any] | None = None,
    links: Mapping[str, Any] | None = None,
) -> Path:
    """Merge rules, measured times and facts into the overlay of a profile; the overlay's path.

    A rule or time takes the place of one with the same conditions, and rules stand before the
    profile's own. The new file is read back and checked before it takes the old one's place, by a
    rename: a reader, or a crash, meets the old file or the new one. Raises ProfileError.
    """
    file = Path(os.path.realpath(profiles.overlay_path(profile.name)))
    values = _present(file, profile)
    for kernel, tuned in (rules or {}).items():
        kernels = values.setdefault("kernels", {})
        kernels[kernel] = _merged_rules(tuned, kernels.get(kernel), profile, kernel)
    times = [dict(record) for record in measured]
    if times:
        values["measured"] = times + _without(values.get("measured", []), times)
    for part, facts in (("device", device), ("links", links)):
        if facts:
            values[part] = _merged_facts(values.get(part, {}), facts)
    _replace(file, _HEADER + _dumped(values), profile)
    return file


def conditions(when: When) -> dict[str, Any]:
    """Conditions as a file says them."""
    return when.model_dump(exclude_unset=True, mode="json")


def _present(file: Path, profile: HardwareProfile) -> dict[str, Any]:
    """The overlay as it is; a copy of one that a person wrote is kept beside the journal."""
    if not file.exists():
        return {"schema": 1, "name": profile.name}
    profiles.overlay(profile, file)  # an invalid one is the user's to correct
    text = file.read_text(encoding="utf-8")
    if not text.startswith(_HEADER):
        copy = journal.path(profile.name).with_suffix(".before.yaml")
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        copy.write_text(text, encoding="utf-8")
    values: dict[str, Any] = profile_yaml.read(file, private=True).values
    return values


def _merged_rules(
    tuned: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]] | None,
    profile: HardwareProfile,
    kernel: str,
) -> list[dict[str, Any]]:
    """Tuned rules, then what was there: the overlay's, else the profile's, else the defaults."""
    if before is None:
        before = [
            rule.model_dump(exclude_unset=True, exclude_none=True, mode="json")
            for rule in profile.kernels.get(kernel, ())
        ]
    taken = [rule["when"] for rule in tuned]
    kept = [dict(rule) for rule in before if rule.get("when") not in taken]
    if not kept or "when" in kept[-1]:
        kept.append({"use": {}})
    return [*map(dict, tuned), *kept]


def _without(
    old: Iterable[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The old times whose place no new one takes: same backend, operation and conditions."""
    names = ("backend", "operation", "when")
    taken = [[record[name] for name in names] for record in new]
    return [dict(record) for record in old if [record[name] for name in names] not in taken]


def _merged_facts(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**old, **new}
    if "tflops" in old and "tflops" in new:
        merged["tflops"] = {**old["tflops"], **new["tflops"]}
    return merged


class _Dumper(yaml.SafeDumper):
    """Without anchors, which profiles may not have."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dumped(values: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        width=100,
        allow_unicode=True,
        default_flow_style=None,  # the innermost mappings on one line, as people write them
    )
    return text


def _replace(file: Path, text: str, profile: HardwareProfile) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in file.parent.glob(f".{file.name}.*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            left.unlink(missing_ok=True)
    # Private from the start; the leading dot keeps `portattn doctor` from reading a leftover.
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        profiles.overlay(profile, Path(name))
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename last; Windows can't open folders, and does without."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
