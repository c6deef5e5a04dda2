"""Decoding on a CPU: the compiled kernel, torch's SDPA and a plain read of the same bytes.

Every round runs each peer once, in turn, on another cache than the round before; the peers of one
case are comparable, absolute rates are those of a machine at one time.

read       the library's own threads read K and V and do nothing else
portattn   the whole call, dispatch included, over a cache stored head-major
packed     torch's SDPA with a group's heads packed into the rows of one
sdpa       torch's SDPA with enable_gqa
dense      beside pages (where portattn reads those): the same memory as one cache, and
varlen     as packed keys; what of_dense and of_varlen lack to 1 is what pages cost

    python benchmarks/cpu_decode.py [--output benchmarks/results/cpu-decode.json] [--plot x.png]

--limit starts no case after so many seconds; the result says how many are missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from portattn import ops
from portattn.arguments import Options
from portattn.backends.cpu import library
from portattn.cli.environment import record
from portattn.dispatch.backend import AttentionTensors

ROUNDS = 7
# More than caches hold, so that every round reads memory.
ROTATED_BYTES = 400 * 2**20


@dataclass(frozen=True)
class Case:
    """One decode step: `batch` sequences of `keys` keys, one query each."""

    dtype: str
    batch: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    threads: int
    page_size: int = 0

    @property
    def bytes(self) -> int:
        """Of K and V together."""
        size = getattr(torch, self.dtype).itemsize
        return 2 * self.batch * self.keys * self.kv_heads * self.head_dim * size


def cases(counts: Sequence[int]) -> list[Case]:
    """The lengths for the picture, then every other dimension from one middle point."""
    found = [
        Case(dtype, 1, keys, 32, 8, 128, threads)
        for threads in counts
        for dtype in ("bfloat16", "float32")
        for keys in (1024, 4096, 16384, 32768, 131072)
    ]
    for threads in counts:
        found += [
            Case("float16", 1, 32768, 32, 8, 128, threads),
            Case("bfloat16", 1, 32768, 8, 8, 128, threads),
            Case("bfloat16", 1, 32768, 64, 8, 128, threads),
            Case("bfloat16", 1, 65536, 32, 8, 64, threads),
            Case("bfloat16", 1, 16384, 32, 8, 256, threads),
            Case("bfloat16", 16, 2048, 32, 8, 128, threads),
            Case("bfloat16", 64, 1024, 32, 8, 128, threads),
            Case("bfloat16", 1, 32768, 32, 8, 128, threads, page_size=64),
            Case("float32", 1, 32768, 32, 8, 128, threads, page_size=64),
        ]
    return found


def peers(case: Case) -> dict[str, Callable[[int], object]]:
    """Each peer as a function of the number of the cache that it is to read."""
    dtype, batch, keys = getattr(torch, case.dtype), case.batch, case.keys
    copies = max(2, -(-ROTATED_BYTES // case.bytes))
    block = torch.randn(case.kv_heads, min(keys, 1024), case.head_dim).to(dtype)
    caches = [
        [block.repeat(batch, 1, keys // block.shape[1], 1) for _ in "kv"] for _ in range(copies)
    ]
    q = torch.randn(batch, 1, case.heads, case.head_dim).to(dtype)
    used = torch.full((batch,), keys, dtype=torch.int32)
    settings = Options(case.head_dim**-0.5, max_seqlen_q=1, max_seqlen_k=keys)
    group = case.heads // case.kv_heads
    compiled = library.load()
    assert compiled is not None, "build the library first: portattn doctor --build"

    def read(n: int) -> None:
        for tensor in caches[n % copies]:
            floats = tensor.numel() * tensor.itemsize // 4
            compiled.pa_read(tensor.data_ptr(), floats, case.threads)

    def portattn(n: int) -> Tensor:
        k, v = (tensor.transpose(1, 2) for tensor in caches[n % copies])
        table = None
        if case.page_size:
            # The same memory as pages: of every kv head side by side, in order.
            shape = (-1, case.kv_heads, case.page_size, case.head_dim)
            k, v = (tensor.view(shape).transpose(1, 2) for tensor in caches[n % copies])
            table = torch.arange(k.shape[0], dtype=torch.int32).view(batch, -1)
        tensors = AttentionTensors(q, k, v, seqused_k=used, block_table=table)
        return ops.forward(tensors, settings)[0]

    def dense(n: int) -> Tensor:
        k, v = (tensor.transpose(1, 2) for tensor in caches[n % copies])
        return ops.forward(AttentionTensors(q, k, v, seqused_k=used), settings)[0]

    def varlen(n: int) -> Tensor:
        # Keys of one sequence behind those of another, heads still side by side.
        k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in caches[n % copies])
        starts = [torch.arange(batch + 1, dtype=torch.int32) * length for length in (1, keys)]
        tensors = AttentionTensors(
            q.flatten(0, 1), k, v, cu_seqlens_q=starts[0], cu_seqlens_k=starts[1]
        )
        return ops.forward(tensors, settings)[0]

    def packed(n: int) -> Tensor:
        rows = q.view(batch, case.kv_heads, group, case.head_dim)
        return F.scaled_dot_product_attention(rows, *caches[n % copies])

    def sdpa(n: int) -> Tensor:
        rows = q.transpose(1, 2)
        return F.scaled_dot_product_attention(rows, *caches[n % copies], enable_gqa=True)

    if case.page_size:
        # One sequence: more of them would have to be copied to lie one behind another.
        return {"read": read, "portattn": portattn, "dense": dense, "varlen": varlen}
    return {"read": read, "portattn": portattn, "packed": packed, "sdpa": sdpa}


def measure(case: Case) -> dict[str, Any]:
    """GB/s of every peer, and the ratios of their medians in this run."""
    torch.set_num_threads(case.threads)
    run = peers(case)
    seconds: dict[str, list[float]] = {name: [] for name in run}
    number = 0
    for _ in range(ROUNDS + 1):
        for name, function in run.items():
            number += 1
            start = time.perf_counter()
            function(number)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    rates = {name: case.bytes / value / 1e9 for name, value in medians.items()}
    best = {name: case.bytes / min(times[1:]) / 1e9 for name, times in seconds.items()}
    own = medians["portattn"]
    ratios = {f"of_{name}": value / own for name, value in medians.items() if name != "portattn"}
    return {"case": asdict(case), "gb_per_s": rates, "best_gb_per_s": best, **ratios}


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, nargs=2, default=[1, 2])
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    chosen, end = cases(arguments.threads), time.perf_counter() + arguments.limit
    for case in chosen:
        if time.perf_counter() > end:
            break
        results.append(measure(case))
        print(json.dumps(results[-1]), flush=True)
    compiled = library.load()
    assert compiled is not None
    about = {**record(torch.device("cpu")), "kernel": library.variant(compiled)}
    if arguments.output is not None:
        text = json.dumps(
            {**about, "rounds": ROUNDS, "missing": len(chosen) - len(results), "results": results},
            indent=2,
        )
        arguments.output.write_text(text + "\n", encoding="utf-8")
    if arguments.plot is not None:
        plot(results, arguments.plot)


def plot(results: Sequence[dict[str, Any]], file: Path) -> None:
    """GB/s by number of keys, one picture per dtype and number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [item for item in results if "sdpa" in item["gb_per_s"]]
    counts = sorted({item["case"]["threads"] for item in results})
    figure, axes = pyplot.subplots(2, len(counts), figsize=(10, 7), sharex=True)
    panels = [(dtype, threads) for dtype in ("bfloat16", "float32") for threads in counts]
    for axis, (dtype, threads) in zip(axes.flat, panels, strict=True):
        shown = [
            item
            for item in lines
            if (item["case"]["dtype"], item["case"]["threads"]) == (dtype, threads)
            and (item["case"]["batch"], item["case"]["heads"]) == (1, 32)
            and item["case"]["head_dim"] == 128
        ]
        for name in ("read", "portattn", "packed", "sdpa"):
            keys = [item["case"]["keys"] for item in shown]
            style = "k--" if name == "read" else "o-"
            axis.plot(keys, [item["gb_per_s"][name] for item in shown], style, label=name)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{dtype}, {threads} thread{'s' if threads > 1 else ''}")
        axis.set_ylabel("GB/s of K and V")
        axis.set_xlabel("keys")
    axes.flat[0].legend()
    figure.suptitle("decode on a CPU: 32 query heads, 8 kv heads, head_dim 128")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
