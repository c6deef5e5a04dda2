"""Milliseconds per token by context length, from the files of offload_gpu.py.

    python benchmarks/offload_plot.py benchmarks/results/offload-h100.json --out offload-h100.png

One line for each policy and baseline; the model's prediction of the same name is dashed.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

Line = dict[int, float]


def lines(items: list[dict[str, Any]], layers: int, field: str) -> dict[str, Line]:
    """Of each name: milliseconds per token by context. A baseline that was run with fewer layers
    counts as often as they fit: its layers take equally long."""
    found: dict[str, Line] = defaultdict(dict)
    for item in items:
        if "context" in item and "ms" in item and field in item:
            found[item["name"]][item["context"]] = item[field] * layers / item.get("layers", layers)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    made = json.loads(args.file.read_text(encoding="utf-8"))
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    modelled = lines(made["items"], made["layers"], "modelled_ms")
    for name, line in lines(made["items"], made["layers"], "ms").items():
        contexts = sorted(line)
        drawn = axes.plot(contexts, [line[c] for c in contexts], marker="o", label=name)
        ahead = modelled.get(name, {})
        places = sorted(ahead)
        axes.plot(places, [ahead[c] for c in places], "--", color=drawn[0].get_color())
    axes.set(
        xscale="log", yscale="log", xlabel="tokens of context", ylabel="ms per token, attention",
        title=f"{made['device']}, {made['layers']} layers of the 8B shape, {made['date']}",
    )  # fmt: skip
    axes.set_xticks([2**power for power in (17, 18, 19, 20)], ["128K", "256K", "512K", "1M"])
    axes.minorticks_off()
    axes.legend(fontsize="small", title="dashed: modelled")
    figure.tight_layout()
    figure.savefig(args.out, dpi=130)


if __name__ == "__main__":
    main()
