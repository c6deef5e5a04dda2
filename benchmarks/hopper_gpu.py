"""The Hopper kernels beside torch's on the GPU at hand: gradients checked, then times, as JSON.

    python benchmarks/hopper_gpu.py OUT.json [--seconds 150]

Variants compile and are checked side by side, each in a process of its own, so that one that hangs
or fails takes no other with it. Times are medians of `triton.testing.do_bench`, TFLOP/s of the
definition's products: 4 B H S^2 D forward, 10 backward, half of it under a causal mask.
"""

from __future__ import annotations

import argparse
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

BACKWARD: dict[int, list[dict[str, int]]] = {
    64: [{}, {"sums": 2}, {"block_m": 64}, {"block_m": 64, "stages": 3}],
    128: [{}, {"sums": 2}],
}
FORWARD: dict[int, list[dict[str, int]]] = {
    64: [
        {},
        {"warpgroups": 3, "block_n": 128, "stages": 4},
        {"warpgroups": 3, "block_n": 64, "stages": 4},
        {"warpgroups": 3, "persistent": 1},
        {"warpgroups": 3, "persistent": 1, "own_out": 1},
        {"warpgroups": 3, "turns": 0},
        {"warpgroups": 2, "block_n": 128, "stages": 2},
    ],
    128: [
        {},
        {"persistent": 1},
        {"persistent": 1, "own_out": 1},
        {"turns": 0},
        {"section": 16},
    ],
}
# batch, query heads, kv heads, queries, keys, head dims, window, softcap, packed, grad of lse
CASES: list[tuple[Any, ...]] = [
    (1, 2, 2, 256, 256, 0, (-1, -1), 0.0, False, False),
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


def check(case: tuple[Any, ...], d: int, config: dict[str, int], deterministic: bool) -> float:
    """The largest relative error of out, lse and the gradients against the definition."""
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
        o, l = definition(*pieces, problem)
        outs.append(o)
        lses.append(l)
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
    import dataclasses

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
        print(f"{errors[-1]:.1e}", end=" ")
    print(flush=True)
    return max(errors) if all(e == e for e in errors) else float("nan")


def checked(d: int, config: dict[str, int], deterministic: bool) -> dict[str, Any]:
    """Errors of all cases; what failed is named."""
    found: dict[str, Any] = {}
    for index, case in enumerate(CASES):
        torch.manual_seed(index)
        print("case", case, flush=True)
        found[str(index)] = check(case, d, config, deterministic)
    return found


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


def timed(d: int, causal: bool, skip: list[str], until: float) -> None:
    """Print one JSON line a row, own variants between the peers."""
    from portattn.backends.triton import TritonBackend

    hopper, triton_backend = HopperBackend(), TritonBackend()
    heads = 2048 // d
    for s in (4096, 16384, 1024):
        batch = 16384 // s
        q, k, v, do = (
            torch.randn(batch, s, heads, d, device="cuda", dtype=torch.bfloat16) for _ in range(4)
        )
        window = (-1, 0) if causal else (-1, -1)
        made = {
            op: problem_of(op, "dense", q.dtype, q, k, v, batch, (s, s), window, 0.0)
            for op in ("forward", "backward")
        }
        flops = 4 * batch * heads * s * s * d * (0.5 if causal else 1.0)
        tensors = AttentionTensors(q, k, v)
        out, lse = hopper.forward(tensors, made["forward"], {})
        calls: dict[str, tuple[float, Any]] = {}
        for config in FORWARD[d]:
            calls[f"fwd hopper {config}"] = (
                1.0,
                lambda c=config: hopper.forward(tensors, made["forward"], c),
            )
        variants: list[tuple[dict[str, int], bool]] = [(c, False) for c in BACKWARD[d]]
        variants.append(({}, True))
        import dataclasses

        fixed = dataclasses.replace(made["backward"], deterministic=True)
        for config, deterministic in variants:
            name = f"bwd hopper {config}" + (" deterministic" if deterministic else "")
            p = fixed if deterministic else made["backward"]
            if name not in skip:
                calls[name] = (
                    2.5,
                    lambda c=config, p=p: hopper.backward(do, None, out, lse, tensors, p, c),
                )
        calls["fwd triton"] = (1.0, lambda: triton_backend.forward(tensors, made["forward"], {}))
        calls["bwd triton"] = (
            2.5,
            lambda: triton_backend.backward(do, None, out, lse, tensors, made["backward"], {}),
        )
        views = [x.transpose(1, 2).detach().requires_grad_() for x in (q, k, v)]
        for name, which in (
            ("cudnn", SDPBackend.CUDNN_ATTENTION),
            ("fa2", SDPBackend.FLASH_ATTENTION),
        ):

            def attend(which: Any = which) -> Any:
                with sdpa_kernel(which):
                    return torch.nn.functional.scaled_dot_product_attention(
                        *views, is_causal=causal
                    )

            theirs = attend()
            grad = do.transpose(1, 2)
            calls[f"fwd {name}"] = (1.0, attend)
            calls[f"bwd {name}"] = (
                2.5,
                lambda t=theirs: torch.autograd.grad(t, views, grad, retain_graph=True),
            )
        row: dict[str, Any] = {"d": d, "causal": causal, "s": s}
        for name, (weight, call) in calls.items():
            if time.time() > until:
                break
            try:
                row[name] = round(flops * weight / bench(call) / 1e9, 1)
            except Exception as error:
                row[name] = str(error)[:200]
        if s != 16384 and time.time() < until:
            row["kernels"] = kernels(calls["bwd hopper {}"][1]) if "bwd hopper {}" in calls else 0
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
    parser.add_argument("--seconds", type=float, default=150.0)
    options = parser.parse_args()
    until = time.time() + options.seconds
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "checks": {}, "rows": []}
    started = {}
    for d in (64, 128):
        variants = [(c, False) for c in BACKWARD[d]] + [({}, True)]
        for config, deterministic in variants:
            name = f"bwd hopper {config}" + (" deterministic" if deterministic else "")
            started[d, name] = child("check", str(d), json.dumps(config), str(int(deterministic)))
        started[d, "forward"] = child("forward", str(d))
    wrong: dict[int, list[str]] = {64: [], 128: []}
    limit = time.time() + 70
    for (d, name), process in started.items():
        text = finish(process, limit - time.time())
        line = next((x for x in text.splitlines() if x.startswith("FOUND ")), "")
        found = json.loads(line[6:]) if line else {"failed": text[-1500:]}
        result["checks"][f"D{d} {name}"] = found
        good = line and all(e < 1e-2 for e in found.values())
        if not good and name != "forward":
            wrong[d].append(name)
        worst = max(found.values()) if good else found
        print("CHECK", d, name, worst, f"{until - time.time():.0f} s left", flush=True)
        options.out.write_text(json.dumps(result, indent=1))
    for d, causal in ((128, False), (64, False), (128, True), (64, True)):
        process = child("time", str(d), str(int(causal)), json.dumps(wrong[d]), str(until - 3))
        text = finish(process, min(60.0, until - time.time()))
        for line in text.splitlines():
            if line.startswith("ROW "):
                result["rows"].append(json.loads(line[4:]))
                print(line[4:], flush=True)
        if "ROW" not in text:
            print("NO ROWS", d, causal, text[-800:], flush=True)
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "child":
        if sys.argv[2] == "check":
            d, config, fixed = int(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5] == "1"
            print("FOUND " + json.dumps(checked(d, config, fixed)), flush=True)
        elif sys.argv[2] == "forward":
            d = int(sys.argv[3])
            x = torch.randn(1, 512, 2, d, device="cuda", dtype=torch.bfloat16)
            for config in FORWARD[d]:
                for window in ((-1, -1), (-1, 0)):
                    problem = problem_of(
                        "forward", "dense", x.dtype, x, x, x, 1, (512, 512), window, 0.0
                    )
                    HopperBackend().forward(AttentionTensors(x, x, x), problem, config)
            torch.cuda.synchronize()
            print("FOUND {}", flush=True)
        else:
            timed(int(sys.argv[3]), sys.argv[4] == "1", json.loads(sys.argv[5]), float(sys.argv[6]))
    else:
        main()
