"""The problems that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from portattn.cli.options import dtype_of

Operation = Literal["forward", "backward", "decode"]
PeerLayout = Literal["bshd", "bhsd"]

# Matrix products per pair of query and key: QK' and PV; their four gradients and QK' once more.
_PRODUCTS = {"forward": 2.0, "backward": 5.0, "decode": 2.0}


@dataclass(frozen=True)
class Case:
    """One problem: decode has `queries` a sequence, the others as many as keys.

    `lengths` are the keys of each sequence where they differ (seqlen is then the longest); forward
    and backward of such a batch are packed. `page_size` is 0 unless K and V lie in pages.
    """

    operation: Operation
    dtype: str
    batch: int
    seqlen: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    lengths: tuple[int, ...] = ()
    page_size: int = 0
    queries: int = 1
    suite: str = ""
    label: str = ""  # names a mix of lengths

    @property
    def seqlen_q(self) -> int:
        """Queries of the longest sequence."""
        return self.queries if self.operation == "decode" else self.seqlen

    @property
    def masked(self) -> bool:
        """Whether the causal mask hides anything: the newest query sees every key."""
        return self.causal and self.seqlen_q > 1

    @property
    def key_counts(self) -> tuple[int, ...]:
        """Keys of every sequence."""
        return self.lengths or (self.seqlen,) * self.batch

    @property
    def flops(self) -> float:
        """Arithmetic of the products; half of it under a causal mask over as many keys."""
        pairs = sum(self._pairs(keys) for keys in self.key_counts)
        return 2.0 * _PRODUCTS[self.operation] * pairs * self.heads * self.head_dim

    def _pairs(self, keys: int) -> float:
        queries = self.queries if self.operation == "decode" else keys
        if not self.masked:
            return float(queries * keys)
        return keys * keys / 2 if queries == keys else queries * (keys - (queries - 1) / 2)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V, which a decode step reads once."""
        elements = 2 * sum(self.key_counts) * self.kv_heads * self.head_dim
        return elements * dtype_of(self.dtype).itemsize

    @property
    def size(self) -> str:
        """Batch and length, or the name of the mix."""
        lengths = self.label or f"B{self.batch} S{self.seqlen}"
        return f"{lengths} Q{self.queries}" if self.queries > 1 else lengths

    @property
    def family(self) -> str:
        """What cases that differ only in batch and lengths have in common."""
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        packed = " packed" if self.lengths and self.operation != "decode" else ""
        pages = f" page {self.page_size}" if self.page_size else ""
        mask = " causal" if self.causal else ""
        return f"{self.operation}{packed}{pages} {self.dtype} H{heads} D{self.head_dim}{mask}"

    def __str__(self) -> str:
        operation, rest = self.family.split(" ", 1)
        return f"{operation} {self.size} {rest}"


def grid(
    operations: Sequence[Operation],
    dtypes: Sequence[str],
    batch: int,
    seqlens: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dims: Sequence[int],
    causal: bool,
) -> list[Case]:
    """Every combination, longest sequences last."""
    return [
        Case(operation, dtype, batch, seqlen, heads, kv_heads, head_dim, causal)
        for operation, dtype, head_dim, seqlen in product(
            operations, dtypes, head_dims, sorted(seqlens)
        )
    ]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh random q [B, Sq, H, D], k and v [B, S, Hkv, D].

    Where lengths differ, k and v (and q, but for decode) are [1, T, H, D], sequence after sequence.
    """

    def random(batch: int, seqlen: int, heads: int) -> Tensor:
        shape = (batch, seqlen, heads, case.head_dim)
        return torch.randn(shape, dtype=dtype_of(case.dtype), device=device)

    keys = (1, sum(case.lengths)) if case.lengths else (case.batch, case.seqlen)
    queries = (case.batch, case.queries) if case.operation == "decode" else keys
    return (
        random(*queries, case.heads),
        random(*keys, case.kv_heads),
        random(*keys, case.kv_heads),
    )


def laid_out(tensors: Sequence[Tensor], layout: PeerLayout) -> list[Tensor]:
    """The same values, contiguous in the layout a peer is made for."""
    if layout == "bshd":
        return [tensor.contiguous() for tensor in tensors]
    return [tensor.transpose(1, 2).contiguous() for tensor in tensors]
