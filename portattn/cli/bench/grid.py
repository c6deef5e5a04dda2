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
    """One problem: decode has one query a sequence, the others as many as keys."""

    operation: Operation
    dtype: str
    batch: int
    seqlen: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool

    @property
    def seqlen_q(self) -> int:
        """Queries of one sequence."""
        return 1 if self.operation == "decode" else self.seqlen

    @property
    def masked(self) -> bool:
        """Whether the causal mask hides anything: the newest query sees every key."""
        return self.causal and self.operation != "decode"

    @property
    def flops(self) -> float:
        """Arithmetic of the products; half of it under a causal mask."""
        pairs = self.batch * self.heads * self.seqlen_q * self.seqlen
        whole = 2.0 * _PRODUCTS[self.operation] * pairs * self.head_dim
        return whole / 2 if self.masked else whole

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V, which a decode step reads once."""
        elements = 2 * self.batch * self.seqlen * self.kv_heads * self.head_dim
        return elements * dtype_of(self.dtype).itemsize

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        mask = " causal" if self.causal else ""
        return (
            f"{self.operation} {self.dtype} B{self.batch} S{self.seqlen} H{heads} "
            f"D{self.head_dim}{mask}"
        )


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
    """Fresh random q [B, Sq, H, D], k and v [B, S, Hkv, D]."""

    def random(seqlen: int, heads: int) -> Tensor:
        shape = (case.batch, seqlen, heads, case.head_dim)
        return torch.randn(shape, dtype=dtype_of(case.dtype), device=device)

    return (
        random(case.seqlen_q, case.heads),
        random(case.seqlen, case.kv_heads),
        random(case.seqlen, case.kv_heads),
    )


def laid_out(tensors: Sequence[Tensor], layout: PeerLayout) -> list[Tensor]:
    """The same values, contiguous in the layout a peer is made for."""
    if layout == "bshd":
        return [tensor.contiguous() for tensor in tensors]
    return [tensor.transpose(1, 2).contiguous() for tensor in tensors]
