"""Says whether a peer's result is right before it is timed.

The oracle is the reference backend in float64, over a block of query rows at the start and one at
the end: enough to see every key, and affordable at any length. Gradients are compared for an
incoming gradient that is zero outside such a block, so that they depend on its rows alone.

Allowed is twice (gradients: three times) the error of the plain formula in the input's dtype, plus
one rounding at the reference's magnitude. Of a few numbers the plain formula may by luck get all
nearly right, so its error is the worst over several orders of the keys, which change nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from portattn.attention import attention
from portattn.cli.bench.grid import Case, PeerLayout, laid_out

ROWS = 64
ORDERS = 8

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def error_ratio(case: Case, tensors: Sequence[Tensor], attend: Attend, layout: PeerLayout) -> float:
    """The worst error over what is allowed: at most 1 when right, inf where not finite."""
    blocks = {(0, min(ROWS, case.seqlen_q)), (max(0, case.seqlen_q - ROWS), case.seqlen_q)}
    compare = _gradient_ratio if case.operation == "backward" else _output_ratio
    return max(compare(case, tensors, attend, layout, block) for block in sorted(blocks))


def _output_ratio(
    case: Case,
    tensors: Sequence[Tensor],
    attend: Attend,
    layout: PeerLayout,
    block: tuple[int, int],
) -> float:
    q, k, v = laid_out(tensors, layout)
    with torch.no_grad():
        out = attend(q, k, v, case.masked)
    out = out if layout == "bshd" else out.transpose(1, 2)
    q, k, v = _seen_by(case, tensors, block)
    exact = _reference(q.double(), k.double(), v.double(), case.masked)
    plain = [attend_plainly(q, k, v, case.masked) for attend_plainly in _plain_attends(k)]
    return _ratio(out[:, block[0] : block[1]], plain, exact, factor=2.0)


def _gradient_ratio(
    case: Case,
    tensors: Sequence[Tensor],
    attend: Attend,
    layout: PeerLayout,
    block: tuple[int, int],
) -> float:
    start, stop = block
    weights = torch.zeros_like(tensors[0])
    weights[:, start:stop] = torch.randn_like(weights[:, start:stop])
    ours = gradients(attend, laid_out(tensors, layout), laid_out([weights], layout)[0], case.masked)
    if layout == "bhsd":
        ours = [gradient.transpose(1, 2) for gradient in ours]
    seen = _seen_by(case, tensors, block)
    wide = [tensor.double() for tensor in seen]
    exact = gradients(_reference, wide, weights[:, start:stop].double(), case.masked)
    plain = [
        gradients(attend_plainly, seen, weights[:, start:stop], case.masked)
        for attend_plainly in _plain_attends(seen[1])
    ]
    keys = seen[1].shape[1]
    cut = [ours[0][:, start:stop], ours[1][:, :keys], ours[2][:, :keys]]
    return max(
        _ratio(cut[i], [gradient[i] for gradient in plain], exact[i], factor=3.0) for i in range(3)
    )


def gradients(
    attend: Attend, tensors: Sequence[Tensor], grad_out: Tensor, causal: bool
) -> list[Tensor]:
    """dq, dk and dv of one call."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attend(leaves[0], leaves[1], leaves[2], causal)
    return list(torch.autograd.grad(out, leaves, grad_out))


def _seen_by(
    case: Case, tensors: Sequence[Tensor], block: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The block's queries with the keys they can see: all, or those up to the last query."""
    q, k, v = tensors
    keys = block[1] if case.masked else case.seqlen
    return q[:, block[0] : block[1]], k[:, :keys], v[:, :keys]


def _reference(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    out = attention(q, k, v, causal=causal, backend="reference")
    assert isinstance(out, Tensor)  # no lse was asked for
    return out


def _plain_attends(k: Tensor) -> list[Attend]:
    """The plain formula with the keys as they stand, and in other orders."""
    keys = k.shape[1]
    orders = [torch.arange(keys), *(torch.randperm(keys) for _ in range(ORDERS - 1))]
    return [partial(_plain, order.to(k.device)) for order in orders]


def _plain(order: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(Q K' / sqrt(D)) V as torch evaluates it in the inputs' dtype."""
    group = q.shape[2] // k.shape[2]
    k, v = k[:, order], v[:, order]
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # [B, H, S, D]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        offset = scores.shape[-1] - scores.shape[-2]
        scores = scores.masked_fill(~visible.tril(offset)[:, order], float("-inf"))
    out: Tensor = scores.softmax(-1) @ v
    return out.transpose(1, 2)


def _ratio(ours: Tensor, plain: Sequence[Tensor], exact: Tensor, factor: float) -> float:
    if not bool(ours.isfinite().all()):
        return float("inf")
    rounding = torch.finfo(ours.dtype).eps * float(exact.abs().max())
    allowed = factor * max(_error(one, exact) for one in plain) + rounding
    return _error(ours, exact) / allowed


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())
