"""What the device itself can do, measured in the same run: copying memory and a matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from portattn.cli.bench.measure import Call, interleave

_ROUNDS = 15


@dataclass(frozen=True)
class Ceilings:
    """Bytes read and written per second by a copy; arithmetic per second of a square product."""

    copy_gbs: float
    matmul_tflops: float
    matmul_dtype: str


def measure(device: torch.device) -> Ceilings:
    """Copy 1 GiB and multiply 8192-square bfloat16 matrices; on a CPU, smaller and in float32."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    count, size = (2**30, 8192) if gpu else (2**26, 512)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(a)
    calls: dict[str, Call] = {
        "copy": lambda: target.copy_(source),
        "matmul": lambda: torch.mm(a, b, out=product),
    }
    timings = interleave(calls, device, _ROUNDS)
    return Ceilings(
        copy_gbs=2 * count / timings["copy"].median / 1e9,
        matmul_tflops=2 * size**3 / timings["matmul"].median / 1e12,
        matmul_dtype=str(dtype).removeprefix("torch."),
    )
