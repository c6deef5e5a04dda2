"""Says whether a peer's result is right before it is timed.

The oracle is the reference backend in float64, over a block of query rows at the start and one at
the end of a few sequences, the shortest and the longest among them: enough to see every key, and
affordable at any length. Gradients are compared for an incoming gradient that is zero outside such
blocks, so that they depend on their rows alone.

Allowed is twice (gradients: three times) the error of the plain formula in the input's dtype, plus
one rounding at the reference's magnitude. Of a few numbers the plain formula may by luck get all
nearly right, so its error is the worst over several orders of the keys, which change nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from portattn.attention import attention
from portattn.cli.bench.grid import Case, PeerLayout, laid_out

ROWS = 64
ORDERS = 8
SEQUENCES = 4

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
Index = tuple[slice, slice]


def error_ratio(case: Case, tensors: Sequence[Tensor], attend: Attend, layout: PeerLayout) -> float:
    """The worst error over what is allowed: at most 1 when right, inf where not finite."""
    return Oracle(case, tensors).error_ratio(attend, layout)


@dataclass(frozen=True)
class Block:
    """Query rows of one sequence, and the keys that they can see, as indices of the tensors."""

    queries: Index
    keys: Index


@dataclass(frozen=True)
class Expected:
    """What is exact at an index of a result, and the largest error that is allowed there."""

    index: Index
    exact: Tensor
    allowed: float

    def ratio(self, result: Tensor) -> float:
        """The error over what is allowed."""
        found = result[self.index]
        if not bool(found.isfinite().all()):
            return float("inf")
        error = _error(found, self.exact)
        if self.allowed == 0.0:  # a zero that every evaluation gets exactly
            return 0.0 if error == 0.0 else float("inf")
        return error / self.allowed


class Oracle:
    """What is right for a case's tensors: worked out once, then compared with every peer."""

    def __init__(self, case: Case, tensors: Sequence[Tensor]) -> None:
        self._case = case
        self._tensors = tuple(tensor.detach() for tensor in tensors)

    def prepare(self) -> None:
        """Work out what is right now, not at the first comparison."""
        _ = self._gradients if self._case.operation == "backward" else self._outputs

    def error_ratio(self, attend: Attend, layout: PeerLayout) -> float:
        """The worst error of a peer over what is allowed: inf where it isn't finite."""
        if self._case.operation == "backward":
            return self._gradient_ratio(attend, layout)
        with torch.no_grad():
            q, k, v = laid_out(self._tensors, layout)
            out = attend(q, k, v, self._case.masked)
        if layout == "bhsd":
            out = out.transpose(1, 2)
        return max(expected.ratio(out) for expected in self._outputs)

    def _gradient_ratio(self, attend: Attend, layout: PeerLayout) -> float:
        worst = 0.0
        for weights, expected in self._gradients:
            leaves = laid_out(self._tensors, layout)
            found = gradients(attend, leaves, laid_out([weights], layout)[0], self._case.masked)
            if layout == "bhsd":
                found = [gradient.transpose(1, 2) for gradient in found]
            ratios = [
                part.ratio(found[i]) for part_of in expected for i, part in enumerate(part_of)
            ]
            worst = max(worst, *ratios)
        return worst

    @cached_property
    def _outputs(self) -> list[Expected]:
        return [self._output(block) for end in _blocks(self._case) for block in end]

    def _output(self, block: Block) -> Expected:
        q, k, v = self._seen_by(block)
        masked = self._case.masked
        with torch.no_grad():
            exact = _reference(q.double(), k.double(), v.double(), masked)
            plain = [attend(q, k, v, masked) for attend in _plain_attends(k)]
        rounding = torch.finfo(q.dtype).eps * float(exact.abs().max())
        allowed = 2.0 * max(_error(one, exact) for one in plain) + rounding
        return Expected(block.queries, exact, allowed)

    @cached_property
    def _gradients(self) -> list[tuple[Tensor, list[list[Expected]]]]:
        """For each end of the sequences: the incoming gradient, and dq, dk, dv of each block."""
        found = []
        for end in _blocks(self._case):
            weights = torch.zeros_like(self._tensors[0])
            for block in end:
                weights[block.queries] = torch.randn_like(weights[block.queries])
            found.append((weights, self._end_gradients(end, weights)))
        return found

    def _end_gradients(self, end: list[Block], weights: Tensor) -> list[list[Expected]]:
        """Allowed is by the worst of all blocks, as it is by the worst of a whole gradient: a
        sequence of one key has a dq of 0 by cancellation, which the plain formula gets exactly."""
        exacts, errors, masked = [], [], self._case.masked
        for block in end:
            seen, grad_out = self._seen_by(block), weights[block.queries]
            wide = [tensor.double() for tensor in seen]
            exact = gradients(_reference, wide, grad_out.double(), masked)
            plain = [
                gradients(attend, seen, grad_out, masked) for attend in _plain_attends(seen[1])
            ]
            exacts.append(exact)
            errors.append([max(_error(one[i], exact[i]) for one in plain) for i in range(3)])
        eps = torch.finfo(weights.dtype).eps
        allowed = [
            3.0 * max(error[i] for error in errors)
            + eps * max(float(exact[i].abs().max()) for exact in exacts)
            for i in range(3)
        ]
        return [
            [
                Expected(place, exact[i], allowed[i])
                for i, place in enumerate((block.queries, block.keys, block.keys))
            ]
            for block, exact in zip(end, exacts, strict=True)
        ]

    def _seen_by(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._tensors
        return q[block.queries], k[block.keys], v[block.keys]


def _blocks(case: Case) -> list[list[Block]]:
    """Rows at the start of a few sequences, and rows at their end where those are others."""
    counts = case.key_counts
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    ends: list[list[Block]] = [[], []]
    for b in _sample(counts):
        queries = case.queries if case.operation == "decode" else counts[b]
        rows = sorted({(0, min(ROWS, queries)), (max(0, queries - ROWS), queries)})
        for end, (first, last) in zip(ends, rows, strict=False):
            seen = counts[b] - queries + last if case.masked else counts[b]
            query_index = _index(case, b, starts[b], first, last, packed=_packs_queries(case))
            key_index = _index(case, b, starts[b], 0, seen, packed=bool(case.lengths))
            end.append(Block(query_index, key_index))
    return [end for end in ends if end]


def _packs_queries(case: Case) -> bool:
    return bool(case.lengths) and case.operation != "decode"


def _index(case: Case, b: int, start: int, first: int, last: int, *, packed: bool) -> Index:
    if packed:
        return slice(0, 1), slice(start + first, start + last)
    return slice(b, b + 1), slice(first, last)


def _sample(counts: Sequence[int]) -> list[int]:
    """The first and the last sequence, the shortest and the longest."""
    order = sorted(range(len(counts)), key=lambda b: counts[b])
    return sorted({0, len(counts) - 1, order[0], order[-1]})[:SEQUENCES]


def gradients(
    attend: Attend, tensors: Sequence[Tensor], grad_out: Tensor, causal: bool
) -> list[Tensor]:
    """dq, dk and dv of one call."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attend(leaves[0], leaves[1], leaves[2], causal)
    return list(torch.autograd.grad(out, leaves, grad_out))


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


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())
