"""SmolLM2-135M on a CPU: tokens a second with portattn and with torch's SDPA, interleaved.

Prefill of a context and then a run of decoded tokens, in turn for each; medians over the rounds.
Every token of both must be the same.

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

PEERS = ("portattn", "sdpa")


def decode(
    network: Any, context: torch.Tensor, tokens: int
) -> tuple[float, list[float], list[int]]:
    """(seconds of the prefill, seconds of each further token, the tokens), greedy."""
    times, chosen = [], []
    with torch.no_grad():
        start = time.perf_counter()
        result = network(input_ids=context, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - start
        for _ in range(tokens):
            token = result.logits[:, -1:].argmax(-1)
            chosen.append(int(token))
            start = time.perf_counter()
            result = network(
                input_ids=token, past_key_values=result.past_key_values, use_cache=True
            )
            times.append(time.perf_counter() - start)
    return prefill, times, chosen


def measure(networks: dict[str, Any], length: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One context length: rates by peer."""
    generator = torch.Generator().manual_seed(length)
    context = torch.randint(1000, 40000, (1, length), generator=generator)
    prefills: dict[str, list[float]] = {peer: [] for peer in networks}
    steps: dict[str, list[float]] = {peer: [] for peer in networks}
    answers: dict[str, list[int]] = {}
    for _ in range(rounds):
        for peer, network in networks.items():
            prefill, times, answers[peer] = decode(network, context, tokens)
            prefills[peer].append(prefill)
            steps[peer] += times
    return {
        "context": length,
        "same_tokens": len({tuple(answer) for answer in answers.values()}) == 1,
        "tokens_per_second": {p: 1 / statistics.median(t) for p, t in steps.items()},
        "prefill_seconds": {p: statistics.median(t) for p, t in prefills.items()},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 8192])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    integration.register()
    networks = {
        peer: models.load_model(dtype=getattr(torch, options.dtype), attn_implementation=peer)[0]
        for peer in PEERS
    }
    rows = []
    for length in options.contexts:
        rows.append(measure(networks, length, options.tokens, options.rounds))
        print(json.dumps(rows[-1]))
    if options.output:
        result = {**record(torch.device("cpu")), "dtype": options.dtype, "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
