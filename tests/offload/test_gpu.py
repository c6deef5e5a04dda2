"""Cooperative decoding with a CUDA device: streams, events and page-locked memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import portattn
from portattn.offload import HostKVStore, OffloadEngine, Share, coop_decode
from portattn.offload.link import CudaLink, Event

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CUDA = torch.device("cuda")
SHARES = {
    "cpu": Share(0, 1, 0),
    "stream": Share(0, 0, 1),
    "half": Share(0, 0.5, 0.5),
    "third": Share(0, 0.7, 0.3),
}
HEADS, KV_HEADS, DIM, LAYERS = 8, 2, 128, 3


def make_store(**options: Any) -> HostKVStore:
    usual: dict[str, Any] = {
        "batch": 1, "dtype": torch.bfloat16, "device": CUDA, "page_size": 32, "flush_tokens": 64,
        "limit_bytes": 2**27,
    }  # fmt: skip
    usual |= options
    return HostKVStore(LAYERS, usual.pop("batch"), KV_HEADS, DIM, **usual)


def run(
    store: HostKVStore,
    share: Share,
    chunks: tuple[int, ...] = (700, 1, 1, 5, 90, 1, 1, 1),
    leftpad: Tensor | None = None,
) -> float:
    """The largest error of steps of all layers against float64 attention over the whole."""
    held: list[list[Tensor]] = [[] for _ in range(2 * LAYERS)]
    found: list[tuple[Tensor, Tensor]] = []
    pads = {} if leftpad is None else {"leftpad": leftpad}
    with OffloadEngine(store, share, timeout=60) as engine:
        for rows in chunks:
            for layer in range(LAYERS):
                q, k, v = (
                    torch.randn(store.batch, rows, heads, DIM, device=CUDA, dtype=store.dtype)
                    for heads in (HEADS, KV_HEADS, KV_HEADS)
                )
                out = coop_decode(q, store, k, v, layer=layer, engine=engine, **pads)
                assert isinstance(out, Tensor)
                for which, new in enumerate((k, v)):
                    held[2 * layer + which].append(new)
                whole = [torch.cat(kept, dim=1).double() for kept in held[2 * layer :][:2]]
                mask = None
                if leftpad is not None:
                    places = torch.arange(whole[0].shape[1], device=CUDA)
                    mask = (places >= leftpad.to(CUDA)[:, None])[:, None, None]
                want = portattn.attention(
                    q.double(), *whole, causal=True, mask=mask, backend="reference"
                )
                found.append((out, want))  # compared later: nothing here waits for the device
    # Absolute where the output is small, relative where it isn't.
    return max(float(((out.double() - want).abs() / (1 + want.abs())).max()) for out, want in found)


# Of bfloat16 outputs around 1 and below: two roundings of 2^-8, and the probabilities' own.
CLOSE = 0.02


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("device_tokens", [0, 100, 10_000])
def test_any_division_is_the_attention_of_the_whole(share: Share, device_tokens: int) -> None:
    store = make_store(device_tokens=device_tokens)
    assert run(store, share) < CLOSE
    assert store.unpinned is None
    assert (store.parts(0)[1] > 0) == (device_tokens < 10_000)
    store.close()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "float8"])
def test_rounded_pages(dtype: torch.dtype) -> None:
    store = make_store(host_dtype=dtype, device_tokens=50)
    # Each key and value is off by that part of its page's largest, some 4; outputs average them.
    assert run(store, SHARES["half"]) < 4 * max(store.rounding_error) + CLOSE
    assert min(store.rounding_error) > 1e-3
    assert max(store.rounding_error) < (0.02 if dtype == torch.int8 else 0.04)


@pytest.mark.parametrize("share", [SHARES["cpu"], SHARES["half"]], ids=["cpu", "half"])
def test_ragged_batches(share: Share) -> None:
    pads = torch.tensor([0, 40, 3, 650], dtype=torch.int32)
    assert run(make_store(batch=4, device_tokens=50), share, leftpad=pads) < CLOSE


class SlowLink(CudaLink):
    """Every copy begins a millisecond late; without `waits` the computation doesn't wait for it."""

    waits = True

    def _copy(
        self, stream: torch.cuda.Stream, target: Tensor, source: Tensor, on_device: Tensor
    ) -> Event:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(3_000_000)
        return super()._copy(stream, target, source, on_device)

    def before_computation(self, event: Event) -> None:
        if self.waits:
            super().before_computation(event)


@pytest.fixture
def slow() -> Iterator[SlowLink]:
    link = SlowLink(CUDA)
    yield link
    torch.cuda.synchronize()


CHUNKS = (300, 1, 1, 1)


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_late_copies_change_nothing(share: Share, slow: SlowLink) -> None:
    assert run(make_store(link=slow), share, CHUNKS) < CLOSE


@pytest.mark.parametrize("share", [SHARES["cpu"], SHARES["stream"]], ids=["cpu", "stream"])
def test_a_missing_wait_would_show(share: Share, slow: SlowLink) -> None:
    slow.waits = False
    assert not run(make_store(link=slow), share, CHUNKS) < CLOSE


def test_refused_pinning_is_right_and_said() -> None:
    class Refusing(CudaLink):
        def register(self, address: int, size: int) -> str | None:
            return "refused"

    store = make_store(link=Refusing(CUDA))
    assert run(store, SHARES["half"], CHUNKS) < CLOSE
    assert store.unpinned == "refused"


def test_the_drivers_refusal_leaves_no_error_behind() -> None:
    link, size = CudaLink(CUDA), 2**16
    memory = torch.empty(2 * size, dtype=torch.uint8)
    address = -(-memory.data_ptr() // 4096) * 4096
    assert link.register(address, size) is None
    assert "cuMemHostRegister" in (link.register(address, size) or "")
    assert float(torch.ones(8, device=CUDA).sum()) == 8
    link.unregister(address)
    assert link.register(address, size) is None
    link.unregister(address)


def test_memory_comes_back() -> None:
    run(make_store(), SHARES["half"])
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        run(make_store(), SHARES["half"])  # not closed: going out of scope must do
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_generate_gives_the_tokens_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without shares the machine's rates are measured, and kept here.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    transformers = pytest.importorskip("transformers")
    from portattn.integrations.transformers import register

    register()
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
        attn_implementation="portattn",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(CUDA).eval()
    ids = torch.randint(0, 64, (2, 90), device=CUDA)
    asked: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "use_cache": True}
    want = model.generate(ids, **asked)
    for share in (None, *SHARES.values()):
        cache = portattn.HostOffloadCache(
            config, device_kv_bytes=2**13, host_kv_bytes=2**26, page_size=16, flush_tokens=16,
            shares=share,
        )  # fmt: skip
        assert torch.equal(model.generate(ids, past_key_values=cache, **asked), want)
        assert cache.store.parts(0)[1] > 0 and cache.engine.metrics.materialisations == 0
        cache.close()
