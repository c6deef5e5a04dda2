"""One call on the GPU at hand, for a profiler or a sanitizer to look at.

python -m tools.volta.once forward --head-dim 128 --seqlen 1024 [--turing]
"""

from __future__ import annotations

import argparse

import torch

from portattn.arguments import describe, options
from portattn.backends.volta import forward
from portattn.dispatch.backend import AttentionTensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("operation", choices=["forward"])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--turing", action="store_true", help="m16n8k8 instead of m8n8k4")
    given = parser.parse_args()
    shape = (1, given.seqlen, 4, given.head_dim)
    tensors = AttentionTensors(
        *(torch.randn(shape, dtype=torch.float16, device="cuda") for _ in range(3))
    )
    settings = options(
        tensors.q, softmax_scale=None, causal=given.causal, window_size=(-1, -1), softcap=0.0
    )
    problem = describe("forward", tensors, settings)
    out, _ = forward.forward(tensors, problem, {}, given.turing)
    q, k, v = (t.double().transpose(1, 2) for t in (tensors.q, tensors.k, tensors.v))
    scores = q @ k.transpose(2, 3) * given.head_dim**-0.5
    if given.causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    error = float((out.transpose(1, 2) - scores.softmax(-1) @ v).abs().max())
    print(f"{given}: largest error {error:.2g}")
    assert error < 2e-3


if __name__ == "__main__":
    main()
