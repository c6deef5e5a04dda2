"""Ring attention: keys and values pass from rank to rank while each attends to what it has.

Rank r starts with its own keys; at step t it has those of rank r - t, already under way while step
t - 1 ran. Results over the steps are merged by lse. The backward goes round again with the final
out and lse, from which every part of the gradient follows alone; the sums of a rank's dk and dv
travel with its keys, in float32 and in ring order, and go home after the last step.

Source: Ring Attention (arXiv 2310.01889); the order of the parts that balances a causal mask:
Striped Attention (arXiv 2311.09431) and Llama 3 (arXiv 2407.21783), section 3.3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portattn import calls
from portattn.arguments import Options
from portattn.dispatch.backend import AttentionTensors, Gradients
from portattn.parallel.layout import Layout, Window
from portattn.parallel.merge import Merged, Rows
from portattn.parallel.transport import Peers, Transfer

_KEYS, _GRADIENTS = 0, 2  # tags


@dataclass(frozen=True, eq=False)
class Ring:
    """One call: who takes part, what everybody holds, and the scalar arguments.

    options.window is that of the whole problem, causal as a right side of 0.
    """

    peers: Peers
    layout: Layout
    options: Options

    @property
    def steps(self) -> int:
        """Ranks whose keys pass by."""
        return self.layout.ring_steps(self.options.window)

    def source(self, step: int) -> int:
        """Whose keys are here at a step."""
        return (self.peers.rank - step) % self.peers.size

    def parts(self, step: int, q: Tensor) -> tuple[Part, ...]:
        """The library's calls that a step is made of."""
        rank, source = self.peers.rank, self.source(step)
        packed = q.dim() == 3
        return _parts(self.layout, rank, source, self.options.window, packed, q.device)

    def buffers(self, step: int, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Room for what belongs to the keys that are here at a step."""
        tokens = sum(self.layout.counts("keys", self.source(step)))
        return tuple(t.new_empty((*t.shape[:-3], tokens, *t.shape[-2:])) for t in like)


class Part(NamedTuple):
    """Rows and keys of one call of the library, as they lie in the local tensors."""

    rows: Rows
    keys: Rows
    window: Window
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int

    def tensors(self, q: Tensor, k: Tensor, v: Tensor) -> AttentionTensors:
        """Of the local queries and of the keys that are here."""
        return AttentionTensors(
            take(q, self.rows, -3),
            take(k, self.keys, -3),
            take(v, self.keys, -3),
            cu_seqlens_q=self.cu_seqlens_q,
            cu_seqlens_k=self.cu_seqlens_k,
        )

    def options(self, whole: Options) -> Options:
        """The call's scalar arguments, but for the window those of the whole problem."""
        return whole._replace(
            causal=self.window[1] == 0,
            window=self.window,
            max_seqlen_q=self.max_seqlen_q,
            max_seqlen_k=self.max_seqlen_k,
        )


def ring_attention(
    ring: Ring, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of this rank's queries over the keys of all ranks, differentiable.

    q [B, Sq, H, D] or [T, H, D], k and v alike: what the layout says this rank holds.
    """
    out, lse = _RingAttention.apply(ring, q, k, v, sinks)  # type: ignore[no-untyped-call]
    return out, lse


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ring: Ring, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        k, v = k.contiguous(), v.contiguous()
        out, lse = _forward(ring, q, k, v, sinks)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.ring = ring
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
        q, k, v, sinks, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        dq, dk, dv = _backward(ctx.ring, grad_out, grad_lse, out, lse, q, k, v)
        dsinks = None
        if sinks is not None and ctx.needs_input_grad[4]:
            dsinks = _sink_gradient(grad_out, grad_lse, out, lse, sinks)
        return None, dq, dk, dv, dsinks


def _forward(
    ring: Ring, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    steps = ring.steps
    merged = Merged(q.shape[-3], steps)
    here: tuple[Tensor, ...] = (k, v)
    for step in range(steps):
        # Begun before the step's own work, so that both run at once.
        coming = _pass_on(ring, step, here) if step + 1 < steps else None
        for part in ring.parts(step, q):
            result = calls.run_forward(part.tensors(q, *here), part.options(ring.options))
            merged.add(part.rows, *result)
        if coming is not None:
            here = coming.wait()
    return merged.result(sinks, q, v.shape[-1])


def _pass_on(ring: Ring, step: int, here: tuple[Tensor, ...]) -> Transfer:
    return ring.peers.exchange(here, ring.buffers(step + 1, here), to=1, tag=_KEYS)


def _backward(
    ring: Ring,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = lse.dtype
    steps = ring.steps
    dq = torch.zeros_like(q, dtype=wide, memory_format=torch.contiguous_format)
    here: tuple[Tensor, ...] = (k, v)
    sums: tuple[Tensor, ...] = ()
    incoming: Transfer | None = None
    for step in range(steps):
        coming = _pass_on(ring, step, here) if step + 1 < steps else None
        found = [
            (part, _part_backward(ring, part, grad_out, grad_lse, out, lse, q, here))
            for part in ring.parts(step, q)
        ]
        # The sums of the ranks that had these keys before; they travelled during the products.
        if incoming is None:
            sums = tuple(torch.zeros_like(t, dtype=wide) for t in here)
        else:
            sums = incoming.wait()
        for part, grads in found:
            add(dq, part.rows, grads.dq)
            for total, grad in zip(sums, (grads.dk, grads.dv), strict=True):
                add(total, part.keys, grad)
        if coming is not None:
            arriving = ring.buffers(step + 1, sums)
            incoming = ring.peers.exchange(sums, arriving, to=1, tag=_GRADIENTS)
            here = coming.wait()
    if steps > 1:
        home = ring.buffers(0, sums)
        sums = ring.peers.exchange(sums, home, to=1 - steps, tag=_GRADIENTS).wait()
    return dq.to(q.dtype), sums[0].to(k.dtype), sums[1].to(v.dtype)


def _part_backward(
    ring: Ring,
    part: Part,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    here: tuple[Tensor, ...],
) -> Gradients:
    rows = part.rows
    return calls.run_backward(
        take(grad_out, rows, -3),
        None if grad_lse is None else take(grad_lse, rows, -1).contiguous(),
        take(out, rows, -3),
        take(lse, rows, -1).contiguous(),
        part.tensors(q, *here),
        part.options(ring.options),
        bias_grad=False,
    )


def _sink_gradient(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, sinks: Tensor
) -> Tensor:
    """-p_sink delta over this rank's rows alone."""
    delta = (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1).transpose(-1, -2)
    if grad_lse is not None:
        delta = delta - grad_lse
    # Rows that see neither key nor sink have lse -inf.
    p_sink = torch.where(lse.isinf(), 0.0, (sinks.to(lse.dtype)[:, None] - lse).exp())
    return -(p_sink * delta).transpose(-1, -2).flatten(0, -2).sum(0).to(sinks.dtype)


def take(tensor: Tensor, where: Rows, dim: int) -> Tensor:
    """Some rows: a view where they lie together."""
    if isinstance(where, tuple):
        return tensor.narrow(dim, where[0], where[1] - where[0])
    return tensor.index_select(dim, where)


def add(total: Tensor, where: Rows, rows: Tensor) -> None:
    """Add to some rows of a total, each of which occurs once: the order can't vary."""
    if isinstance(where, tuple):
        total.narrow(-3, where[0], where[1] - where[0]).add_(rows)
    else:
        total.index_add_(-3, where, rows.to(total.dtype))


# Few: of packed tensors they hold the places of rows.
@lru_cache(maxsize=256)
def _parts(
    layout: Layout, rank: int, source: int, window: Window, packed: bool, device: torch.device
) -> tuple[Part, ...]:
    found = layout.blocks(rank, source, window)
    if not packed:
        return tuple(Part(b.rows, b.keys, b.window, None, None, 0, 0) for b in found[0])
    # One call for the n-th block of every sequence with the same window: no key comes twice.
    calls_of: dict[tuple[Window, int], list[tuple[range, range]]] = {}
    starts = zip(
        _starts(layout.counts("queries", rank)), _starts(layout.counts("keys", source)), strict=True
    )
    for (first_row, first_key), of_sequence in zip(starts, found, strict=True):
        seen: dict[Window, int] = {}
        for block in of_sequence:
            place = seen[block.window] = seen.get(block.window, -1) + 1
            rows = range(first_row + block.rows[0], first_row + block.rows[1])
            keys = range(first_key + block.keys[0], first_key + block.keys[1])
            calls_of.setdefault((block.window, place), []).append((rows, keys))
    return tuple(_packed(of, group, device) for (of, _), group in calls_of.items())


def _packed(window: Window, group: list[tuple[range, range]], device: torch.device) -> Part:
    (rows, cu_q, longest_q), (keys, cu_k, longest_k) = (
        _side([pair[side] for pair in group], device) for side in (0, 1)
    )
    return Part(rows, keys, window, cu_q, cu_k, longest_q, longest_k)


def _side(spans: list[range], device: torch.device) -> tuple[Rows, Tensor, int]:
    """Where the tokens of a call lie, their cumulative lengths, and the longest."""
    lengths = [len(span) for span in spans]
    ends = [0, *accumulate(lengths)]
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device)
    together = spans[-1].stop - spans[0].start == ends[-1]
    where: Rows = (spans[0].start, spans[-1].stop)
    if not together:
        where = torch.tensor([place for span in spans for place in span], device=device)
    return where, cu_seqlens, max(lengths)


def _starts(counts: list[int]) -> list[int]:
    return [0, *accumulate(counts)][:-1]
