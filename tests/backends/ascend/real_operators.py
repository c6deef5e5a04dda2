"""Runs in a process that has the real torch-npu: counts the calls that it takes, by operator.

A call is built from ordinary tensors, then made on meta tensors: torch binds it to the registered
schema, and torch-npu's meta kernel says what shapes come back.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
import torch_npu  # type: ignore[import-not-found]  # noqa: F401
from torch.utils import _pytree

from portattn.backends.ascend import arguments
from portattn.backends.ascend.arguments import VendorCall
from portattn.dispatch import device as devices
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem
from tests.conformance.budget import problem_of
from tests.conformance.cases import CASES, build

CPU = torch.device("cpu")
PAGED = [
    replace(case, name=f"{case.name} of 128", page_size=128)
    for case in CASES
    if case.page_size and not case.leftpad
]


def main() -> None:
    npu = devices.of(torch.device("npu:0"))
    assert npu.family == "ascend910b", npu
    backend = registry.load("ascend")
    counts: Counter[str] = Counter()
    for case in [*CASES, *PAGED]:
        built = build(case, torch.float16, CPU, torch.Generator().manual_seed(0))
        t, problem = built.tensors, problem_of(built.tensors, built.options)
        if not problem.rows or not problem.keys:
            continue
        for operation in (problem.operation, "backward"):
            asked: AttentionProblem = replace(problem, operation=operation)
            if backend.reasons_against(asked, npu):
                continue
            for call in calls(t, asked):
                shapes = on_meta(call)
                assert shapes[: len(expected(call, t))] == expected(call, t), (case, call, shapes)
                counts[call.operator] += 1
    counts["refused"] = refusals()
    print(json.dumps(counts))


def calls(t: AttentionTensors, problem: AttentionProblem) -> list[VendorCall]:
    if problem.operation == "forward":
        return [arguments.training(t, problem)]
    if problem.operation == "decode":
        assert t.seqused_k is not None
        lengths = t.seqused_k.tolist()
        return [arguments.infer(t, problem, lengths, second) for second in (False, True)]
    out = t.q.new_empty((*t.q.shape[:-1], problem.head_dim_v))
    lse = torch.empty((*t.q.shape[:-3], t.q.shape[-2], t.q.shape[-3]))
    return [arguments.gradient(out, out, lse, t, problem)]


def on_meta(call: VendorCall) -> list[Any]:
    args, keywords = _pytree.tree_map(_to_meta, (call.args, call.keywords))
    results = getattr(torch.ops.npu, call.operator)(*args, **keywords)
    return [tuple(one.shape) if isinstance(one, torch.Tensor) else one for one in results]


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def expected(call: VendorCall, t: AttentionTensors) -> list[tuple[int, ...]]:
    """The shapes that the adapter reads: of out and lse, or maxima and sums, or the gradients."""
    if call.operator == "npu_fusion_attention_grad":
        return [tuple(one.shape) for one in (t.q, t.k, t.v)]
    out = (*t.q.shape[:-1], t.v.shape[-1])
    if call.operator == "npu_fusion_attention":
        if t.q.dim() == 3:
            maxima = (t.q.shape[0], t.q.shape[1], 8)
        else:
            maxima = (t.q.shape[0], t.q.shape[2], t.q.shape[1], 8)
        return [out, maxima, maxima]
    return [out, (t.q.shape[0], t.q.shape[2], t.q.shape[1], 1)]


def refusals() -> int:
    """Calls that the schemas must refuse, so that agreement means something."""
    q = torch.empty(1, 8, 2, 64, dtype=torch.float16, device="meta")
    wrong = [
        VendorCall("npu_fusion_attention", (q, q, q, 2, "BSND"), {"scale_value": 0.1}),
        VendorCall("npu_fused_infer_attention_score_v2", (q, q, q), {"num_heads": 2}),
        VendorCall(
            "npu_fused_infer_attention_score",
            (q, q, q),
            {"actual_seq_lengths_kv": torch.ones(1), "num_heads": 2},
        ),
    ]
    refused = 0
    for call in wrong:
        try:
            on_meta(call)
        except (RuntimeError, TypeError):
            refused += 1
    return refused


if __name__ == "__main__":
    main()
