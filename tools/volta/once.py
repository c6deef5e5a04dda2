"""One call on the GPU at hand, for a profiler or a sanitizer to look at.

python -m tools.volta.once forward --head-dim 128 --seqlen 1024 [--turing]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from portattn.arguments import describe, options
from portattn.backends.volta import backward, decode, forward
from portattn.dispatch.backend import AttentionTensors

HEADS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("operation", choices=["forward", "decode", "backward"])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--turing", action="store_true", help="m16n8k8 instead of m8n8k4")
    given = parser.parse_args()
    queries = 1 if given.operation == "decode" else given.seqlen
    q, k, v = (
        torch.randn(1, length, HEADS, given.head_dim, dtype=torch.float16, device="cuda")
        for length in (queries, given.seqlen, given.seqlen)
    )
    tensors = AttentionTensors(q, k, v)
    if given.operation == "decode":
        tensors.seqused_k = torch.tensor([given.seqlen], dtype=torch.int32, device="cuda")
    error = max(_errors(tensors, given))
    print(f"{given}: largest error {error:.2g}")
    assert error < 1e-2


def _errors(tensors: AttentionTensors, given: argparse.Namespace) -> list[float]:
    """The call's largest errors against the formula in float64."""
    wide = [tensor.double().requires_grad_() for tensor in (tensors.q, tensors.k, tensors.v)]
    q, k, v = (tensor.transpose(1, 2) for tensor in wide)
    scores = q @ k.transpose(2, 3) * given.head_dim**-0.5
    if given.causal and given.operation != "decode":
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    exact, lse = (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1).float()
    settings = options(
        tensors.q,
        softmax_scale=None,
        causal=given.causal,
        window_size=(-1, -1),
        softcap=0.0,
        max_seqlen_k=given.seqlen,
    )
    problem = describe(given.operation, tensors, settings)
    if given.operation != "backward":
        call = decode.decode if given.operation == "decode" else forward.forward
        out, _ = call(tensors, problem, {}, given.turing)
        return [_distance(out, exact)]
    grad = torch.randn_like(tensors.q)
    found = backward.backward(
        grad, None, exact.detach().half(), lse.detach(), tensors, problem, given.turing
    )
    wanted = torch.autograd.grad(exact, wide, grad.double())
    return [_distance(one, other) for one, other in zip(found[:3], wanted, strict=True)]


def _distance(found: Tensor | None, exact: Tensor) -> float:
    assert found is not None
    return float((found - exact).abs().max())


if __name__ == "__main__":
    main()
