"""Which problems are measured, and the class of problems that each of them stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem, Layout, Operation
from portattn.dispatch.profile_schema import When
from portattn.errors import ArgumentError

# Architectures whose matrix units lack bfloat16.
_WITHOUT_BFLOAT16 = frozenset({"sm_70", "sm_72", "sm_75"})
_HEAD_DIMS = {64: {"max": 64}, 128: {"min": 65, "max": 128}, 256: {"min": 129, "max": 256}}


@dataclass(frozen=True)
class Target:
    """A problem to measure and the conditions of the rules that it decides.

    `kindred` are classes that take the same configuration unmeasured: float16 that of bfloat16,
    packed sequences that of dense ones.
    `name` is words joined by "-", any of which select it.
    """

    name: str
    problem: AttentionProblem
    when: When
    kindred: tuple[When, ...] = ()


@dataclass(frozen=True)
class _Shape:
    """Sizes of one problem, and the conditions on lengths and batch of the class around it."""

    operation: Operation
    batch: int
    seqlen_q: int
    seqlen_k: int
    heads: int
    kv_heads: int
    lengths: dict[str, Any]
    causal: bool = True
    page_size: int = 0
    by_causal: bool = False  # whether causal and full attention get rules of their own
    head_dims: tuple[int, ...] = (128, 64)


# On a CPU a problem takes milliseconds; caches of 8192 keys are past most second-level caches. What
# a call costs beside its work decides short ones: they are classes of their own, so that measured
# times say from which length on another backend is faster.
_FEW_ROWS, _SHORT_KEYS = {"seqlen_q": {"max": 16}}, {"seqlen_k": {"max": 1024}}
_CPU = (
    _Shape("decode", 1, 1, 8192, 8, 2, {}),
    _Shape("forward", 1, 1024, 1024, 4, 2, {"seqlen_q": {"min": 257}}),
    _Shape("backward", 1, 512, 512, 4, 2, {}),
    _Shape("forward", 1, 1, 8192, 8, 2, {**_FEW_ROWS, "seqlen_k": {"min": 1025}}, causal=False),
    _Shape("forward", 1, 1, 256, 8, 2, {**_FEW_ROWS, **_SHORT_KEYS}, causal=False),
    _Shape("forward", 1, 128, 128, 4, 2, {"seqlen_q": {"min": 17, "max": 256}}),
)
# On an accelerator a problem must fill every multiprocessor.
_STEP = {"seqlen_q": 1, "gqa": {"max": 16}}
_SHORT, _LONG = {"seqlen_q": {"min": 65, "max": 4096}}, {"seqlen_q": {"min": 4097}}
_ACCELERATOR = (
    _Shape("decode", 8, 1, 8192, 32, 8, {**_STEP, "page_size": 0, "batch": {"min": 2}}),
    _Shape("forward", 2, 2048, 2048, 16, 4, _SHORT, by_causal=True),
    _Shape("decode", 8, 1, 8192, 32, 8, {**_STEP, "page_size": {"min": 1}}, page_size=16),
    _Shape("decode", 1, 1, 32768, 32, 8, {**_STEP, "page_size": 0, "batch": {"max": 1}}),
    _Shape("backward", 2, 2048, 2048, 16, 4, {}),
    _Shape("forward", 1, 8192, 8192, 8, 2, _LONG, by_causal=True),
    _Shape("forward", 2, 2048, 2048, 16, 4, _SHORT, causal=False, by_causal=True),
    _Shape("forward", 2, 2048, 2048, 8, 2, {"seqlen_q": {"min": 65}}, head_dims=(256,)),
)


def usual(device: Device) -> tuple[Target, ...]:
    """The targets of a device, the most usual first."""
    half = "float16" if device.family in _WITHOUT_BFLOAT16 else "bfloat16"
    on_cpu = device.type == "cpu"
    shapes: Sequence[_Shape] = _CPU if on_cpu else _ACCELERATOR
    dtypes: Sequence[str] = ("float32", half) if on_cpu else (half,)
    return tuple(
        _target(shape, head_dim, dtype)
        for shape in shapes
        for dtype in dtypes
        for head_dim in shape.head_dims
    )


def _target(shape: _Shape, head_dim: int, dtype: str) -> Target:
    layout: Layout = "cache" if shape.operation == "decode" else "dense"
    causal = shape.causal and shape.operation != "decode"
    problem = AttentionProblem(
        operation=shape.operation,
        layout=layout,
        dtype=getattr(torch, dtype),
        batch=shape.batch,
        seqlen_q=shape.seqlen_q,
        seqlen_k=shape.seqlen_k,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=head_dim,
        head_dim_v=head_dim,
        softmax_scale=head_dim**-0.5,
        causal=causal,
        window=(-1, 0) if causal else (-1, -1),
        page_size=shape.page_size,
    )
    conditions: dict[str, Any] = {
        "head_dim": _HEAD_DIMS[head_dim],
        "head_dim_v": {"max": head_dim},
        **shape.lengths,
    }
    own, others = conditions, list[dict[str, Any]]()
    if shape.by_causal:
        conditions["causal"] = causal
        # A library's kernel for these may refuse what is packed, or rows that end at the last key:
        # its time says nothing of the one that runs then.
        own = {**conditions, "layout": "dense"}
        others.append({**conditions, "layout": "varlen"})
        if causal:
            others.append({**own, "more_keys": True})
            own["more_keys"] = False
    words = [shape.operation, f"d{head_dim}", f"b{shape.batch}", str(shape.seqlen_k), dtype]
    if shape.operation != "decode":
        words.insert(1, "causal" if causal else "full")
    elif shape.page_size:
        words.insert(1, "paged")
    dtypes = (dtype, "float16") if dtype == "bfloat16" else (dtype,)
    kindred = [(name, also) for name in dtypes for also in (own, *others)][1:]
    return Target(
        name="-".join(words),
        problem=problem,
        when=When.model_validate({"dtype": dtype, **own}),
        kindred=tuple(When.model_validate({"dtype": name, **also}) for name, also in kindred),
    )


def chosen(targets: Iterable[Target], patterns: Sequence[str]) -> tuple[Target, ...]:
    """The targets that have all words of any pattern: "forward-d128", "decode".

    Raises ArgumentError for a pattern that no target has.
    """
    targets = tuple(targets)
    if not patterns:
        return targets
    wanted = [set(pattern.split("-")) for pattern in patterns]
    for pattern, words in zip(patterns, wanted, strict=True):
        if not any(words <= set(target.name.split("-")) for target in targets):
            names = ", ".join(target.name for target in targets)
            raise ArgumentError("problem", f"must be words of one of {names}", repr(pattern))
    return tuple(
        target
        for target in targets
        if any(words <= set(target.name.split("-")) for words in wanted)
    )
