"""Whether a candidate's results are right, by the same measure as every test of this library.

The oracle is the reference backend in float64. Allowed is twice the error (gradients: three times)
of the plain formula as torch evaluates it in the input's dtype, in maximum and in RMS, plus one
rounding of the output's dtype at the oracle's magnitude; lse within 1e-3, float32 within 1e-5 of
its size. Of few numbers the plain formula may by luck get all nearly right, so its error is the
worst over several orders of the keys, which change nothing else; and one float32 rounding of each
score and of each sum of terms is allowed besides, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem
from portattn.tuning.inputs import Inputs, Results

_ORDERS = 3
# Elements of a matrix of scores that is held at once.
_CHUNK = 2**25
# Devices on which torch has float64; the oracle of others is computed on the CPU.
_WITH_FLOAT64 = ("cpu", "cuda", "xpu")


@dataclass(frozen=True)
class _Budget:
    """What one result may be off by."""

    exact: Tensor
    maximum: float
    rms: float


class Judge:
    """The oracle of one problem; computed once, asked for every candidate."""

    def __init__(self, inputs: Inputs) -> None:
        self._place = inputs.tensors.q.device
        if self._place.type not in _WITH_FLOAT64:
            inputs = _moved(inputs, torch.device("cpu"))
        backward = inputs.problem.operation == "backward"
        self._budgets = _gradient_budgets(inputs) if backward else _output_budgets(inputs)

    def error_ratio(self, results: Results) -> float:
        """The worst error over what is allowed: at most 1 when right, inf where not finite."""
        return max(_ratio(results[name], budget) for name, budget in self._budgets.items())


def _ratio(found: Tensor, budget: _Budget) -> float:
    if found.shape != budget.exact.shape:
        return float("inf")
    wide = found.to(budget.exact.device).double()
    blind = budget.exact.isinf()  # lse of rows that see nothing
    if not bool((wide.isfinite() ^ blind).all()) or bool((wide != budget.exact)[blind].any()):
        return float("inf")
    maximum, rms = _errors(wide[~blind], budget.exact[~blind])
    return max(maximum / budget.maximum, rms / budget.rms)


def _errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    error = (found - exact).abs()
    if not error.numel():
        return 0.0, 0.0
    return float(error.max()), float(error.square().mean().sqrt())


def _budget(
    exact: Tensor, plain: Sequence[Tensor], factor: float, dtype: torch.dtype, terms: float = 0.0
) -> _Budget:
    """From what the plain formula gave in each order of the keys, and the largest sum of absolute
    terms behind an entry."""
    errors = [_errors(one.double(), exact) for one in plain]
    rounding = torch.finfo(dtype).eps * float(exact.abs().max())
    rounding += torch.finfo(torch.float32).eps * terms
    maximum, rms = (factor * max(found) + rounding for found in zip(*errors, strict=True))
    return _Budget(exact, maximum, rms)


def _output_budgets(inputs: Inputs) -> dict[str, _Budget]:
    problem, tensors = inputs.problem, inputs.tensors
    reference, wide, described = (
        registry.load("reference"),
        _widened(tensors),
        _wide_problem(problem),
    )
    out, lse = reference.forward(wide, described, {})
    # A rounding of a score s moves its weight by |s| eps at most, |s| being at most `reach`.
    sums, _ = reference.forward(replace(wide, v=wide.v.abs()), described, {})
    terms = float(sums.max()) * (1.0 + _reach(tensors, problem))
    keys = problem.seqlen_k
    orders = [torch.arange(keys), *(torch.randperm(keys) for _ in range(_ORDERS - 1))]
    plain = [_plain_out(tensors, problem, order.to(out.device)) for order in orders]
    size = float(lse.masked_fill(lse.isinf(), 0.0).abs().max())
    half = problem.dtype.itemsize < 4
    bound = (1e-3 if half else 1e-5 * max(1.0, size)) + torch.finfo(torch.float32).eps * size
    return {
        "out": _budget(out, plain, 2.0, problem.dtype, terms),
        "lse": _Budget(lse.double(), bound, bound),
    }


def _gradient_budgets(inputs: Inputs) -> dict[str, _Budget]:
    """A backward is given the forward's rounded results: what they cost is not its own error."""
    problem, wide = inputs.problem, _widened(inputs.tensors)
    assert inputs.grad_out is not None and inputs.out is not None and inputs.lse is not None
    reference, described = registry.load("reference"), _wide_problem(problem)
    g = inputs.grad_out.double()
    out, lse = reference.forward(wide, replace(described, operation="forward"), {})
    exact = reference.backward(g, None, out, lse, wide, described, {})
    stored = reference.backward(
        g, None, inputs.out.double(), inputs.lse.double(), wide, described, {}
    )
    plain = _plain_gradients(inputs.tensors, problem, inputs.grad_out)
    return {
        name: _budget(getattr(exact, name), (value, getattr(stored, name)), 3.0, problem.dtype)
        for name, value in zip(("dq", "dk", "dv"), plain, strict=True)
    }


def _plain_out(tensors: AttentionTensors, problem: AttentionProblem, order: Tensor) -> Tensor:
    """out [B, Sq, H, Dv] by the plain formula, with the keys in some order."""
    shape = (*tensors.q.shape[:-1], problem.head_dim_v)
    out = tensors.q.new_empty(shape)
    rows = max(1, _CHUNK // (problem.seqlen_k * _group(problem)))
    for b, heads, q, k, v in _parts(tensors, problem):
        k, v = k[order], v[order]
        for start in range(0, problem.seqlen_q, rows):
            span = slice(start, start + rows)
            seen = _visible(problem, order, range(problem.seqlen_q)[span])
            out[b, span, heads] = _plain(q[span], k, v, problem, seen)
    return out


def _reach(tensors: AttentionTensors, problem: AttentionProblem) -> float:
    """The largest sum of absolute terms behind a score."""
    largest = 0.0
    rows = max(1, _CHUNK // (problem.seqlen_k * _group(problem)))
    for _, _, q, k, _ in _parts(tensors, problem):
        for start in range(0, problem.seqlen_q, rows):
            sums = q[start : start + rows].float().abs() @ k.float().abs().T
            largest = max(largest, float(sums.max()))
    return largest * abs(problem.softmax_scale)


def _plain_gradients(
    tensors: AttentionTensors, problem: AttentionProblem, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv by the plain formula and torch's automatic differentiation."""
    found = tuple(torch.empty_like(t) for t in (tensors.q, tensors.k, tensors.v))
    order = torch.arange(problem.seqlen_k, device=tensors.q.device)
    seen = _visible(problem, order, range(problem.seqlen_q))
    group = _group(problem)
    for b, heads, q, k, v in _parts(tensors, problem):
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            out = _plain(leaves[0], leaves[1], leaves[2], problem, seen)
            grads = torch.autograd.grad(out, leaves, grad_out[b, :, heads])
        found[0][b, :, heads] = grads[0]
        for whole, grad in zip(found[1:], grads[1:], strict=True):
            whole[b, :, heads.start // group] = grad
    return found[0], found[1], found[2]


def _parts(
    tensors: AttentionTensors, problem: AttentionProblem
) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """Of each sequence and kv head: q [Sq, G, D], k [Sk, D], v [Sk, Dv] and their place."""
    group = _group(problem)
    for b in range(problem.batch):
        k, v = (_sequence(t, tensors, problem, b) for t in (tensors.k, tensors.v))
        for head in range(problem.kv_heads):
            heads = slice(head * group, (head + 1) * group)
            yield b, heads, tensors.q[b, :, heads], k[:, head], v[:, head]


def _sequence(t: Tensor, tensors: AttentionTensors, problem: AttentionProblem, b: int) -> Tensor:
    """Keys or values [Sk, Hkv, D] of one sequence."""
    if tensors.block_table is None:
        return t[b]
    return t[tensors.block_table[b].long()].flatten(0, 1)[: problem.seqlen_k]


def _plain(q: Tensor, k: Tensor, v: Tensor, problem: AttentionProblem, seen: Tensor) -> Tensor:
    """softmax(scale Q K') V of one group of heads: [rows, G, Dv]."""
    s = q @ k.T * problem.softmax_scale  # [rows, G, Sk]
    if problem.softcap:
        s = problem.softcap * torch.tanh(s / problem.softcap)
    s = s.masked_fill(~seen[:, None], float("-inf"))
    weights = s.softmax(-1).nan_to_num(0.0)  # rows without a visible key
    return weights @ v


def _visible(problem: AttentionProblem, order: Tensor, rows: range) -> Tensor:
    """Which keys, in their order, the rows see: [rows, Sk]."""
    offset = problem.seqlen_k - problem.seqlen_q
    i = torch.arange(rows.start, rows.stop, device=order.device)[:, None] + offset
    left, right = problem.window
    right = 0 if problem.causal else right
    seen = torch.ones(len(rows), len(order), dtype=torch.bool, device=order.device)
    if left >= 0:
        seen &= order >= i - left
    if right >= 0:
        seen &= order <= i + right
    return seen


def _group(problem: AttentionProblem) -> int:
    return problem.heads // problem.kv_heads


def _wide_problem(problem: AttentionProblem) -> AttentionProblem:
    return replace(problem, dtype=torch.float64)


def _widened(tensors: AttentionTensors) -> AttentionTensors:
    return replace(tensors, q=tensors.q.double(), k=tensors.k.double(), v=tensors.v.double())


def _moved(inputs: Inputs, place: torch.device) -> Inputs:
    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(place)

    t = inputs.tensors
    tensors = AttentionTensors(
        t.q.to(place),
        t.k.to(place),
        t.v.to(place),
        seqused_k=move(t.seqused_k),
        block_table=move(t.block_table),
    )
    grad_out, out, lse = (move(x) for x in (inputs.grad_out, inputs.out, inputs.lse))
    return Inputs(inputs.problem, tensors, grad_out, out, lse)
