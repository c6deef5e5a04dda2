"""Cooperative decoding of an 8B model's attention on one CUDA device, against its baselines.

    python benchmarks/offload_gpu.py --contexts 128K 512K 1M --out offload-gpu.json

Per context: milliseconds per token over all layers, attention and its cache alone, for the
planner's split, the CPU and the link without each other, to --alone-to all keys on the host and
all on the device, a chunk of a prefill at the full length, and, to 256K, transformers' offloaded
cache; beside each, what the model predicts from bandwidths measured in the same process. Keys are
random, and one layer's output is compared with attention computed in chunks. Everything is written
to --out after each item; an item that fails is written with its error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import portattn
from portattn.backends.cpu import library
from portattn.dispatch import device as devices
from portattn.offload import HostKVStore, OffloadEngine, Share, coop_decode, memory, planner
from portattn.offload.planner import SHAPES, Machine

SHAPE = SHAPES["llama-3-8b"]
CHUNK = 16384
ITEM_MS = 6000.0  # no more steps of an item after this
PREFILL = 4096
CUDA = torch.device("cuda")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", nargs="+", default=["128K", "512K", "1M"])
    parser.add_argument("--layers", type=int, default=SHAPE.layers)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device-gb", type=float, default=50.0, help="for keys and values")
    parser.add_argument("--host-gb", type=float, default=100.0)
    parser.add_argument("--resident", type=float, default=1.0, help="at most this part on the GPU")
    parser.add_argument("--alone-to", default="128K", help="longest with all keys on one side")
    parser.add_argument("--baseline-layers", type=int, default=8, help="of transformers' cache")
    parser.add_argument("--seconds", type=float, default=140.0, help="start nothing after that")
    parser.add_argument("--out", type=Path, default=Path("offload-gpu.json"))
    return parser.parse_args()


def tokens(text: str) -> int:
    units = {"K": 2**10, "M": 2**20}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def filled(
    context: int,
    layers: int,
    device_tokens: int,
    host_bytes: int,
    host_dtype: torch.dtype | None = None,
) -> HostKVStore:
    """A store of random keys; the values of one chunk are repeated, rotated by a token a time."""
    store = HostKVStore(
        layers, 1, SHAPE.kv_heads, SHAPE.head_dim, dtype=torch.bfloat16, device=CUDA,
        device_tokens=device_tokens, page_size=256, limit_bytes=host_bytes,
        reserve_tokens=context + 4 * PREFILL, host_dtype=host_dtype,
    )  # fmt: skip
    chunk = torch.randn(1, CHUNK, SHAPE.kv_heads, SHAPE.head_dim, dtype=torch.bfloat16, device=CUDA)
    for start in range(0, context, CHUNK):
        count = min(CHUNK, context - start)
        new = chunk.roll(start // CHUNK, dims=1)[:, :count]
        for layer in range(layers):
            store.append(layer, new, new)
    return store


def step_ms(store: HostKVStore, share: Share, steps: int) -> dict[str, Any]:
    """Milliseconds per token of all layers, the median of some after a warm-up."""
    q = torch.randn(1, 1, SHAPE.heads, SHAPE.head_dim, dtype=torch.bfloat16, device=CUDA)
    new = torch.randn(1, 1, SHAPE.kv_heads, SHAPE.head_dim, dtype=torch.bfloat16, device=CUDA)
    times = []
    with OffloadEngine(store, share, timeout=60) as engine:
        for index in range(steps + 2):
            if index == 2:
                engine.metrics.clear()
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for layer in range(store.layers):
                coop_decode(q, store, new, new, layer=layer, engine=engine)
            torch.cuda.synchronize()
            times.append((time.perf_counter() - begun) * 1e3)
            if index >= 3 and sum(times) > ITEM_MS:
                break
        facts = engine.metrics.as_dict()
    return {"ms": statistics.median(times[2:]), "all_ms": times[2:], "metrics": facts}


def prefill_chunk(store: HostKVStore) -> dict[str, Any]:
    """Seconds for one more chunk of a prefill in all layers; the store is as before after it."""
    length = store.length()
    q, k, v = (
        torch.randn(1, PREFILL, heads, SHAPE.head_dim, dtype=torch.bfloat16, device=CUDA)
        for heads in (SHAPE.heads, SHAPE.kv_heads, SHAPE.kv_heads)
    )
    with OffloadEngine(store, Share(0, 0, 1)) as engine:
        coop_decode(q, store, k, v, layer=0, engine=engine)  # what is compiled is compiled here
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for layer in range(1, store.layers):
            coop_decode(q, store, k, v, layer=layer, engine=engine)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - begun) * store.layers / (store.layers - 1)
        facts = engine.metrics.as_dict()
    store.crop(length)
    flops = 4 * SHAPE.heads * SHAPE.head_dim * PREFILL * length * store.layers
    return {"rows": PREFILL, "seconds": seconds, "tflops": flops / seconds / 1e12,
            "metrics": facts}  # fmt: skip


def raw_rates() -> dict[str, float]:
    """1e9 bytes/s of plain copies of page-locked memory, and of torch's sum of host memory."""
    there = torch.randn(2**28, device=CUDA)
    host = torch.empty(2**28, pin_memory=True).copy_(there)

    def rate(call: Callable[[], object], factor: int = 1) -> float:
        times = []
        for _ in range(6):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        return factor * host.nbytes / statistics.median(times[1:]) / 1e9

    def both() -> None:
        there.copy_(host, non_blocking=True)
        host.sum()

    return {
        "to_device": rate(lambda: there.copy_(host, non_blocking=True)),
        "to_host": rate(lambda: host.copy_(there, non_blocking=True)),
        "host_sum": rate(host.sum),
        "both_at_once": rate(both, 2),
    }


def error_of(store: HostKVStore) -> float:
    """The largest difference of one layer's output from attention computed chunk by chunk."""
    q = torch.randn(1, 1, SHAPE.heads, SHAPE.head_dim, dtype=torch.bfloat16, device=CUDA)
    with OffloadEngine(store, Share(0, 0.7, 0.3)) as engine:
        out, _ = engine.attend(0, q)
    _, host, _ = store.parts(0)
    k, v = store.resident(0)
    state = portattn.attention(q, k, v, return_lse=True)
    pages_k, pages_v, table, _ = store.hosted(0)
    torch.cuda.synchronize()
    for first in range(0, host // store.page_size, 64):
        ids = table[0, first : first + 64].long()
        part = [plane[ids].flatten(0, 1)[None].to(CUDA) for plane in (pages_k, pages_v)]
        state = portattn.merge_states(
            *(t.float() for t in state), *portattn.attention(q.float(), part[0].float(),
                                                             part[1].float(), return_lse=True)
        )  # fmt: skip
    return float((out.float() - state[0].float()).abs().max())


def machine(args: argparse.Namespace) -> tuple[Machine, dict[str, float]]:
    """Bandwidths as the engines see them: the CPU's kernel alone, the link alone, both at once."""
    size = 16 * 16384
    store = filled(size, 2, 0, 8 * 2**30)
    moved = 2 * size * SHAPE.token_bytes / 1e9
    rates = {}
    for name, share in (("cpu", Share(0, 1, 0)), ("link", Share(0, 0, 1))):
        rates[name] = moved / step_ms(store, share, 5)["ms"] * 1e3
    both = rates["cpu"] / (rates["cpu"] + rates["link"])
    rates["together"] = moved / step_ms(store, Share(0, both, 1 - both), 5)["ms"] * 1e3
    resident = filled(size, 2, size + 4096, 2**30)
    rates["device"] = moved / step_ms(resident, Share(0, 1, 0), 5)["ms"] * 1e3
    store.close()
    return Machine(
        torch.cuda.get_device_name(), rates["device"], rates["cpu"], rates["link"],
        max(rates["together"], rates["cpu"]), int(args.device_gb * 1e9), int(args.host_gb * 1e9),
        source="measured in this process",
    ), rates  # fmt: skip


def offloaded_ms(context: int, layers: int, steps: int) -> dict[str, Any]:
    """transformers' own: the whole layer to the device, one token appended, the whole back."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(offloading=True)
    shape = (1, SHAPE.kv_heads, context, SHAPE.head_dim)
    for layer in range(layers):
        k = torch.randn(shape, dtype=torch.bfloat16, device=CUDA)
        cache.update(k, k, layer)
    q = torch.randn(1, SHAPE.heads, 1, SHAPE.head_dim, dtype=torch.bfloat16, device=CUDA)
    new = torch.randn(1, SHAPE.kv_heads, 1, SHAPE.head_dim, dtype=torch.bfloat16, device=CUDA)
    times = []
    for _ in range(steps + 1):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for layer in range(layers):
            k, v = cache.update(new, new, layer)
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) * 1e3)
    return {"ms": statistics.median(times[1:]), "all_ms": times[1:]}


def main() -> None:
    args, begun = arguments(), time.monotonic()
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cpu_library": library.variant(found) if (found := library.load()) else "none",
        "host": str(devices.of(torch.device("cpu"))),
        "threads": torch.get_num_threads(),
        "host_available_gb": memory.available_bytes()[0] / 1e9,
        "layers": args.layers,
        "items": [],
    }

    def item(name: str, call: Callable[[], dict[str, Any]], **facts: Any) -> None:
        entry = {"name": name, **facts}
        if time.monotonic() - begun > args.seconds:
            entry["skipped"] = "no time left"
        else:
            try:
                entry |= call()
            except Exception as error:  # the others must still be measured
                entry["error"] = f"{type(error).__name__}: {error}"[:500]
        result["items"].append(entry)
        args.out.write_text(json.dumps(result, indent=1, default=str))
        print({key: value for key, value in entry.items() if key not in ("metrics", "all_ms")})

    here, result["measured_gbs"] = machine(args)
    item("raw rates", raw_rates)
    item("step of few keys", lambda: step_ms(filled(4096, args.layers, 0, 2**30),
                                             Share(0, 1, 0), 20))  # fmt: skip
    print(result["measured_gbs"])
    for context in map(tokens, args.contexts):
        measure(context, here, args, item)
    result["peak_device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    args.out.write_text(json.dumps(result, indent=1, default=str))


def measure(context: int, here: Machine, args: argparse.Namespace, item: Any) -> None:
    per_token = args.layers * SHAPE.token_bytes
    device_tokens = int(args.device_gb * 1e9) // per_token
    fits = min(args.resident, device_tokens / context)
    chosen = {
        "three-way": planner.balanced(here, fits, streams=True),
        "split": planner.balanced(here, fits, streams=False),
        "stream": Share(fits, 0.0, 1.0 - fits),
    }
    # The store must hold back what the fastest plan leaves to the host.
    resident = int(chosen["three-way"].resident * context)
    store: HostKVStore | None = None

    def fill() -> dict[str, Any]:
        nonlocal store
        start = time.monotonic()
        store = filled(context, args.layers, resident, int(args.host_gb * 1e9))
        return {
            "seconds": time.monotonic() - start,
            "host_gb": store.host_bytes / 1e9,
            "unpinned": store.unpinned,
        }

    item("fill", fill, context=context)
    if store is not None:
        held = store
        item("error", lambda: {"max": error_of(held)}, context=context)
        for name, share in chosen.items():
            size = context * SHAPE.token_bytes / 1e9
            predicted = args.layers * max(planner._times(share, size, here)) * 1e3
            item(name, lambda share=share: step_ms(held, share, args.steps), context=context,
                 modelled_ms=predicted, shares=share)  # fmt: skip
        item("prefill chunk", lambda: prefill_chunk(held), context=context)
        held.close()
        del held
    store = None
    torch.cuda.empty_cache()
    size = context * per_token / 1e9
    if context <= tokens(args.alone_to) and size < args.host_gb:
        item("all-CPU", lambda: alone(context, args, 0), context=context,
             modelled_ms=size / here.compute_gbs * 1e3)  # fmt: skip
    if context <= tokens(args.alone_to) and size < args.device_gb:
        item("all-GPU", lambda: alone(context, args, context + 4096), context=context,
             modelled_ms=size / here.device_gbs * 1e3)  # fmt: skip
    if context <= tokens(args.alone_to):
        item("three-way int8", lambda: rounded(context, args, resident, chosen["three-way"]),
             context=context, shares=chosen["three-way"])  # fmt: skip
    if context <= 2**18:
        layers = min(args.layers, args.baseline_layers)
        item("transformers", lambda: offloaded_ms(context, layers, 2), context=context,
             layers=layers)  # fmt: skip
    torch.cuda.empty_cache()


def alone(context: int, args: argparse.Namespace, device_tokens: int) -> dict[str, Any]:
    store = filled(context, args.layers, device_tokens, int(args.host_gb * 1e9))
    try:
        return step_ms(store, Share(0, 1, 0), args.steps)
    finally:
        store.close()


def rounded(
    context: int, args: argparse.Namespace, device_tokens: int, share: Share
) -> dict[str, Any]:
    size = int(args.host_gb * 1e9)
    store = filled(context, args.layers, device_tokens, size, torch.int8)
    try:
        return {**step_ms(store, share, args.steps), "rounding_error": store.rounding_error}
    finally:
        store.close()


if __name__ == "__main__":
    main()
