"""The Hopper kernels beside torch's on the GPU at hand: gradients checked, then times, as JSON.

    python benchmarks/hopper_gpu.py OUT.json [--seconds 80]

Variants compile and are checked side by side, each in a process of its own, so that one that hangs
or fails takes no other with it. Times are medians of `triton.testing.do_bench`, TFLOP/s of the
definition's products: 4 B H S^2 D forward, 10 backward, half of it under a causal mask.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from portattn.backends.hopper import HopperBackend
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

BACKWARD: dict[int, list[tuple[dict[str, int], bool]]] = {
    64: [({}, False), ({"block_m": 128}, False), ({}, True)],
    128: [({}, False), ({}, True)],
}
# Cases that head dim 64 is checked with, and variants other than the first.
MANY, SOME = (0, 2, 4, 6), (2, 6)
FORWARD: dict[int, list[dict[str, int]]] = {
    64: [{}, {"block_n": 64, "stages": 4}, {"persistent": 1}],
    128: [{}, {"persistent": 1}],
}
# batch, query heads, kv heads, queries, keys, head dims, window, softcap, packed, grad of lse
CASES: list[tuple[Any, ...]] = [
    (2, 2, 2, 1024, 1024, 0, (-1, -1), 0.0, False, False),
    (2, 4, 2, 1024, 1024, 0, (-1, 0), 0.0, False, False),
    (2, 4, 1, 333, 517, 0, (-1, 0), 0.0, False, True),
    (1, 4, 2, 517, 333, 0, (-1, 0), 0.0, False, False),
    (1, 2, 2, 700, 900, 0, (100, 30), 15.0, False, False),
    (1, 2, 2, 200, 200, -24, (-1, -1), 0.0, False, False),
    (3, 4, 2, 400, 400, 0, (-1, 0), 0.0, True, False),
    (3, 4, 2, 400, 400, 0, (-1, -1), 0.0, True, False),
]


def definition(q: Any, k: Any, v: Any, problem: AttentionProblem) -> tuple[Any, Any]:
    """out and lse of one sequence, [S, H, D] in float64."""
    group = problem.heads // problem.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    x = torch.einsum("qhd,khd->hqk", q, k) * problem.softmax_scale
    if problem.softcap:
        x = problem.softcap * torch.tanh(x / problem.softcap)
    row = torch.arange(len(q), device=q.device)[:, None] + len(k) - len(q)
    key = torch.arange(len(k), device=q.device)
    left, right = problem.window
    hidden = torch.zeros_like(x[0], dtype=torch.bool)
    if left >= 0:
        hidden |= key < row - left
    if right >= 0:
        hidden |= key > row + right
    x = x.masked_fill(hidden, float("-inf"))
    lse = torch.logsumexp(x, -1)
    p = torch.where(hidden, 0.0, torch.exp(x - lse[..., None].nan_to_num(0.0, 0.0, 0.0)))
    return torch.einsum("hqk,khd->qhd", p, v), lse


def problem_of(
    operation: Any, layout: Any, dtype: Any, q: Any, k: Any, v: Any, batch: int, lengths: Any,
    window: Any, softcap: float, **more: Any,
) -> AttentionProblem:  # fmt: skip
    return AttentionProblem(
        operation, layout, dtype, batch, *lengths, q.shape[-2], k.shape[-2], q.shape[-1],
        v.shape[-1], q.shape[-1] ** -0.5, causal=window == (-1, 0), window=window, softcap=softcap,
        **more,
    )  # fmt: skip


def check(
    case: tuple[Any, ...], d: int, config: dict[str, int], deterministic: bool
) -> list[float]:
    """Relative errors of out, dq, dk and dv against the definition."""
    batch, heads, kv_heads, queries, keys, less, window, softcap, packed, with_lse = case
    d, dtype = d + less, torch.bfloat16
    g = {"device": "cuda", "dtype": dtype}
    counts = [(queries, keys)] * batch
    if packed:
        counts = [(queries, keys), (0, 7), (queries // 3, keys // 2 + 1)]
    tq, tk = sum(a for a, _ in counts), sum(b for _, b in counts)
    spare = 5 if packed else 0
    q = torch.randn(tq + spare, heads, d, **g)
    k, v = (torch.randn(tk + spare, kv_heads, d, **g) for _ in range(2))
    do = torch.randn(tq + spare, heads, d, **g)
    dlse = torch.randn(heads, tq + spare, device="cuda") if with_lse else None
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    problem = problem_of(
        "backward", "varlen" if packed else "dense", dtype, q, k, v, batch, (queries, keys),
        window, softcap, deterministic=deterministic,
    )  # fmt: skip
    outs, lses, at_q, at_k = [], [], 0, 0
    for a, b in counts:
        pieces = wide[0][at_q : at_q + a], *(x[at_k : at_k + b] for x in wide[1:])
        o, row_lse = definition(*pieces, problem)
        outs.append(o)
        lses.append(row_lse)
        at_q, at_k = at_q + a, at_k + b
    out, lse = torch.cat(outs), torch.cat(lses, 1)
    loss = (out * do[:tq].double()).sum()
    if dlse is not None:
        loss = loss + (torch.where(lse.isinf(), 0.0, lse) * dlse[:, :tq].double()).sum()
    expected = torch.autograd.grad(loss, wide)
    tensors = AttentionTensors(q, k, v)
    if packed:
        ends = torch.tensor([(0, 0), *counts], dtype=torch.int32, device="cuda").cumsum(0).int()
        tensors.cu_seqlens_q, tensors.cu_seqlens_k = (x.contiguous() for x in ends.unbind(1))
    else:
        q, k, v, do = (x.view(batch, -1, *x.shape[1:]) for x in (q, k, v, do))
        tensors = AttentionTensors(q, k, v)
        if dlse is not None:
            dlse = dlse.view(heads, batch, -1).transpose(0, 1).contiguous()
    backend = HopperBackend()
    forward_problem = dataclasses.replace(problem, operation="forward", deterministic=False)
    got_out, got_lse = backend.forward(tensors, forward_problem, {})
    got = backend.backward(do, dlse, got_out, got_lse, tensors, problem, config)
    errors = []
    pairs = zip((got_out, got.dq, got.dk, got.dv), (out, *expected), strict=True)
    for mine, right in pairs:
        mine = mine.reshape(-1, *mine.shape[-2:]).double()
        mine, extra = mine[: len(right)], mine[len(right) :]
        assert not extra.any(), "rows of no sequence are not 0"
        scale = right.norm().clamp_min(1e-30)
        errors.append(((mine - right).norm() / scale).item())
    return errors


def label(config: dict[str, int], deterministic: bool) -> str:
    return f"bwd hopper {config}" + (" deterministic" if deterministic else "")


def bench(call: Any) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, warmup=15, rep=60, return_mode="median"))


def kernels(call: Any) -> dict[str, float]:
    """Microseconds of each CUDA kernel of a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    return {
        event.key[:40]: event.device_time_total / 3 for event in profile.key_averages()
        if event.device_time_total
    }  # fmt: skip


def calls_of(d: int, causal: bool, s: int, only: str = "") -> tuple[float, dict[str, Any]]:
    """(forward's operations, {name: (its multiple of them, call)}) of one row."""
    from portattn.backends.triton import TritonBackend

    hopper, triton_backend = HopperBackend(), TritonBackend()
    heads, batch = 2048 // d, 16384 // s
    q, k, v, do = (
        torch.randn(batch, s, heads, d, device="cuda", dtype=torch.bfloat16) for _ in range(4)
    )
    window = (-1, 0) if causal else (-1, -1)
    made = {
        op: problem_of(op, "dense", q.dtype, q, k, v, batch, (s, s), window, 0.0)
        for op in ("forward", "backward")
    }
    tensors = AttentionTensors(q, k, v)
    calls: dict[str, Any] = {}
    out, lse = torch.randn_like(q), torch.full((batch, heads, s), 10.0, device="cuda")

    def backward(backend: Any, config: dict[str, int], deterministic: bool = False) -> Any:
        p = dataclasses.replace(made["backward"], deterministic=deterministic)
        return 2.5, lambda: backend.backward(do, None, out, lse, tensors, p, config)

    def forward(backend: Any, config: dict[str, int]) -> Any:
        return 1.0, lambda: backend.forward(tensors, made["forward"], config)

    for config, deterministic in BACKWARD[d]:
        calls[label(config, deterministic)] = backward(hopper, config, deterministic)
    for config in FORWARD[d]:
        calls[f"fwd hopper {config}"] = forward(hopper, config)
    calls["bwd triton"], calls["fwd triton"] = (
        backward(triton_backend, {}),
        forward(triton_backend, {}),
    )
    views = [x.transpose(1, 2).detach().requires_grad_() for x in (q, k, v)]
    for name, which in (
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("fa2", SDPBackend.FLASH_ATTENTION),
    ):
        if only:
            continue

        def attend(which: Any = which) -> Any:
            with sdpa_kernel(which):
                return torch.nn.functional.scaled_dot_product_attention(*views, is_causal=causal)

        theirs, grad = attend(), do.transpose(1, 2)
        calls[f"bwd {name}"] = (
            2.5,
            lambda t=theirs, g=grad: torch.autograd.grad(t, views, g, retain_graph=True),
        )
        calls[f"fwd {name}"] = 1.0, attend
    flops = 4 * batch * heads * s * s * d * (0.5 if causal else 1.0)
    return flops, {name: call for name, call in calls.items() if not only or only in name}


def warm(d: int, causal: bool, part: int) -> None:
    """Compile every fourth call of the rows of one head dim and mask."""
    for s in (4096, 16384):
        for index, (_, call) in enumerate(calls_of(d, causal, s, "r")[1].values()):
            if index % 4 == part:
                call()
    torch.cuda.synchronize()


def timed(skip: list[str], until: float) -> None:
    """Print one JSON line a row: each call twice, in turns."""
    for s, d, causal in itertools.product((4096, 16384), (128, 64), (False, True)):
        flops, calls = calls_of(d, causal, s)
        row: dict[str, Any] = {"d": d, "causal": causal, "s": s}
        for name, (weight, call) in [*calls.items(), *calls.items()]:
            if f"D{d} {name}" in skip or time.time() > until:
                continue
            try:
                row.setdefault(name, []).append(round(flops * weight / bench(call) / 1e9, 1))
            except Exception as error:
                row[name] = [str(error)[:200]]
        if s == 4096 and time.time() < until and f"D{d} bwd hopper {{}}" not in skip:
            row["microseconds"] = kernels(calls["bwd hopper {}"][1])
        print("ROW " + json.dumps(row), flush=True)


def child(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "child", *arguments], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        return process.communicate(timeout=max(seconds, 1.0))[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0] + "\nTIMED OUT"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=80.0)
    options = parser.parse_args()
    until = time.time() + options.seconds
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "checks": {}, "rows": []}
    started = {}
    for d, causal, part in itertools.product((128, 64), (False, True), range(4)):
        started[f"warm {d} {causal} {part}"] = child("warm", str(d), str(int(causal)), str(part))
    for d in (128, 64):
        for number, (config, deterministic) in enumerate(BACKWARD[d]):
            for index in SOME if number else (range(len(CASES)) if d == 128 else MANY):
                name = f"D{d} {label(config, deterministic)} case {index}"
                given = str(d), json.dumps(config), str(int(deterministic)), str(index)
                started[name] = child("check", *given)
    wrong = set()
    limit = time.time() + options.seconds * 0.6
    for name, process in started.items():
        text = finish(process, limit - time.time())
        line = next((x for x in text.splitlines() if x.startswith("FOUND ")), "")
        result["checks"][name] = json.loads(line[6:]) if line else text[-600:]
        errors = result["checks"][name]
        if not name.startswith("warm") and not (line and all(e < 6e-3 for e in errors)):
            late = "TIMED OUT" in text
            print("CHECK", name, "late" if late else errors, flush=True)
            if not late:
                wrong.add(name.partition(" case")[0])
    print(f"checked {len(started)}, {until - time.time():.0f} s left, wrong: {sorted(wrong)}")
    options.out.write_text(json.dumps(result, indent=1))
    process = child("time", json.dumps(sorted(wrong)), str(until - 4))
    text = finish(process, until - time.time())
    for line in text.splitlines():
        if line.startswith("ROW "):
            result["rows"].append(json.loads(line[4:]))
            print(line[4:], flush=True)
    if "ROW" not in text:
        print("NO ROWS", text[-1500:], flush=True)
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1] != "child":
        main()
    elif sys.argv[2] == "check":
        torch.manual_seed(int(sys.argv[6]))
        case = CASES[int(sys.argv[6])]
        errors = check(case, int(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5] == "1")
        print("FOUND " + json.dumps(errors), flush=True)
    elif sys.argv[2] == "warm":
        warm(int(sys.argv[3]), sys.argv[4] == "1", int(sys.argv[5]))
        print("FOUND []", flush=True)
    else:
        timed(json.loads(sys.argv[3]), float(sys.argv[4]))
