"""Results as a table, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from portattn.cli.bench.run import Result

COLUMNS = ("peer", "median ms", "quartiles ms", "TFLOP/s", "K+V GB/s", "error", "note")


def tables(results: Sequence[Result]) -> dict[str, list[tuple[str, ...]]]:
    """For every case the text cells under COLUMNS; the error is relative to what is allowed."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for result in results:
        found.setdefault(str(result.case), []).append(_row(result))
    return found


def document(results: Sequence[Result], record: Mapping[str, object]) -> dict[str, object]:
    """What is written to a file: the record of the run, then every result."""
    return {**record, "results": [_entry(result) for result in results]}


def plot(results: Sequence[Result], title: str, file: Path) -> None:
    """Draw the rate of every peer over the cases; needs matplotlib."""
    # The object interface: pyplot would look for a display.
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(str(result.case) for result in results))
    peers = list(dict.fromkeys(result.peer for result in results))
    figure = Figure(figsize=(max(6.0, 1.5 * len(cases)), 5.0), layout="constrained")
    axes: Any = figure.subplots()
    width = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        rates = {str(result.case): result.tflops for result in results if result.peer == peer}
        places = [place + index * width for place in range(len(cases))]
        axes.bar(places, [rates.get(case) or 0.0 for case in cases], width, label=peer)
    centre = 0.4 - width / 2
    axes.set_xticks([place + centre for place in range(len(cases))], cases, rotation=30, ha="right")
    axes.set_ylabel("TFLOP/s, median")
    axes.set_title(title)
    axes.legend()
    figure.savefig(file, dpi=150)


def _row(result: Result) -> tuple[str, ...]:
    timing = result.timing
    return (
        result.peer,
        "" if timing is None else f"{timing.median * 1e3:.3f}",
        "" if timing is None else f"{timing.lower * 1e3:.3f} .. {timing.upper * 1e3:.3f}",
        "" if result.tflops is None else f"{result.tflops:.3g}",
        "" if result.kv_gbs is None else f"{result.kv_gbs:.3g}",
        "" if result.error_ratio is None else f"{result.error_ratio:.2f}",
        result.reason or "",
    )


def _entry(result: Result) -> dict[str, object]:
    timing = result.timing
    return {
        "case": asdict(result.case),
        "peer": result.peer,
        "seconds": None if timing is None else asdict(timing),
        "tflops": result.tflops,
        "kv_gbs": result.kv_gbs,
        "error_over_allowed": result.error_ratio,
        "reason": result.reason,
    }
