"""What only a GPU shows: graphs, streams, compilation, repetition, memory beyond 2^31 elements."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import portattn
from portattn.dispatch import device as devices
from portattn.dispatch import registry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GIB = 2**30
REPETITIONS = 250


def own() -> list[str]:
    """Our backends that run on this device; a vendor's promises are the vendor's."""
    if not torch.cuda.is_available():
        return []
    here = devices.of(torch.device("cuda"))
    found = {name: registry.load(name).capability for name in registry.names()}
    return [
        name
        for name, capability in found.items()
        if name != "reference"
        and "cuda" in capability.devices
        and "poison" in capability.promises_on("cuda")
        and here.family in (capability.families or {here.family})
    ]


OWN = pytest.mark.parametrize("backend", own())


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def cache_of(k: Tensor, v: Tensor) -> portattn.ContiguousKVCache:
    """A cache that k and v fill."""
    used = torch.full((len(k),), k.shape[1], dtype=torch.int32, device="cuda")
    return portattn.ContiguousKVCache.from_tensors(k, v, used, longest=k.shape[1])


def calls(backend: str) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """A forward with LSE, a deterministic backward and a decode over fixed tensors."""
    q, k, v = normal(2, 300, 8, 64), normal(2, 300, 2, 64), normal(2, 300, 2, 64)
    grad = torch.randn_like(q)
    cache = cache_of(k, v)

    def forward() -> tuple[Tensor, ...]:
        result = portattn.attention(q, k, v, causal=True, return_lse=True, backend=backend)
        return tuple(result)

    def backward() -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = portattn.attention(*leaves, causal=True, deterministic=True, backend=backend)
        return torch.autograd.grad(out, leaves, grad)

    def decode() -> tuple[Tensor, ...]:
        return (portattn.attention_with_kvcache(q[:, :1], cache, backend=backend),)

    return {"forward": forward, "backward": backward, "decode": decode}


def supported(backend: str) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    operations = registry.load(backend).capability.operations
    return {name: call for name, call in calls(backend).items() if name in operations}


@OWN
def test_repetitions_are_bit_identical(backend: str) -> None:
    for name, call in supported(backend).items():
        first = call()
        for _ in range(REPETITIONS - 1):
            assert all(map(torch.equal, first, call())), name


@OWN
def test_a_graph_replayed_100_times_gives_the_eager_bits(backend: str) -> None:
    for name, call in supported(backend).items():
        eager = call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        for _ in range(100):
            for tensor in captured:
                tensor.fill_(float("nan"))
            graph.replay()
            assert all(map(torch.equal, eager, captured)), name


@OWN
def test_a_graph_sees_lengths_that_grow(backend: str) -> None:
    """Decode captured once serves later steps: lengths are read on the device."""
    if "decode" not in registry.load(backend).capability.operations:
        pytest.skip(f"{backend} has no decode")
    q, k, v = normal(2, 1, 8, 64), normal(2, 512, 2, 64), normal(2, 512, 2, 64)
    used = torch.tensor([3, 7], dtype=torch.int32, device="cuda")
    cache = portattn.ContiguousKVCache.from_tensors(k, v, used)
    portattn.attention_with_kvcache(q, cache, backend=backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = portattn.attention_with_kvcache(q, cache, backend=backend)
    for lengths in ((5, 512), (400, 1)):
        cache.seqlens.copy_(torch.tensor(lengths))
        graph.replay()
        for b, length in enumerate(lengths):
            alone = portattn.attention(
                q[b : b + 1], k[b : b + 1, :length], v[b : b + 1, :length], backend="reference"
            )
            torch.testing.assert_close(out[b : b + 1], alone, atol=2e-2, rtol=2e-2)


@OWN
def test_other_streams(backend: str) -> None:
    """Work waits for what its own stream made, and for nothing else."""
    for name, call in supported(backend).items():
        expected = call()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = call()
        torch.cuda.current_stream().wait_stream(stream)
        assert all(map(torch.equal, expected, got)), name


@OWN
def test_compiles_without_a_graph_break(backend: str) -> None:
    q, k, v = normal(2, 300, 8, 64), normal(2, 300, 2, 64), normal(2, 300, 2, 64)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return portattn.attention(q, k, v, causal=True, backend=backend) * 1

    compiled = torch.compile(attend, fullgraph=True)
    assert torch.equal(compiled(q, k, v), attend(q, k, v))


@OWN
def test_more_than_2_to_the_31_elements(backend: str) -> None:
    """Keys beyond element 2^31 of a tensor: the last of them decide the answer."""
    if torch.cuda.mem_get_info()[0] < 24 * GIB:
        pytest.skip("needs 24 GiB of free device memory")
    heads, dim = 16, 128
    keys = 2**31 // (heads * dim) + 4096
    k = torch.zeros(1, keys, heads, dim, dtype=torch.bfloat16, device="cuda")
    v = torch.zeros_like(k)
    late = slice(keys - 64, keys)
    k[:, late], v[:, late] = normal(1, 64, heads, dim), normal(1, 64, heads, dim)
    # A score of at least 40 above the zeros' leaves them no weight.
    k[:, late] *= 40
    operations = registry.load(backend).capability.operations
    q = normal(1, 1, heads, dim)
    want = _in_chunks(q, k, v)
    if "forward" in operations:
        out = portattn.attention(q, k, v, backend=backend)
        torch.testing.assert_close(out.float(), want, atol=2e-2, rtol=2e-2)
    if "decode" in operations:
        cache = cache_of(k, v)
        out = portattn.attention_with_kvcache(q, cache, backend=backend)
        torch.testing.assert_close(out.float(), want, atol=2e-2, rtol=2e-2)


def _in_chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = []
    for start in range(0, k.shape[1], 131072):
        end = start + 131072
        s = torch.einsum("bqhd,bshd->bhqs", q.double(), k[:, start:end].double())
        s = s * q.shape[-1] ** -0.5
        o = torch.einsum("bhqs,bshd->bqhd", s.softmax(-1), v[:, start:end].double())
        parts.append((s.logsumexp(-1), o))
    weights = torch.stack([part[0] for part in parts]).softmax(0)
    outs = torch.stack([part[1] for part in parts])
    return (weights.transpose(-1, -2)[..., None] * outs).sum(0).float()


@OWN
def test_out_of_memory_is_torchs_error_and_leaves_nothing(backend: str) -> None:
    if "forward" not in registry.load(backend).capability.operations:
        pytest.skip(f"{backend} has no forward")
    # Large enough that it lies in a segment of its own, where no larger one is kept for reuse.
    gc.collect()
    torch.cuda.empty_cache()
    q = normal(1, 65536, 16, 64)
    portattn.attention(q, q, q, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    # Not what is reserved: the memory of graphs that are gone is given back when more is needed.
    torch.cuda.set_per_process_memory_fraction((before + 2**20) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            portattn.attention(q, q, q, backend=backend)
        assert torch.cuda.memory_allocated() == before
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert portattn.attention(q, q, q, backend=backend).isfinite().all()


@OWN
def test_every_device_of_a_process(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    q, k, v = normal(2, 300, 8, 64), normal(2, 300, 2, 64), normal(2, 300, 2, 64)
    first = portattn.attention(q, k, v, causal=True, backend=backend)
    second = portattn.attention(*(x.to("cuda:1") for x in (q, k, v)), causal=True, backend=backend)
    assert second.device == torch.device("cuda", 1)
    assert torch.equal(first, second.to("cuda:0"))
