"""SmolLM2-135M on a CPU: tokens a second with portattn and with torch's SDPA, interleaved.

Each peer reads the context once; then every token is decoded by each peer in turn, in an order that
rotates, over the same weights in memory. Medians; every token of all must be the same.

portattn    as `portattn generate` runs it: its attention, and its cache that appends in place
sdpa        transformers' attention and cache
attention   portattn's attention with transformers' cache
cache       transformers' attention with portattn's cache

    python benchmarks/generate_cpu.py [--contexts 128 8192] [--output benchmarks/results/x.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from portattn.cli.environment import record
from portattn.integrations import models
from portattn.integrations import transformers as integration

# The attention function, and whether the cache is portattn's.
PEERS = {
    "portattn": ("portattn", True),
    "sdpa": ("sdpa", False),
    "attention": ("portattn", False),
    "cache": ("sdpa", True),
}


class Generation:
    """One peer's greedy generation, and how long each of its steps took."""

    def __init__(self, network: Any, grows: bool) -> None:
        from portattn.integrations.transformers.growing_cache import GrowingCache

        self.network = network
        self.cache = GrowingCache(network.config) if grows else None
        self.times: list[float] = []
        self.chosen: list[int] = []

    def step(self, tokens: torch.Tensor) -> None:
        """Read tokens [1, n] and choose the next."""
        start = time.perf_counter()
        result = self.network(
            input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.times.append(time.perf_counter() - start)
        self.cache = result.past_key_values
        self.chosen.append(int(result.logits[0, -1].argmax()))


def measure(networks: dict[str, Any], length: int, tokens: int, peers: list[str]) -> dict[str, Any]:
    """One context length: rates by peer, and the median of their ratios step by step."""
    generator = torch.Generator().manual_seed(length)
    context = torch.randint(1000, 40000, (1, length), generator=generator)
    runs = {name: Generation(networks[PEERS[name][0]], PEERS[name][1]) for name in peers}
    with torch.no_grad():
        for run in runs.values():
            run.step(context)
        for number in range(tokens):
            turn = number % len(peers)
            for name in peers[turn:] + peers[:turn]:
                runs[name].step(torch.tensor([[runs[name].chosen[-1]]]))
    times = {name: run.times[1:] for name, run in runs.items()}
    ratios = {
        f"of_{name}": statistics.median(
            other / own for other, own in zip(times[name], times["portattn"], strict=True)
        )
        for name in peers
        if name != "portattn"
    }
    return {
        "context": length,
        "same_tokens": len({tuple(run.chosen) for run in runs.values()}) == 1,
        "tokens_per_second": {name: 1 / statistics.median(t) for name, t in times.items()},
        "prefill_seconds": {name: run.times[0] for name, run in runs.items()},
        **ratios,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 8192])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", choices=[*PEERS], nargs="+", default=[*PEERS])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    integration.register()
    networks = {
        name: models.load_model(dtype=getattr(torch, options.dtype), attn_implementation=name)[0]
        for name in ("portattn", "sdpa")
    }
    # Two copies of the weights need not lie equally well in memory.
    networks["sdpa"].load_state_dict(networks["portattn"].state_dict(), assign=True)
    networks["sdpa"].tie_weights()
    rows = []
    for length in options.contexts:
        rows.append(measure(networks, length, options.tokens, options.peers))
        print(json.dumps(rows[-1]), flush=True)
    if options.output:
        about = {**record(torch.device("cpu")), "dtype": options.dtype, "threads": options.threads}
        text = json.dumps({**about, "rows": rows}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
