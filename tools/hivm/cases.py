"""The sizes each compiled variant is run at: every loop, every buffer reused, no round length.

The compiler keeps four blocks of scores in flight, so six whole blocks of keys make each slot be
written twice; three masked blocks follow them, the last one not full.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.hivm.attention import Case
from tools.hivm.parser import Module, parse

WHOLE = 6


def case_of(chosen: dict[str, Any], seed: int = 0) -> Case:
    """Two tiles of queries with a rest, or two sequences over caches of different lengths."""
    keys, group = chosen["block_n"], chosen.get("GROUP", 1)
    causal, windowed = chosen.get("RIGHT"), chosen.get("LEFT")
    few = chosen["block_m"] < 64
    queries, batch = (20 if few else 70), 1
    if chosen.get("CACHE"):
        queries, batch = (1 if chosen.get("PACKED") else 70), 2
    seen = WHOLE * keys + 271
    return Case(
        chosen, queries, seen + (2 * keys if windowed else 0), heads=group, batch=batch,
        softcap=8.0 if chosen.get("SOFTCAP") else 0.0,
        window=(seen if windowed else -1, 0 if causal else -1), seed=seed,
    )  # fmt: skip


def compiled(folder: Path) -> dict[str, tuple[Module, dict[str, Any]]]:
    """Modules and their constants by name, as tools/ascend/compile_tiled.py left them."""
    found = {}
    for text in sorted(folder.glob("*/module.hivm.opt.mlir")):
        chosen = json.loads((text.parent / "variant.json").read_text())
        found[text.parent.name] = (parse(text.read_text()), chosen)
    return found
