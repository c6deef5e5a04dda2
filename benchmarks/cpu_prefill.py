"""Prefill and backward on a CPU: the compiled tiles against torch, interleaved in one run.

Every round times a matrix product, torch's SDPA and each instruction set's tiles once, in turn:
only ratios within a row mean anything on a shared machine. Rates are GFLOP/s of 4 B H S^2 D
(backward: 10), half of that when causal.

    python benchmarks/cpu_prefill.py [--threads 1] [--output results/cpu-prefill.json] [--plot FILE]

--no-amx asks MKL and oneDNN, before torch loads them, to do without AMX, and so do the tiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3"}
if "--no-amx" in sys.argv:
    os.environ.update(WITHOUT_AMX)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from portattn.arguments import describe, options  # noqa: E402
from portattn.backends.cpu.compiled_prefill import prefill_backward, prefill_forward  # noqa: E402
from portattn.cli.environment import record  # noqa: E402
from portattn.dispatch.backend import AttentionTensors  # noqa: E402
from tests.backends.cpu.compiled import library, variants  # noqa: E402

HEADS, KV_HEADS = 8, 2
LENGTHS = (512, 1024, 2048, 4096, 8192)
ROUNDS = 5
PRODUCT = 1024

Timed = Callable[[], object]


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-amx", action="store_true")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--limit", type=float, default=float("inf"), help="start no row after it")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    end = time.perf_counter() + given.limit
    chosen, rows = calls(given), []
    for call in chosen:
        if time.perf_counter() > end:
            break
        rows.append(call())
    result = {
        **record(torch.device("cpu")),
        "command": " ".join(["python", "benchmarks/cpu_prefill.py", *sys.argv[1:]]),
        "threads": given.threads,
        "heads": [HEADS, KV_HEADS],
        "missing": len(chosen) - len(rows),
        "rows": rows,
    }
    if given.output is not None:
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.plot is not None:
        plot(rows, given.plot)


def calls(given: argparse.Namespace) -> list[Callable[[], dict[str, Any]]]:
    """What makes each row, of both dtypes in turn, so that a limit leaves out the longest."""
    dtypes = (torch.float32, torch.bfloat16)
    forward, backward = partial(forward_row, given), partial(backward_row, given)
    found: list[Callable[[], dict[str, Any]]] = [partial(layout_row, given, d) for d in dtypes]
    found += [partial(backward, dtype, length) for length in (512, 2048) for dtype in dtypes]
    for dim, causal in ((64, True), (256, True), (128, False)):
        found += [partial(forward, dtype, 2048, dim, causal) for dtype in dtypes]
    found += [partial(forward, d, length, 128, True) for length in given.lengths for d in dtypes]
    return found


def tile_variants(given: argparse.Namespace, dtype: torch.dtype) -> list[str]:
    """The instruction sets to run, the best last; AMX multiplies bfloat16 only."""
    amx = dtype == torch.bfloat16 and not given.no_amx
    return [v for v in variants() if v != "sse4" and (v != "amx" or amx)]


def forward_row(
    given: argparse.Namespace, dtype: torch.dtype, length: int, dim: int, causal: bool
) -> dict[str, Any]:
    """Rates of one dense forward."""
    q, k, v = _inputs(dtype, 1, length, dim)
    work = 4 * HEADS * length**2 * dim / (2 if causal else 1)
    turned = [x.transpose(1, 2) for x in (q, k, v)]

    def sdpa() -> object:
        return F.scaled_dot_product_attention(*turned, is_causal=causal, enable_gqa=True)

    timed = {"sdpa": (sdpa, work)}
    for variant in tile_variants(given, dtype):
        timed[variant] = (_forward(given, variant, AttentionTensors(q, k, v), causal), work)
    about = {"operation": "forward", "seqlen": length, "head_dim": dim, "causal": causal}
    return _row(about, dtype, timed, "sdpa")


def layout_row(given: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Four causal sequences of 1024 in every layout, by the best tiles: dense is the measure."""
    q, k, v = _inputs(dtype, 4, 1024, 128)
    best = tile_variants(given, dtype)[-1]
    work = 4 * 4 * HEADS * 1024**2 * 128 / 2
    starts = torch.arange(0, 4097, 1024, dtype=torch.int32)
    packed = AttentionTensors(
        *(x.flatten(0, 1) for x in (q, k, v)), cu_seqlens_q=starts, cu_seqlens_k=starts
    )
    order = torch.randperm(64).int()
    pages = [torch.empty_like(x).view(64, 64, KV_HEADS, 128) for x in (k, v)]
    for to, x in zip(pages, (k, v), strict=True):
        to[order.long()] = x.reshape(64, 64, KV_HEADS, 128)
    lengths = torch.full((4,), 1024, dtype=torch.int32)
    paged = AttentionTensors(q, *pages, seqused_k=lengths, block_table=order.view(4, 16))
    calls = {"dense": AttentionTensors(q, k, v), "varlen": packed, "paged": paged}
    timed = {name: (_forward(given, best, t, True), work) for name, t in calls.items()}
    about = {"operation": "forward", "seqlen": 1024, "batch": 4, "head_dim": 128, "causal": True}
    return _row(about, dtype, timed, "dense")


def backward_row(given: argparse.Namespace, dtype: torch.dtype, length: int) -> dict[str, Any]:
    """Rates of one dense causal backward; torch gets as many kv heads as heads."""
    q, k, v = _inputs(dtype, 1, length, 128, HEADS)
    grad_out = torch.randn(q.shape).to(dtype)
    leaves = [x.transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
    result = F.scaled_dot_product_attention(*leaves, is_causal=True)
    turned = grad_out.transpose(1, 2)
    work = 10 * HEADS * length**2 * 128 / 2
    timed: dict[str, tuple[Timed, float]] = {
        "sdpa": (lambda: torch.autograd.grad(result, leaves, turned, retain_graph=True), work)
    }
    for variant in tile_variants(given, dtype):
        timed[variant] = (_backward(given, variant, AttentionTensors(q, k, v), grad_out), work)
    about = {"operation": "backward", "seqlen": length, "head_dim": 128, "causal": True}
    return _row(about, dtype, timed, "sdpa")


def _inputs(
    dtype: torch.dtype, batch: int, length: int, dim: int, kv_heads: int = KV_HEADS
) -> list[Tensor]:
    shapes = [(batch, length, h, dim) for h in (HEADS, kv_heads, kv_heads)]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def _options(t: AttentionTensors, causal: bool) -> Any:
    return options(
        t.q, causal=causal, softmax_scale=None, window_size=(-1, -1), softcap=0.0,
        max_seqlen_q=1024, max_seqlen_k=1024,
    )  # fmt: skip


def _forward(given: argparse.Namespace, variant: str, t: AttentionTensors, causal: bool) -> Timed:
    operation = "decode" if t.seqused_k is not None else "forward"
    problem = describe(operation, t, _options(t, causal), bias_grad=False, lse_grad=False)
    return lambda: prefill_forward(library(variant), t, problem, {}, given.threads)


def _backward(
    given: argparse.Namespace, variant: str, t: AttentionTensors, grad_out: Tensor
) -> Timed:
    problem = describe("backward", t, _options(t, True), bias_grad=False, lse_grad=False)
    forward: Any = _forward(given, variant, t, True)
    out, lse = forward()
    return lambda: prefill_backward(
        library(variant), grad_out, None, out, lse, t, problem, given.threads
    )


def _row(
    about: dict[str, Any],
    dtype: torch.dtype,
    timed: dict[str, tuple[Timed, float]],
    measure: str,
) -> dict[str, Any]:
    """Median rates of every candidate, and the median of the rounds' ratios to `measure`."""
    square = torch.randn(PRODUCT, PRODUCT).to(dtype)
    timed = {"product": (lambda: torch.mm(square, square), 2.0 * PRODUCT**3), **timed}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(ROUNDS + 1):
        for name, (call, _) in timed.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    rates = {n: [timed[n][1] / s / 1e9 for s in times] for n, times in seconds.items()}
    row = {
        **about,
        "dtype": str(dtype).removeprefix("torch."),
        "gflops": {n: round(statistics.median(x), 1) for n, x in rates.items()},
        f"ratio_to_{measure}": {
            n: round(statistics.median(a / b for a, b in zip(x, rates[measure], strict=True)), 3)
            for n, x in rates.items()
            if n not in (measure, "product")
        },
    }
    print(json.dumps(row), flush=True)
    return row


def plot(rows: list[dict[str, Any]], to: Path) -> None:
    """GFLOP/s by length, one panel per dtype, with the rate of a product as a line."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    for panel, dtype in zip(panels, ("float32", "bfloat16"), strict=True):
        chosen = [
            r
            for r in rows
            if r["dtype"] == dtype
            and r["operation"] == "forward"
            and "batch" not in r
            and (r["head_dim"], r["causal"]) == (128, True)
        ]
        lengths = [r["seqlen"] for r in chosen]
        for name in chosen[0]["gflops"]:
            style = {"linestyle": "--", "color": "grey"} if name == "product" else {"marker": "o"}
            panel.plot(
                lengths,
                [r["gflops"][name] for r in chosen],
                label={"product": f"torch.mm {PRODUCT}", "sdpa": "torch SDPA"}.get(name, name),
                **style,
            )
        panel.set(xscale="log", title=f"{dtype}, causal, {HEADS}/{KV_HEADS} heads of 128")
        panel.set(xlabel="length", ylabel="GFLOP/s", ylim=(0, None))
        panel.set_xticks(lengths, [str(n) for n in lengths])
        panel.minorticks_off()
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(to, dpi=110)


if __name__ == "__main__":
    main()
