"""AttentionProblem: one frozen description of a call, without tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

Operation = Literal["forward", "backward", "decode"]
Layout = Literal["dense", "varlen", "cache"]

OPERATIONS: tuple[Operation, ...] = ("forward", "backward", "decode")

# What a problem can ask for beyond plain attention; backends declare which of these they have.
FEATURES = (
    "causal",
    "window",
    "softcap",
    "alibi",
    "bias",
    "bias_grad",
    "mask",
    "sinks",
    "gqa",
    "head_dim_v",
    "dropout",
    "deterministic",
    "lse_grad",
    "paged",
    "leftpad",
    "strided",
    "kv_scale",
)


@dataclass(frozen=True)
class AttentionProblem:
    """Everything a backend needs to know to say whether it can run a call.

    Layouts: "dense" is [B, S, H, D]; "varlen" is [T, H, D] with cumulative lengths; "cache" is
    dense queries against a KV cache with one length per sequence. `page_size` is 0 unless K and V
    are pages [P, page_size, Hkv, D] addressed by a block table.
    """

    operation: Operation
    layout: Layout
    dtype: torch.dtype
    batch: int
    seqlen_q: int  # the longest, where lengths differ
    seqlen_k: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    softmax_scale: float
    kv_dtype: torch.dtype | None = None  # None: the dtype of q
    causal: bool = False
    window: tuple[int, int] = (-1, -1)  # (left, right) in keys, -1 is unbounded
    softcap: float = 0.0
    alibi: bool = False
    bias: bool = False
    bias_grad: bool = False
    mask: bool = False
    sinks: bool = False
    dropout_p: float = 0.0
    deterministic: bool = False
    lse_grad: bool = False  # backward also gets a gradient of lse
    page_size: int = 0
    leftpad: bool = False
    kv_scale: bool = False  # keys and values are stored numbers times scales
    unit_stride: bool = True  # the last dimension of q, k and v is contiguous
    aligned: bool = True  # q, k and v begin and step at multiples of 16 bytes, and step on
    full_size_mask: bool = True  # bias and mask, where given, have both Sq and Sk dimensions
    total_q: int | None = None  # query rows of all sequences, "varlen" only
    total_k: int | None = None

    @cached_property
    def features(self) -> frozenset[str]:
        """The names from FEATURES that this problem needs."""
        has = {
            "causal": self.causal,
            "window": self.window[0] >= 0 or (self.window[1] >= 0 and not self.causal),
            "softcap": self.softcap != 0.0,
            "alibi": self.alibi,
            "bias": self.bias,
            "bias_grad": self.bias_grad,
            "mask": self.mask,
            "sinks": self.sinks,
            "gqa": self.heads != self.kv_heads,
            "head_dim_v": self.head_dim != self.head_dim_v,
            "dropout": self.dropout_p > 0.0,
            "deterministic": self.deterministic,
            "lse_grad": self.lse_grad,
            "paged": self.page_size > 0,
            "leftpad": self.leftpad,
            "strided": not self.unit_stride,
            "kv_scale": self.kv_scale,
        }
        return frozenset(name for name, present in has.items() if present)

    @property
    def rows(self) -> int:
        """Query rows per head over the whole batch."""
        return self.total_q if self.total_q is not None else self.batch * self.seqlen_q

    @property
    def keys(self) -> int:
        """Keys per kv head over the whole batch."""
        return self.total_k if self.total_k is not None else self.batch * self.seqlen_k

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        dims = (
            f"{self.head_dim}"
            if self.head_dim == self.head_dim_v
            else f"{self.head_dim}/{self.head_dim_v}"
        )
        extras = sorted(self.features - {"gqa", "head_dim_v"})
        if self.kv_dtype is not None:
            name += f" over {str(self.kv_dtype).removeprefix('torch.')}"
        return (
            f"{self.layout} {self.operation}, {name}, batch {self.batch}, "
            f"seqlen {self.seqlen_q} x {self.seqlen_k}, heads {heads}, head_dim {dims}"
            + (f", {', '.join(extras)}" if extras else "")
        )
