"""What the planner says of many devices: modelled, from data sheets and stated shares of them.

    python benchmarks/parallel_plan.py > benchmarks/results/parallel-plan.json

Beside each prefill stands what playing the same schedule event by event gives.
"""

from __future__ import annotations

import json
import sys

from portattn.offload.planner import SHAPES
from portattn.parallel import planner
from portattn.parallel.layout import Layout
from portattn.parallel.simulate import simulate

K, M = 2**10, 2**20
# Model, devices, tp and contexts; what is left of the devices is cp.
PLANS = [
    ("llama-3-70b", "8xv100-32", 8, (32 * K, 128 * K, 256 * K, 512 * K)),
    ("llama-3-8b", "8xv100-32", 8, (256 * K, 1 * M, 2 * M)),
    ("llama-3-8b", "2xh100", 1, (64 * K, 128 * K, 512 * K)),
    ("llama-3-70b", "8xh100", 8, (128 * K, 256 * K, 1 * M)),
    ("llama-3-70b", "8xh200", 8, (1 * M, 2 * M)),
    *(
        ("llama-3-70b", f"{count}x{device}", 8, (256 * K, 1 * M, 4 * M, 10 * M))
        for device in ("v100-32", "a100", "h100", "b200")
        for count in (64, 256, 1024)
    ),
]
_LAYERS = 2


def main() -> None:
    rows = []
    for model, devices, tp, contexts in PLANS:
        for context in contexts:
            made = planner.plan(SHAPES[model], planner.cluster(devices), context, tp=tp)
            row = made.as_dict()
            if made.prefill and made.layer:
                layout = Layout((context,), (context,), made.cp)
                played = simulate(made.layer, layout, _LAYERS) * made.shape.layers / _LAYERS
                row["simulated_prefill_s"] = played
                row["formula_over_simulated"] = made.prefill.total / played
            rows.append(row)
    command = f"python {' '.join(sys.argv)} > benchmarks/results/parallel-plan.json"
    print(json.dumps({"command": command, "kind": "modelled", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
