"""Decode over KV caches on an NVIDIA GPU: the Triton kernel's tiles against torch and FlashInfer.

Every row times all candidates in turns, as CUDA graphs over enough caches that the L2 holds none of
them from the last launch, and prints TB/s of K and V (bfloat16, head dim 128, one new query).
Every candidate's result is first compared with float64.

    python benchmarks/decode_gpu.py [--rows NAME ...] [--pages 0 16 64 256] [--tiles 64.3.2.4 ...]
                                    [--jobs 12] [--output FILE]

Tiles are block_n.stages.programs.warps; "default" is what the backend chooses. Pages of 0 keys are
the contiguous cache. --jobs compiles all kernels first, in that many processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.runtime.errors import TritonError

from portattn.backends.triton import decode
from portattn.cli.environment import record
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

Run = Callable[[], Tensor]

DIM = 128
DTYPE = torch.bfloat16
PAGES = (0, 16, 64, 256)
TILES = ("default", "64.3.2.4", "64.3.4.4", "64.3.1.8", "128.3.1.8", "32.6.2.4")
# Caches of one row together, in bytes: several times the largest L2.
COLD = 300e6
LAUNCHES = 3
ROUNDS = 9
# A result in bfloat16, from weights rounded to it, relative to the largest entry.
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Row:
    """Sequences of the given lengths."""

    name: str
    heads: int
    kv_heads: int
    lengths: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of the keys and values that one call reads."""
        return 2 * sum(self.lengths) * self.kv_heads * DIM * DTYPE.itemsize


def ragged(count: int, shortest: int, longest: int) -> tuple[int, ...]:
    draw = torch.rand(count, generator=torch.Generator().manual_seed(0))
    return tuple((shortest + draw * (longest - shortest)).int().tolist())


ROWS = (
    Row("B1 32/8 128K", 32, 8, (131072,)),
    Row("B1 32/8 512K", 32, 8, (524288,)),
    Row("B16 32/8 8K", 32, 8, (8192,) * 16),
    Row("B64 32/8 4K", 32, 8, (4096,) * 64),
    Row("B1 8/1 128K", 8, 1, (131072,)),
    Row("ragged 64, 1-64K, 32/8", 32, 8, ragged(64, 1024, 65536)),
)


@dataclass(frozen=True)
class Caches:
    """Copies of one row's cache, with the flat index of each sequence's keys in them."""

    row: Row
    page_size: int
    q: Tensor
    copies: list[tuple[Tensor, Tensor]]
    used: Tensor
    table: Tensor | None
    capacity: int

    def keys_of(self, b: int) -> Tensor:
        """Where the keys of sequence b lie, counted over the whole cache."""
        at = torch.arange(self.row.lengths[b], device="cuda")
        if self.table is None:
            return b * self.capacity + at
        page = self.table[b, at // self.page_size].long()
        return page * self.page_size + at % self.page_size


def caches(row: Row, page_size: int, capacity: int, most: int) -> Caches:
    """Random caches with room for `capacity` keys each, `most` copies at most."""
    batch = len(row.lengths)
    count = max(1, min(most, int(COLD // row.bytes) + 1))
    shape = (batch, capacity, row.kv_heads, DIM)
    table = None
    if page_size:
        pages = batch * capacity // page_size
        shape = (pages, page_size, row.kv_heads, DIM)
        table = torch.randperm(pages, device="cuda").to(torch.int32).view(batch, -1)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=DTYPE, device="cuda")

    return Caches(
        row,
        page_size,
        normal(batch, 1, row.heads, DIM),
        [(normal(*shape), normal(*shape)) for _ in range(count)],
        torch.tensor(row.lengths, dtype=torch.int32, device="cuda"),
        table,
        capacity,
    )


def reference(c: Caches) -> Tensor:
    """Attention over the first copy in float64, [B, 1, H, D], by chunks of keys."""
    k, v = (x.flatten(0, 1) for x in c.copies[0])
    group = c.row.heads // c.row.kv_heads
    outs = []
    for b in range(len(c.row.lengths)):
        q = c.q[b, 0].double().view(c.row.kv_heads, group, DIM)
        parts = []
        for at in c.keys_of(b).split(8192):
            s = torch.einsum("hgd,shd->hgs", q, k[at].double()) * DIM**-0.5
            weighted = torch.einsum("hgs,shd->hgd", s.softmax(-1), v[at].double())
            parts.append((s.logsumexp(-1), weighted))
        lse = torch.stack([part[0] for part in parts])
        weights = lse.softmax(0)[..., None]
        outs.append((torch.stack([part[1] for part in parts]) * weights).sum(0))
    return torch.stack(outs).view(c.q.shape)


def ours(c: Caches, tile: str) -> list[Run]:
    """The Triton kernel over each copy."""
    row = c.row
    config = {}
    if tile != "default":
        names = ("block_n", "stages", "programs", "warps")
        config = dict(zip(names, map(int, tile.split(".")), strict=True))
    problem = AttentionProblem(
        "decode", "cache", DTYPE, len(row.lengths), 1, c.capacity, row.heads, row.kv_heads,
        DIM, DIM, DIM**-0.5, page_size=c.page_size,
    )  # fmt: skip

    def run(k: Tensor, v: Tensor) -> Tensor:
        tensors = AttentionTensors(c.q, k, v, seqused_k=c.used, block_table=c.table)
        return decode.decode(tensors, problem, config)[0]

    return [partial(run, k, v) for k, v in c.copies]


def torch_sdpa(c: Caches, backend: SDPBackend) -> list[Run]:
    """torch's kernel over each copy; only where all sequences are as long as the cache."""

    def run(k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (c.q, k, v))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)

    return [partial(run, k, v) for k, v in c.copies]


def flashinfer(c: Caches) -> list[Run]:
    """FlashInfer's tensor-core decode over each copy, planned beforehand."""
    import flashinfer as library  # type: ignore[import-not-found]

    assert c.table is not None
    counts = [-(-n // c.page_size) for n in c.row.lengths]
    indptr = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32).cuda()
    indices = torch.cat([c.table[b, :n] for b, n in enumerate(counts)])
    last = ((c.used - 1) % c.page_size + 1).to(torch.int32)
    workspace = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    wrapper.plan(
        indptr, indices, last, c.row.heads, c.row.kv_heads, DIM, c.page_size,
        q_data_type=DTYPE, kv_data_type=DTYPE,
    )  # fmt: skip

    def run(k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = wrapper.run(c.q[:, 0], (k, v))
        return out[:, None]

    return [partial(run, k, v) for k, v in c.copies]


def candidates(c: Caches, tiles: list[str]) -> Iterator[tuple[str, Callable[[], list[Run]]]]:
    """Names, and what makes each one's calls."""
    if not c.page_size and set(c.row.lengths) == {c.capacity}:
        yield "FA2", partial(torch_sdpa, c, SDPBackend.FLASH_ATTENTION)
        yield "cuDNN", partial(torch_sdpa, c, SDPBackend.CUDNN_ATTENTION)
    if c.page_size:
        yield "FlashInfer", partial(flashinfer, c)
    for tile in tiles:
        yield tile, partial(ours, c, tile)


def captured(calls: list[Run]) -> torch.cuda.CUDAGraph:
    """Every call LAUNCHES times, in turns."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            for call in calls:
                call()
    return graph


def replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def measure(c: Caches, tiles: list[str]) -> dict[str, float | str]:
    """TB/s of each candidate, or why there is none."""
    exact = reference(c)
    graphs = {}
    found: dict[str, float | str] = {}
    for name, make in candidates(c, tiles):
        try:
            calls = make()
            error = float((calls[0]().double() - exact).abs().max() / exact.abs().max())
            if not error < TOLERANCE:
                found[name] = f"wrong by {error:.1g}"
                continue
            graphs[name] = captured(calls)
        except (TritonError, RuntimeError, ImportError) as failure:
            found[name] = f"{type(failure).__name__}: {failure}".splitlines()[0][:60]
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            seconds[name].append(replay_seconds(graph))
    total = c.row.bytes * len(c.copies) * LAUNCHES
    found |= {name: total / statistics.median(s) / 1e12 for name, s in seconds.items()}
    return found


def copy_ceiling() -> float:
    """TB/s, read and written, of a copy of 2 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    graph = captured([lambda: target.copy_(source)])
    total = 2 * source.numel() * LAUNCHES
    return total / statistics.median(replay_seconds(graph) for _ in range(ROUNDS)) / 1e12


def compile_share(share: str, tiles: list[str], pages: list[int]) -> None:
    """Compile the kernels whose number is k modulo n, share being "k/n".

    Short caches suffice that are said to be long: how many parts may have to be merged counts.
    """
    k, n = map(int, share.split("/"))
    shapes = {(row.heads, row.kv_heads, len(row.lengths)) for row in ROWS}
    every = [(shape, page, tile) for shape in sorted(shapes) for page in pages for tile in tiles]
    for (heads, kv_heads, batch), page, tile in every[k::n]:
        row = Row("short", heads, kv_heads, (4096,) * batch)
        try:
            ours(replace(caches(row, page, 4096, 1), capacity=131072), tile)[0]()
        except TritonError as failure:
            print(f"{tile}, pages of {page}: {failure}".splitlines()[0])


def compile_all(arguments: list[str], jobs: int) -> None:
    command = [sys.executable, __file__, *arguments]
    started = [subprocess.Popen([*command, "--share", f"{i}/{jobs}"]) for i in range(jobs)]
    if any(process.wait() for process in started):
        raise SystemExit("compiling failed")


def main() -> None:
    """Measure, print a line per row and page size, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=[], help="parts of rows' names")
    parser.add_argument("--pages", nargs="*", type=int, default=list(PAGES))
    parser.add_argument("--tiles", nargs="*", default=list(TILES))
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share:
        return compile_share(options.share, options.tiles, options.pages)
    if options.jobs:
        compile_all(sys.argv[1:], options.jobs)
    torch.manual_seed(0)
    results: dict[str, dict[str, float | str]] = {"copy": {"TB/s": copy_ceiling()}}
    print(f"copy {results['copy']['TB/s']:.2f} TB/s")
    for row in ROWS:
        if options.rows and not any(part in row.name for part in options.rows):
            continue
        for page_size in options.pages:
            name = f"{row.name}, pages of {page_size}" if page_size else row.name
            capacity = -(-max(row.lengths) // 256) * 256
            found = results[name] = measure(caches(row, page_size, capacity, 6), options.tiles)
            cells = (
                f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()
            )
            print(f"{name}: " + " | ".join(cells), flush=True)
            torch.cuda.empty_cache()
    if options.output is not None:
        text = json.dumps({**record(torch.device("cuda", 0)), "tb_per_s": results}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
