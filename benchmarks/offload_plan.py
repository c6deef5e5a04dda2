"""What the planner says of machines that aren't here: modelled, from data sheets and stated rates.

    python benchmarks/offload_plan.py > benchmarks/results/offload-plan.json

The hosts' read rates and memory are assumptions, written beside each result.
"""

from __future__ import annotations

import json

from portattn.dispatch import profile as profiles
from portattn.offload import machine, planner
from portattn.offload.planner import SHAPES

# Profile: what one server with up to 8 of them is taken to have, 1e9 bytes/s and GiB.
HOSTS = {
    "nvidia-v100-16": (100.0, 768),
    "nvidia-v100": (100.0, 768),
    "nvidia-h100": (250.0, 1024),
    "nvidia-h200": (250.0, 1024),
}
CONTEXTS = [2**power for power in range(17, 23)]


def main() -> None:
    rows = []
    for name, (host_gbs, host_gib) in HOSTS.items():
        there = machine.of_profile(
            profiles.by_name(name), host_gbs=host_gbs, host_bytes=host_gib * 2**30
        )
        for model, shape in SHAPES.items():
            for tp in (1, 2, 4, 8):
                for context in CONTEXTS:
                    chosen = planner.plan(shape, there, context, tp=tp).as_dict()
                    streamed = planner.plan(shape, there, context, tp=tp, policy="stream")
                    rows.append(
                        {
                            **chosen,
                            "model": model,
                            "tp": tp,
                            "host_gbs": host_gbs,
                            "host_gib": host_gib,
                            "stream_ms": None if streamed.seconds is None else
                            streamed.seconds * 1e3,
                        }
                    )  # fmt: skip
    print(json.dumps({"kind": "modelled", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
