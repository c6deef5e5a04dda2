"""The rows that every release is measured on, by suite."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product

from portattn.cli.bench.grid import Case, Operation

_K = 1024

# (batch, keys, heads, kv heads)
_DECODE = (
    (1, 128 * _K, 32, 8),
    (1, 512 * _K, 32, 8),
    (16, 8 * _K, 32, 8),
    (64, 4 * _K, 32, 8),
    (1, 128 * _K, 8, 1),
)
_PAGE_SIZES = (16, 64, 256)
# Latent video models attend over all frames at once: heads and head_dim of such models.
_VIDEO = ((30, 64), (24, 128))


def names() -> tuple[str, ...]:
    """All suites."""
    return tuple(_SUITES)


def cases(suite: str) -> list[Case]:
    """The rows of one suite, in bfloat16."""
    return _SUITES[suite]()


def _square(operation: Operation) -> list[Case]:
    """16384 tokens and 2048 query channels in every row."""
    rows = [
        (dim, causal, seqlen)
        for dim, causal, seqlen in product((64, 128, 256), (False, True), (_K, 4 * _K, 16 * _K))
        if dim < 256 or seqlen > _K
    ]
    return [
        Case(
            operation,
            "bfloat16",
            16 * _K // seqlen,
            seqlen,
            2048 // dim,
            2048 // dim,
            dim,
            causal,
            suite=operation,
        )
        for dim, causal, seqlen in rows
    ]


def _decode() -> list[Case]:
    return [
        Case("decode", "bfloat16", batch, seqlen, heads, kv_heads, 128, False, suite="decode")
        for batch, seqlen, heads, kv_heads in _DECODE
    ]


def _paged() -> list[Case]:
    return [
        Case(
            "decode",
            "bfloat16",
            batch,
            seqlen,
            heads,
            kv_heads,
            128,
            False,
            page_size=page_size,
            suite="paged",
        )
        for page_size in _PAGE_SIZES
        for batch, seqlen, heads, kv_heads in _DECODE
    ]


def _ragged() -> list[Case]:
    lengths = _uniform(64, 1, 64 * _K - 1)
    return [
        _mix("decode", "ragged", f"64 ragged 1-{64}K", lengths, page_size=page_size)
        for page_size in _PAGE_SIZES
    ]


def _varlen() -> list[Case]:
    """Packed training batches: lengths of documents, and one long among many short."""
    mixes = {
        "64 documents 64-4K": _log_uniform(64, 64, 4 * _K),
        "one 16K, 32 of 512": (16 * _K, *[512] * 32),
    }
    operations: tuple[Operation, ...] = ("forward", "backward")
    return [
        _mix(operation, "varlen", label, lengths, causal=True)
        for operation in operations
        for label, lengths in mixes.items()
    ]


def _serving() -> list[Case]:
    """Steps of a server over pages of 16: decode, verification of drafts, chunked prefill."""
    return [
        _mix(
            "decode", "serving", "128 chats 256-16K", _log_uniform(128, 256, 16 * _K), page_size=16
        ),
        _mix(
            "decode",
            "serving",
            "32 drafts 1K-32K",
            _log_uniform(32, _K, 32 * _K),
            page_size=16,
            causal=True,
            queries=4,
        ),
        _mix(
            "decode",
            "serving",
            "8 chunks 2K-32K",
            _log_uniform(8, 2 * _K, 32 * _K),
            page_size=16,
            causal=True,
            queries=512,
        ),
    ]


def _diffusion() -> list[Case]:
    return [
        Case("forward", "bfloat16", 1, seqlen, heads, heads, dim, False, suite="diffusion")
        for heads, dim in _VIDEO
        for seqlen in (32 * _K, 64 * _K, 128 * _K)
    ]


_SUITES = {
    "forward": lambda: _square("forward"),
    "backward": lambda: _square("backward"),
    "decode": _decode,
    "paged": _paged,
    "ragged": _ragged,
    "varlen": _varlen,
    "serving": _serving,
    "diffusion": _diffusion,
}


def _mix(
    operation: Operation,
    suite: str,
    label: str,
    lengths: Sequence[int],
    *,
    causal: bool = False,
    page_size: int = 0,
    queries: int = 1,
) -> Case:
    return Case(
        operation,
        "bfloat16",
        len(lengths),
        max(lengths),
        32,
        8,
        128,
        causal,
        tuple(lengths),
        page_size,
        queries,
        suite,
        label,
    )


def _uniform(count: int, low: int, high: int) -> tuple[int, ...]:
    """The same lengths in every run."""
    source = random.Random(1)
    return tuple(source.randint(low, high) for _ in range(count))


def _log_uniform(count: int, low: int, high: int) -> tuple[int, ...]:
    source = random.Random(1)
    return tuple(
        round(math.exp(source.uniform(math.log(low), math.log(high)))) for _ in range(count)
    )
