"""Results as a picture: a panel for each family of cases, a line for each peer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from portattn.cli.bench.run import Result

_COLUMNS = 3


def plot(results: Sequence[Result], title: str, file: Path) -> None:
    """Draw the rate of every peer over batch and length; needs matplotlib."""
    # The object interface: pyplot would look for a display.
    from matplotlib.figure import Figure

    families = list(dict.fromkeys(result.case.family for result in results))
    columns = min(_COLUMNS, len(families))
    rows = math.ceil(len(families) / columns)
    figure = Figure(figsize=(6.0 * columns, 4.2 * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    colours = {
        peer: f"C{index % 10}"
        for index, peer in enumerate(
            dict.fromkeys(result.peer for result in results if result.timing is not None)
        )
    }
    for index, axes in enumerate(panels.flat):
        if index < len(families):
            here = [result for result in results if result.case.family == families[index]]
            _panel(axes, families[index], here, colours)
        else:
            axes.set_visible(False)
    figure.suptitle(title)
    figure.savefig(file, dpi=120)


def _panel(axes: Any, family: str, results: Sequence[Result], colours: dict[str, str]) -> None:
    sizes = list(dict.fromkeys(result.case.size for result in results))
    for peer, colour in colours.items():
        rates = {result.case.size: _rate(result) for result in results if result.peer == peer}
        line = [rates.get(size, math.nan) for size in sizes]
        if not all(math.isnan(rate) for rate in line):
            marker = "o" if peer.startswith("portattn") else "s"
            style = "-" if peer.startswith("portattn") else "--"
            axes.plot(sizes, line, marker=marker, linestyle=style, color=colour, label=peer)
    axes.set_title(family, fontsize=10)
    axes.set_ylabel("K+V TB/s, median" if _by_bytes(results[0]) else "TFLOP/s, median")
    axes.set_ylim(bottom=0.0, top=1.08 * axes.get_ylim()[1])
    axes.tick_params(axis="x", labelrotation=20)
    if axes.lines:
        axes.legend(fontsize=7)


def _by_bytes(result: Result) -> bool:
    """A step of few queries is bound by reading the cache, others by arithmetic."""
    return result.case.operation == "decode" and result.case.queries <= 16


def _rate(result: Result) -> float:
    rate = result.tflops
    if _by_bytes(result) and result.kv_gbs is not None:
        rate = result.kv_gbs / 1e3
    return math.nan if rate is None else rate
