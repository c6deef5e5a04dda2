"""Every variant compiled for sm_70 and sm_75 without a GPU, against a committed table.

    PORTATTN_CUDA12=FOLDER python -m tools.volta.report             compare
    PORTATTN_CUDA12=FOLDER python -m tools.volta.report --write     write the table

The table is benchmarks/results/volta-resources.json. What must hold whatever the table says: at
most 255 registers, shared memory within the chip's, as many products as the multiplication has and,
without softcap, alibi or bias, no local memory in the loops of head dims 64, 96 and 128.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from portattn.backends.volta.variants import SHARED_KIB, Variant
from tools.volta import model, nvrtc, sass, sets

TABLE = Path(__file__).resolve().parents[2] / "benchmarks/results/volta-resources.json"
_MULTIPROCESSOR_KIB = {"sm_70": 96, "sm_75": 64}
_REGISTERS = 65536


def row(variant: Variant, shared: int, family: str) -> dict[str, Any]:
    """What one kernel uses on one chip."""
    text = nvrtc.ptx(variant.source, family.replace("sm", "compute"))
    built = nvrtc.assemble(text, family, variant.kernel)
    loop = sass.main_loop(built.sass)
    allocated = -(-built.registers // 8) * 8 * variant.threads
    blocks = min(_REGISTERS // allocated, _MULTIPROCESSOR_KIB[family] * 1024 // max(shared, 1), 16)
    found: dict[str, Any] = {
        "registers": built.registers,
        "spill_bytes": built.spill_bytes,
        "loop_local": loop["LDL"] + loop["STL"],
        "shared": shared,
        "blocks": blocks,
        "hmma": loop["HMMA"],
        "shuffles": loop["SHFL"],
        "lds": loop["LDS"] + loop["LDSM"],
        "sts": loop["STS"],
    }
    if variant.kernel == "forward" and family == "sm_70":
        flops = 4 * 64 * variant["ROW_TILES"] * variant["BLOCK_N"] * variant["D"]
        ours = model.counted(sass.steady(built.sass), flops)
        found["modelled memory share"] = round(ours.memory_share(), 2)
        for peer, loop_of in (
            ("", ours),
            (" 16 rows, P in shared", model.peer(ours, 16, variant["D"], 64, True)),
            (" 4x1", model.peer(ours, 32, variant["D"], 64, False)),
        ):
            bracket = (loop_of.alone(), loop_of.hidden())
            shown = (f"{loop_of.teraflops(cycles):.0f}" for cycles in bracket)
            found[f"modelled TFLOP/s{peer}"] = " to ".join(shown)
    return found


def wrong(variant: Variant, found: dict[str, Any], family: str) -> list[str]:
    """Which of the conditions a row breaks."""
    problems = []
    if found["registers"] > 255:
        problems.append("more than 255 registers")
    if found["shared"] > SHARED_KIB[family] * 1024 or not found["blocks"]:
        problems.append("doesn't fit a multiprocessor")
    if variant.kernel == "join":
        return problems
    plain = variant["FUSED"] and variant["ELEMENT"] == 0 and 64 <= variant["D"] <= 128
    if plain and found["loop_local"]:
        problems.append("local memory in the loop")
    if found["hmma"] != products(variant) * (1 if variant.turing else 4):
        problems.append(f"{found['hmma']} products in the loop")
    return problems


def products(variant: Variant) -> int:
    """mma instructions of a warp for one tile of keys."""
    if variant.kernel == "decode":
        return variant["D"] // 2  # 8 rows by 32 keys, twice
    if variant.kernel.startswith("gradient"):
        pairs = 3 if variant.kernel == "gradient_q" else 4
        return pairs * 16 * variant["BLOCK_N"] * variant["D"] // 1024
    return 2 * 16 * variant["ROW_TILES"] * variant["BLOCK_N"] * variant["D"] // 1024


def name(variant: Variant, family: str) -> str:
    constants = dict(variant.constants)
    shown = [f"D{constants.pop('D')}", ("float16", "bfloat16")[constants.pop("ELEMENT")]]
    if "ROW_TILES" in constants:
        shown.append(f"{64 * constants.pop('ROW_TILES')}x{constants.pop('BLOCK_N')}")
    if "BLOCK_N" in constants:
        shown.append(f"64x{constants.pop('BLOCK_N')}")
    for usual in ("ALIGNED", "FUSED", "BLOCKS"):
        constants.pop(usual)
    shown += [key.lower() for key, value in constants.items() if value]
    return f"{family} {variant.kernel} {' '.join(shown)}"


def main() -> int:
    """Compare or write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the table")
    options = parser.parse_args()
    jobs = [
        (variant, shared, family)
        for family, turing in (("sm_70", False), ("sm_75", True))
        for variant, shared in sets.common(turing).items()
    ]
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda job: row(*job), jobs))
    found, faults = {}, []
    for (variant, _, family), used in zip(jobs, rows, strict=True):
        label = name(variant, family)
        found[label] = used
        faults += [f"{label}: {fault}" for fault in wrong(variant, used, family)]
    if options.write:
        TABLE.write_text(json.dumps({"nvrtc": "12.9", "kernels": found}, indent=1) + "\n")
    table = json.loads(TABLE.read_text())["kernels"]
    for label in sorted({*found, *table}):
        if found.get(label) != table.get(label):
            faults.append(f"{label}: {found.get(label)}, the table has {table.get(label)}")
    print(as_text(found))
    print(*faults, sep="\n")
    return 1 if faults else 0


def as_text(found: dict[str, dict[str, Any]]) -> str:
    """The rows as a table for people."""
    columns = list(dict.fromkeys(key for used in found.values() for key in used))
    lines = ["| kernel | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for label, used in found.items():
        cells = (str(used.get(column, "")) for column in columns)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
