"""Row-parallel projections on the GPUs of one host: how much of their sums' travel is hidden.

    torchrun --nproc-per-node 2 benchmarks/parallel_gpu.py --out parallel-h100.json

Each row is a projection of a Llama-like model at one number of tokens, bfloat16, as every rank of a
tensor-parallel group computes it. In one interleaved run: the product alone, NCCL's all-reduce
alone, one after the other (plain), torch's fused product and reduce-scatter followed by an
all-gather, torch's two-shot all-reduce over symmetric memory after the product, and
portattn.parallel.tensor.linear. A sample is several calls in a row between two events, eagerly or
replayed from a CUDA graph; a time is the median over rounds of the slowest rank's. Hidden is
1 - (time - product) / all-reduce. Results are compared with the plain form's first.

`--what attention` puts the attention before the projection into the product, and `--what stack`
times whole layers: prefill of a stack of 70B-shaped layers on one device, and
on all with the plain and the overlapped sums.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric

import portattn
from portattn.parallel import schedule, tensor

CALLS = 4
# Columns and inner features of a projection before it is sharded, and the attention's heads.
SHAPES = {
    "8B out": (4096, 4096, 32),
    "8B down": (4096, 14336, 0),
    "32B out": (5120, 8192, 64),
    "32B down": (5120, 25600, 0),
    "70B out": (8192, 8192, 64),
    "70B down": (8192, 28672, 0),
}
Call = Callable[[], Tensor]


class Bench:
    """The ranks, their clocks, and what was measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begun = options, time.monotonic()
        local = int(os.environ["LOCAL_RANK"])
        self.device = torch.device("cuda", local)
        torch.cuda.set_device(self.device)
        dist.init_process_group(
            "nccl", device_id=self.device, timeout=datetime.timedelta(seconds=60)
        )
        self.group = dist.group.WORLD
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        symmetric.enable_symm_mem_for_group(self.group.group_name)
        self.record: dict[str, Any] = {
            "command": "torchrun --nproc-per-node 2 benchmarks/parallel_gpu.py",
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "device": f"{self.ranks} x {torch.cuda.get_device_name()}",
            "torch": torch.__version__,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "multicast": "off",
            "rows": [],
        }

    def late(self) -> bool:
        """Whether any rank is past its time; all ranks agree."""
        late = torch.tensor([time.monotonic() - self.begun > self.options.seconds])
        late = late.int().to(self.device)
        dist.all_reduce(late, dist.ReduceOp.MAX)
        return bool(late.item())

    def slowest(self, milliseconds: float) -> float:
        value = torch.tensor([milliseconds], device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return float(value.item())

    def keep(self, row: dict[str, Any]) -> None:
        self.record["rows"].append(row)
        if self.rank == 0:
            shown = " | ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
            )
            print(f"[{time.monotonic() - self.begun:.0f}] {shown}", flush=True)
            self.options.out.parent.mkdir(parents=True, exist_ok=True)
            self.options.out.write_text(json.dumps(self.record, indent=1) + "\n")

    def times(self, calls: dict[str, Call], rounds: int) -> dict[str, float]:
        """Milliseconds a call, in turns."""
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for round_number in range(rounds + 1):
            for name, call in calls.items():
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                dist.barrier()
                # What both ranks do first takes up the difference in when they begin.
                dist.all_reduce(torch.ones(1, device=self.device))
                first.record()
                for _ in range(CALLS):
                    call()
                last.record()
                torch.cuda.synchronize()
                if round_number:
                    samples[name].append(first.elapsed_time(last) / CALLS)
        return {name: self.slowest(statistics.median(found)) for name, found in samples.items()}


def captured(call: Call) -> Call:
    """The call replayed from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def each(bench: Bench, measure: Callable[[Bench, int, int, int, int], dict[str, Any]]) -> None:
    """One row for each shape and number of tokens."""
    for name in bench.options.shapes:
        columns, inner, heads = SHAPES[name]
        for tokens in bench.options.tokens:
            if bench.late():
                return
            torch.manual_seed(bench.rank)
            try:
                row = measure(bench, tokens, columns, inner // bench.ranks, heads // bench.ranks)
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {error}"[:300]}
            bench.keep({"shape": name, "tokens": tokens, **row})


def random(bench: Bench, *shape: int) -> Tensor:
    """Normal numbers; a matrix's are as small as its product needs."""
    drawn = torch.randn(shape, device=bench.device, dtype=torch.bfloat16)
    return drawn * shape[-1] ** -0.5 if len(shape) == 2 else drawn


def projection(bench: Bench, tokens: int, columns: int, inner: int, heads: int) -> dict[str, Any]:
    """A product of rows that are there."""
    x, weight = random(bench, tokens, inner) * inner**0.5, random(bench, columns, inner)
    shared = symmetric.empty(tokens, columns, device=bench.device, dtype=x.dtype)
    symmetric.rendezvous(shared, bench.group)
    name, turned = bench.group.group_name, weight.T.contiguous()

    def two_shot() -> Tensor:
        torch.mm(x, weight.T, out=shared)
        torch.ops.symm_mem.two_shot_all_reduce_(shared, "sum", name)
        return shared

    def fused() -> Tensor:
        mine = torch.ops.symm_mem.fused_matmul_reduce_scatter(x, turned, "sum", 0, name)
        out = x.new_empty((tokens, columns))
        dist.all_gather_into_tensor(out, mine, group=bench.group)
        return out

    return compare(
        bench,
        (tokens, columns, inner),
        lambda: x @ weight.T,
        lambda plan: tensor.linear(x, weight, bench.group, plan=plan),
        {"torch two-shot": two_shot, "torch fused": fused},
    )


def attended(bench: Bench, tokens: int, columns: int, inner: int, heads: int) -> dict[str, Any]:
    """Causal attention of a rank's heads, then the product."""
    q = random(bench, 1, tokens, heads, 128)
    k, v = (random(bench, 1, tokens, max(8 // bench.ranks, 1), 128) for _ in range(2))
    weight = random(bench, columns, inner)
    return compare(
        bench,
        (tokens, columns, inner),
        lambda: portattn.attention(q, k, v, causal=True).flatten(2)[0] @ weight.T,
        lambda plan: tensor.attention(q, k, v, weight, bench.group, causal=True, plan=plan)[0],
        {},
    )


def compare(
    bench: Bench,
    sizes: tuple[int, int, int],
    compute: Call,
    ours: Callable[[schedule.BlockPlan], Tensor],
    peers: dict[str, Call],
) -> dict[str, Any]:
    tokens, columns, inner = sizes
    full = torch.zeros(tokens, columns, device=bench.device, dtype=torch.bfloat16)

    def plain() -> Tensor:
        out = compute()
        dist.all_reduce(out, group=bench.group)
        return out

    def reduced() -> Tensor:
        dist.all_reduce(full, group=bench.group)
        return full

    calls: dict[str, Call] = {"compute": compute, "all-reduce": reduced, "plain": plain, **peers}
    plans = {"portattn": schedule.best(tokens, inner, columns, 2, bench.ranks, tensor.speeds(full))}
    for pieces in bench.options.pieces:
        plans["portattn " + pieces] = schedule.cut(
            tokens, bench.ranks, tuple(map(float, pieces.split(",")))
        )
    want = plain().float()
    forms = {label: partial(ours, plan) for label, plan in plans.items()}
    for label, form in forms.items():
        for way in ("", " graph") if bench.options.graphs else ("",):
            call: Call = form
            call = captured(call) if way else call
            for _ in range(2):
                error = float((call().float() - want).abs().max() / want.abs().max())
                if not error < 0.02:
                    raise ArithmeticError(f"{label}{way} is {error:.3g} off the plain form")
            calls[label + way] = call
    for label in ("compute", "all-reduce", "plain") if bench.options.graphs else ():
        calls[label + " graph"] = captured(calls[label])
    times = bench.times(calls, bench.options.rounds)
    hidden = {}
    for label, taken in times.items():
        way = " graph" if label.endswith("graph") else ""
        if label.split()[0] in ("portattn", "torch", "plain"):
            exposed = taken - times["compute" + way]
            hidden[f"hidden {label}"] = 1 - exposed / times["all-reduce" + way]
    pieces = [blocks[0].rows for blocks in plans["portattn"].pieces]
    return {"pieces": str(pieces), **times, **hidden}


def links(bench: Bench) -> None:
    """What copy engines and cores move to and from the next rank, GB/s in one direction."""
    count = 2**26
    memory = symmetric.empty(2 * count, device=bench.device, dtype=torch.uint8)
    mapped = symmetric.rendezvous(memory, bench.group)
    there = mapped.get_buffer((bench.rank + 1) % bench.ranks, (2 * count,), torch.uint8)
    mine = torch.zeros(count, device=bench.device, dtype=torch.uint8)
    second = torch.cuda.Stream()

    def both() -> Tensor:
        second.wait_stream(torch.cuda.current_stream())
        there[:count].copy_(mine)
        with torch.cuda.stream(second):
            memory[:count].copy_(there[count:])
        torch.cuda.current_stream().wait_stream(second)
        return mine

    calls: dict[str, Call] = {
        "push": lambda: there[:count].copy_(mine),
        "fetch": lambda: mine.copy_(there[count:]),
        "both": both,
        # An operation between dtypes runs on cores.
        "cores push": lambda: torch.add(mine, 1, out=there[:count]),
        "cores fetch": lambda: torch.add(there[count:], 1, out=mine),
    }
    times = bench.times(calls, 9)
    bench.keep(
        {"shape": "links", **{f"{key} GB/s": count / took / 1e6 for key, took in times.items()}}
    )


class Layer:
    """One rank's shard of a Llama-like layer, with random weights."""

    def __init__(
        self, ranks: int, device: torch.device, hidden: int, heads: int, kv: int, mlp: int
    ):
        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=torch.bfloat16) * shape[-1] ** -0.5

        self.heads, self.kv, self.dim = heads // ranks, max(kv // ranks, 1), 128
        self.qkv = random((self.heads + 2 * self.kv) * self.dim, hidden)
        self.out = random(hidden, self.heads * self.dim)
        self.up = random(2 * mlp // ranks, hidden)
        self.down = random(hidden, mlp // ranks)
        self.norm = torch.ones(hidden, device=device, dtype=torch.bfloat16)

    def __call__(self, x: Tensor, project: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        normal = torch.nn.functional.rms_norm(x, self.norm.shape, self.norm)
        q, k, v = (
            part.unflatten(-1, (-1, self.dim))[None]
            for part in (normal @ self.qkv.T).split(
                [self.heads * self.dim, self.kv * self.dim, self.kv * self.dim], -1
            )
        )
        attended = portattn.attention(q, k, v, causal=True)
        x = x + project(attended.flatten(2)[0], self.out)
        normal = torch.nn.functional.rms_norm(x, self.norm.shape, self.norm)
        gate, up = (normal @ self.up.T).chunk(2, -1)
        return x + project(torch.nn.functional.silu(gate) * up, self.down)


def stack(bench: Bench) -> None:
    """Prefill of a few 70B-shaped layers."""
    sizes = (8192, 64, 8, 28672)
    layers = bench.options.layers
    alone = [Layer(1, bench.device, *sizes) for _ in range(layers)]
    shared = [Layer(bench.ranks, bench.device, *sizes) for _ in range(layers)]

    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return tensor.linear(x, weight, bench.group)

    def run(stack: list[Layer], project: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        for layer in stack:
            x = layer(x, project)
        return x

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        out = x @ weight.T
        dist.all_reduce(out, group=bench.group)
        return out

    with torch.no_grad():
        for tokens in bench.options.stack_tokens:
            if bench.late():
                return
            torch.manual_seed(0)
            x = torch.randn(tokens, sizes[0], device=bench.device, dtype=torch.bfloat16)
            ways = {
                "one device": (alone, multiply),
                "products alone": (shared, multiply),
                "plain": (shared, plain),
                "portattn": (shared, ours),
            }
            calls = {name: partial(run, *way, x) for name, way in ways.items()}
            times = bench.times(calls, 3)
            bench.keep(
                {
                    "shape": f"70B x {layers} layers",
                    "tokens": tokens,
                    **times,
                    "speed-up plain": times["one device"] / times["plain"],
                    "speed-up portattn": times["one device"] / times["portattn"],
                }
            )


def timeline(bench: Bench) -> None:
    """What ran when on rank 0, for the plain form and for blocks, of the largest of the tokens."""
    name = bench.options.shapes[0]
    columns, inner, _ = SHAPES[name]
    tokens, part = max(bench.options.tokens), inner // bench.ranks
    x, weight = random(bench, tokens, part), random(bench, columns, part)
    full = torch.zeros(tokens, columns, device=bench.device, dtype=torch.bfloat16)
    plans = {"portattn": schedule.best(tokens, part, columns, 2, bench.ranks, tensor.speeds(full))}
    for pieces in bench.options.pieces:
        plans["portattn " + pieces] = schedule.cut(
            tokens, bench.ranks, tuple(map(float, pieces.split(",")))
        )

    def plain() -> Tensor:
        out = x @ weight.T
        dist.all_reduce(out, group=bench.group)
        return out

    calls: dict[str, Call] = {"plain": plain}
    for label, plan in plans.items():
        calls[label] = partial(tensor.linear, x, weight, bench.group, plan=plan)
    for label, call in calls.items():
        for way, made in (("", call), (" graph", captured(call))):
            for _ in range(3):
                made()
            torch.cuda.synchronize()
            dist.barrier()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                dist.all_reduce(torch.ones(1, device=bench.device))
                for _ in range(2):
                    made()
                torch.cuda.synchronize()
            trace = Path(tempfile.gettempdir()) / f"trace-{bench.rank}.json"
            seen.export_chrome_trace(str(trace))
            events = [
                event
                for event in json.loads(trace.read_text())["traceEvents"]
                if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
            ]
            begin = min(event["ts"] for event in events)
            spans = [
                {
                    "name": event["name"][:60],
                    "stream": event["args"].get("stream"),
                    "begin": round(event["ts"] - begin, 1),
                    "us": round(event["dur"], 1),
                    "bytes": event["args"].get("bytes"),
                }
                for event in sorted(events, key=lambda event: event["ts"])
            ]
            bench.record["rows"].append({"shape": name, "tokens": tokens, label + way: spans})
    if bench.rank == 0:
        bench.options.out.write_text(json.dumps(bench.record) + "\n")


def draw(record: Path, picture: Path) -> None:
    """Two lanes, what computes and what communicates, for each form replayed from a graph."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    told = json.loads(record.read_text())
    forms = {
        key: spans for row in told["rows"] for key, spans in row.items() if key.endswith(" graph")
    }
    figure, axes = pyplot.subplots(len(forms), 1, sharex=True, figsize=(11, 1.8 * len(forms)))
    for axis, (form, spans) in zip(axes, forms.items(), strict=True):
        # What stands before the first product makes the ranks begin together.
        products = [span for span in spans if "nvjet" in span["name"] or "gemm" in span["name"]]
        begin = products[0]["begin"]
        # Of two calls in a row the first: half of the products.
        end = products[len(products) // 2]["begin"]
        for span in spans:
            if not begin <= span["begin"] < end or span["us"] < 2.0:
                continue
            computes = span in products
            remote = "nccl" in span["name"] or "PtoP" in span["name"]
            color = "tab:blue" if computes else "tab:orange" if remote else "tab:gray"
            axis.barh(
                0 if computes else 1,
                span["us"],
                left=span["begin"] - begin,
                color=color,
                edgecolor="white",
                linewidth=0.5,
            )
        axis.set_yticks([0, 1], ["products", "transfers"])
        axis.set_title(f"{told['rows'][0]['shape']}, {told['rows'][0]['tokens']} tokens: {form}")
    axes[-1].set_xlabel("microseconds on rank 0")
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("parallel.json"))
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--tokens", nargs="*", type=int, default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--pieces", nargs="*", default=[], help="such as 1,1,0.5, beside our own")
    parser.add_argument("--graphs", action="store_true", help="also replayed from CUDA graphs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--what",
        choices=("projection", "attention", "stack", "links", "timeline"),
        default="projection",
    )
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--stack-tokens", nargs="*", type=int, default=[4096, 8192, 16384])
    parser.add_argument("--seconds", type=float, default=100.0, help="begin nothing after that")
    parser.add_argument("--plot", type=Path, help="draw the timeline that --out holds; no GPU")
    options = parser.parse_args()
    if options.plot is not None:
        draw(options.out, options.plot)
        return
    bench = Bench(options)
    if options.what == "stack":
        stack(bench)
    elif options.what in ("links", "timeline"):
        (links if options.what == "links" else timeline)(bench)
    else:
        each(bench, attended if options.what == "attention" else projection)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
