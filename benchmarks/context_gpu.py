"""Context parallel on the GPUs of one host: ring, Ulysses and decode over sharded keys.

    torchrun --nproc-per-node 2 benchmarks/context_gpu.py --out parallel-context.json

Heads as of an 8B model (32/8 of 128, bfloat16). What one rank takes alone, what all take together,
what the ring takes without transfers, and without merges too, are timed in turn within each
repetition, then torch's context_parallel; a time is the median of the slowest rank's. Results are
compared with the definition first. Everything is written to --out after each item, with its error
where it fails.
`--device cpu --small` runs every line on gloo, for its code and not for its times.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import portattn
from portattn.cache import ContiguousKVCache
from portattn.parallel.context import ContextParallel
from portattn.parallel.ring import Ring, ring_attention
from portattn.parallel.sharded_decode import ShardedKVCache
from portattn.parallel.transport import Peers, Transfer

HEADS, KV_HEADS, DIM = 32, 8, 128
Calls = dict[str, Callable[[], Any]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[65536, 131072])
    parser.add_argument("--decode-keys", type=int, default=2**20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=80.0, help="start nothing after that")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a quick look")
    parser.add_argument("--out", type=Path, default=Path("parallel-context.json"))
    return parser.parse_args()


class Bench:
    """The ranks, the clock and the record."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begun = options, time.monotonic()
        local = int(os.environ["LOCAL_RANK"])
        if options.device == "cuda":
            torch.cuda.set_device(local)
            self.device = torch.device("cuda", local)
            dist.init_process_group(
                "nccl", device_id=self.device, timeout=datetime.timedelta(seconds=60)
            )
            name = torch.cuda.get_device_name()
        else:
            self.device, name = torch.device("cpu"), "CPU"
            dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.cp = ContextParallel(dist.group.WORLD)
        self.record: dict[str, Any] = {
            "command": f"torchrun --nproc-per-node {self.ranks} {shlex.join(sys.argv)}",
            "kind": "measured",
            "device": f"{self.ranks} x {name}",
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "heads": f"{HEADS}/{KV_HEADS}",
            "head_dim": DIM,
            "items": [],
        }

    def random(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The same numbers on every rank."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device).to(dtype)

    def item(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Run one item on all ranks, unless time is up on any."""
        late = torch.tensor(float(time.monotonic() - self.begun > self.options.seconds))
        late = late.to(self.device)
        dist.all_reduce(late)
        entry: dict[str, Any] = {"item": name}
        if late.item():
            entry["skipped"] = "no time left"
        else:
            try:
                entry |= measure()
            except Exception as error:
                entry["error"] = f"{type(error).__name__}: {error}"[:600]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.record["items"].append(entry)
        if self.rank == 0:
            print(json.dumps(entry), flush=True)
            self.options.out.write_text(json.dumps(self.record, indent=1) + "\n")

    def times(self, calls: Calls, repeats: int | None = None, inner: int = 1) -> dict[str, float]:
        """Milliseconds of each call, taken in turn: the median of the slowest rank's."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for index in range((repeats or self.options.repeats) + 1):
            # Each is first in turn: what a hot device does slower isn't always the same call.
            start = index % len(names)
            for name in names[start:] + names[:start]:
                taken = self._once(calls[name], inner)
                if index:
                    found[name].append(taken)
        return {name: round(statistics.median(times), 4) for name, times in found.items()}

    def _once(self, call: Callable[[], Any], inner: int) -> float:
        self.wait()
        dist.barrier()
        self.wait()
        begun = time.perf_counter()
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(inner):
                call()
            last.record()
            torch.cuda.synchronize()
            taken = first.elapsed_time(last) / inner
        else:
            for _ in range(inner):
                call()
            taken = (time.perf_counter() - begun) * 1e3 / inner
        slowest = torch.tensor(taken, device=self.device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        return float(slowest)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def correctness(bench: Bench) -> dict[str, Any]:
    """Errors against the definition in float64, beside those of one rank alone."""
    cp, found = bench.cp, {}
    length = 200 if bench.options.small else 1500
    for name, kwargs in (
        ("full", {}),
        ("causal", {"causal": True}),
        ("window", {"causal": True, "window_size": (300, 0)}),
        ("sinks", {"causal": True, "sinks": bench.random(8, seed=5)}),
    ):
        q, k, v = (bench.random(2, length, h, DIM, seed=s) for s, h in ((1, 8), (2, 2), (3, 2)))
        grad = bench.random(2, length, 8, DIM, seed=4)
        exact = _with_gradients(
            lambda *a, kw=kwargs: portattn.attention(*a, **_wide(kw), backend="reference"),
            *(t.double() for t in (q, k, v, grad)),
        )
        alone = _with_gradients(lambda *a, kw=kwargs: portattn.attention(*a, **kw), q, k, v, grad)
        layout = cp.layout(length)
        shards = [cp.shard(t, layout) for t in (q, k, v, grad)]
        together = _with_gradients(
            lambda *a, kw=kwargs, of=layout: cp.attention(*a, of, **kw), *shards
        )
        together = [cp.gather(t, layout) for t in together]
        for what, truth, mine, one in zip(
            ("out", "dq", "dk", "dv"), exact, together, alone, strict=True
        ):
            error, single = (float((t.double() - truth).abs().max()) for t in (mine, one))
            limit = 3 * single + torch.finfo(torch.bfloat16).eps * float(truth.abs().max())
            found[f"{name} {what}"] = {"error": error, "one_rank": single, "ok": error <= limit}
    found |= _packed_correctness(bench) | _decode_correctness(bench)
    return {"all_ok": all(entry["ok"] for entry in found.values()), "checks": found}


def _packed_correctness(bench: Bench) -> dict[str, Any]:
    """Ragged sequences, one shorter than the ranks' parts, by the ring and by Ulysses."""
    lengths = [700, 3, 0, 293]
    q, k, v = (bench.random(sum(lengths), h, DIM, seed=s) for s, h in ((1, 8), (2, 2), (3, 2)))
    grad = bench.random(sum(lengths), 8, DIM, seed=4)
    ends = torch.tensor([0, *lengths], device=bench.device).cumsum(0, dtype=torch.int32)
    sizes = (ends, ends, max(lengths), max(lengths))

    def alone(*qkv: Tensor, backend: str | None = None) -> Any:
        return portattn.attention_varlen(*qkv, *sizes, causal=True, backend=backend)

    exact = _with_gradients(
        lambda *qkv: alone(*qkv, backend="reference"), *(t.double() for t in (q, k, v, grad))
    )
    single = _with_gradients(alone, q, k, v, grad)
    found = {}
    ways = {"ring": bench.cp, "ulysses": ContextParallel(None, dist.group.WORLD)}
    for name, cp in ways.items():
        layout = cp.layout(lengths)
        shards = [cp.shard(t, layout, dim=0) for t in (q, k, v, grad)]
        parts = _with_gradients(
            lambda *qkv, cp=cp, of=layout: cp.attention(*qkv, of, causal=True), *shards
        )
        whole = [cp.gather(t, layout, dim=0) for t in parts]
        for what, truth, mine, one in zip(
            ("out", "dq", "dk", "dv"), exact, whole, single, strict=True
        ):
            error, theirs = (float((t.double() - truth).abs().max()) for t in (mine, one))
            limit = 3 * theirs + torch.finfo(torch.bfloat16).eps * float(truth.abs().max())
            found[f"packed {name} {what}"] = {
                "error": error,
                "one_rank": theirs,
                "ok": error <= limit,
            }
    return found


def _wide(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {n: x.double() if isinstance(x, Tensor) else x for n, x in kwargs.items()}


def _with_gradients(
    call: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, grad: Tensor
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = call(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _decode_correctness(bench: Bench) -> dict[str, Any]:
    """Ragged shards, one of them empty on the first rank."""
    keys = 200 if bench.options.small else 3000
    lengths = torch.tensor([keys, keys // 3, 5], device=bench.device)
    q, k, v = (
        bench.random(3, n, h, DIM, seed=s) for s, n, h in ((1, 1, 8), (2, keys, 2), (3, keys, 2))
    )
    share = torch.tensor([0.3, 0.9, 0.0], device=bench.device)
    first = (lengths * share).int()
    mine = first if bench.rank == 0 else (lengths - first).int()
    if bench.rank > 1:
        mine = torch.zeros_like(mine)
    starts = torch.zeros_like(first) if bench.rank == 0 else first
    places = starts[:, None].long() + torch.arange(keys, device=bench.device)
    rows = torch.arange(3, device=bench.device)[:, None]
    local = ContiguousKVCache.from_tensors(
        *(t[rows, places.clamp(max=keys - 1)] for t in (k, v)), mine, longest=keys
    )
    out = ShardedKVCache(local, dist.group.WORLD).attention(q)
    whole = ContiguousKVCache.from_tensors(k, v, lengths.int(), longest=keys)
    alone = portattn.attention_with_kvcache(q, whole)
    wide = ContiguousKVCache.from_tensors(k.double(), v.double(), lengths.int(), longest=keys)
    exact = portattn.attention_with_kvcache(q.double(), wide, backend="reference")
    error, single = (float((t.double() - exact).abs().max()) for t in (out, alone))
    limit = 2 * single + torch.finfo(torch.bfloat16).eps * float(exact.abs().max())
    return {"decode": {"error": error, "one_rank": single, "ok": error <= limit}}


def prefill(bench: Bench, length: int, causal: bool) -> dict[str, Any]:
    """Forward: one rank, the ring, its products alone, Ulysses, torch's context_parallel."""
    cp = bench.cp
    q, k, v = _inputs(bench, length)
    layout = cp.layout(length)
    ql, kl, vl = (cp.shard(t, layout) for t in (q, k, v))
    options = portattn.arguments.options(
        q, causal=causal, softmax_scale=None, window_size=(-1, -1), softcap=0.0
    )
    still = Ring(StillPeers(dist.group.WORLD), layout, options)
    ulysses = ContextParallel(None, dist.group.WORLD)
    near = ulysses.layout(length)
    qu, ku, vu = (ulysses.shard(t, near) for t in (q, k, v))
    calls: Calls = {
        "one_rank": lambda: portattn.attention(q, k, v, causal=causal, return_lse=True),
        "ring": lambda: cp.attention(ql, kl, vl, layout, causal=causal),
        "ring_no_transfer": lambda: ring_attention(still, ql, kl, vl, None),
        "ring_products_only": lambda: products_only(still, ql, kl, vl),
        "ulysses": lambda: ulysses.attention(qu, ku, vu, near, causal=causal),
    }
    with torch.no_grad():
        times = bench.times(calls)
    ring = times["ring"]
    flops = 4 * length * length * HEADS * DIM / (2 if causal else 1)
    return {
        "tokens": length,
        "causal": causal,
        "ms": times,
        "ring_speedup": round(times["one_rank"] / ring, 3),
        "ulysses_speedup": round(times["one_rank"] / times["ulysses"], 3),
        "transfers_add_ms": round(ring - times["ring_no_transfer"], 4),
        "merges_add_ms": round(times["ring_no_transfer"] - times["ring_products_only"], 4),
        "one_rank_tflops": round(flops / times["one_rank"] / 1e9, 1),
        "torch": torch_context_parallel(bench, length, causal, times["one_rank"]),
    }


class StillPeers(Peers):
    """A ring in which what is sent has come already: everybody goes on with their own keys."""

    def exchange(
        self, sent: Sequence[Tensor], arriving: tuple[Tensor, ...], *, to: int, tag: int = 0
    ) -> Transfer:
        return Transfer([], tuple(sent))


def products_only(ring: Ring, q: Tensor, k: Tensor, v: Tensor) -> None:
    """The library's calls that the ring makes, on the keys that are here; nothing is merged."""
    for step in range(ring.steps):
        for part in ring.parts(step, q):
            portattn.calls.run_forward(part.tensors(q, k, v), part.options(ring.options))


def torch_context_parallel(bench: Bench, length: int, causal: bool, alone: float) -> dict[str, Any]:
    """torch's own, keys repeated for every query head where it can't read grouped ones."""
    try:
        from torch.distributed.tensor.experimental import _attention as attention_module
        from torch.distributed.tensor.experimental import context_parallel

        cp_options = attention_module._cp_options
    except (ImportError, AttributeError) as error:
        return {"error": str(error)}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    mesh = init_device_mesh(bench.device.type, (bench.ranks,))
    # It cuts for a causal mask, and refuses others, unless told not to.
    cp_options.enable_load_balance = causal
    found: dict[str, Any] = {}
    for kernel in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        for grouped in (True, False):
            label = f"{kernel.name}{'' if grouped else ', keys repeated'}"
            try:
                q, k, v = (t.transpose(1, 2).contiguous() for t in _inputs(bench, length))
                if not grouped:
                    k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))

                def call(q: Tensor = q, k: Tensor = k, v: Tensor = v, gqa: bool = grouped) -> None:
                    torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, is_causal=causal, enable_gqa=gqa
                    )

                buffers = [q, k, v]
                with (
                    torch.no_grad(),
                    sdpa_kernel(kernel),
                    context_parallel(
                        mesh,
                        buffers=buffers,
                        buffer_seq_dims=[2, 2, 2],
                        no_restore_buffers=set(buffers),
                    ),
                ):
                    taken = bench.times({"call": call}, 3)["call"]
                found[label] = {"ms": taken, "speedup_over_one_rank": round(alone / taken, 3)}
                break
            except Exception as error:
                found[label] = {"error": f"{type(error).__name__}: {error}"[:300]}
    return found


def training(bench: Bench, length: int) -> dict[str, Any]:
    """Forward and backward, causal."""
    cp = bench.cp
    q, k, v = _inputs(bench, length)
    grad = bench.random(1, length, HEADS, DIM, seed=9)
    layout = cp.layout(length)
    shards = [cp.shard(t, layout) for t in (q, k, v, grad)]
    calls: Calls = {
        "one_rank": lambda: _with_gradients(
            lambda *a: portattn.attention(*a, causal=True), q, k, v, grad
        ),
        "ring": lambda: _with_gradients(
            lambda *a: cp.attention(*a, layout, causal=True), *shards
        ),
    }  # fmt: skip
    times = bench.times(calls, 3)
    return {
        "tokens": length,
        "causal": True,
        "ms": times,
        "speedup": round(times["one_rank"] / times["ring"], 3),
    }


def decode(bench: Bench, keys: int) -> dict[str, Any]:
    """One query a sequence over `keys` keys, whole on one rank and spread over all."""
    q = bench.random(1, 1, HEADS, DIM, seed=1)
    k, v = (bench.random(1, keys, KV_HEADS, DIM, seed=s) for s in (2, 3))
    length = torch.tensor([keys], dtype=torch.int32, device=bench.device)
    whole = ContiguousKVCache.from_tensors(k, v, length, longest=keys)
    each = keys // bench.ranks
    own = slice(bench.rank * each, (bench.rank + 1) * each)
    mine = ContiguousKVCache.from_tensors(
        k[:, own].clone(), v[:, own].clone(), length // bench.ranks, longest=each
    )
    sharded = ShardedKVCache(mine, dist.group.WORLD)
    calls: Calls = {
        "one_rank": lambda: portattn.attention_with_kvcache(q, whole),
        "sharded": lambda: sharded.attention(q),
        "sharded_local_part": lambda: portattn.attention_with_kvcache(q, mine, return_lse=True),
    }
    with torch.no_grad():
        difference = float((calls["one_rank"]() - calls["sharded"]()).abs().max())
        inner = 2 if bench.options.small else 20
        times = bench.times(calls, inner=inner)
        graphs = {}
        if bench.device.type == "cuda":
            graphs = bench.times({n: _graphed(call) for n, call in calls.items()}, inner=inner)
    return {
        "keys": keys,
        "difference": difference,
        "ms": times,
        "graphed_ms": graphs,
        "speedup": round(times["one_rank"] / times["sharded"], 3),
        "graphed_speedup": round(graphs["one_rank"] / graphs["sharded"], 3) if graphs else None,
        "one_rank_gbs": round(keys * KV_HEADS * DIM * 4 / times["one_rank"] / 1e6, 1),
    }


def _graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    graph = torch.cuda.CUDAGraph()
    call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


def _inputs(bench: Bench, length: int) -> list[Tensor]:
    heads = ((1, HEADS), (2, KV_HEADS), (3, KV_HEADS))
    return [bench.random(1, length, h, DIM, seed=seed) for seed, h in heads]


def main() -> None:
    options = arguments()
    bench = Bench(options)
    contexts, keys = options.contexts, options.decode_keys
    if options.small:
        contexts, keys = [256], 4096
    bench.item("correctness", lambda: correctness(bench))
    bench.item("decode", lambda: decode(bench, keys))
    for length in contexts:
        for causal in (True, False):
            bench.item("prefill", lambda n=length, c=causal: prefill(bench, n, c))
    for length in contexts:
        bench.item("forward and backward", lambda n=length: training(bench, n))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
