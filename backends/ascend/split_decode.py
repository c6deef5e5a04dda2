"""One query over a long cache: runs of keys in programs of their own, put together exactly.

A run of a sequence is to the tiled kernel a sequence of its own: a contiguous cache's run starts
behind a leftpad, a paged cache's has its part of the table. Run r of a sequence gives its out_r in
float32 and its lse_r; with m = max_r lse_r and a sink z,

    w_r = exp(lse_r - m)     out = sum_r w_r out_r / (sum_r w_r + exp(z - m))

Where runs end depends on a sequence's own keys alone, and the sums are taken in their order, with
exact zeros for runs without keys: bits don't depend on the batch, nor on further room of a cache
that takes runs already.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import AttentionProblem

# Keys of a run: four of the largest first-level blocks, which the compiler keeps in flight at once.
RUN = 4096


def run_keys(problem: AttentionProblem) -> int:
    """Keys of a run: whole pages where there are pages."""
    page = problem.page_size
    return max(RUN // page, 1) * page if page else RUN


def runs(problem: AttentionProblem) -> int:
    """Runs of the longest sequence that the cache has room for."""
    return max(1, -(-problem.seqlen_k // run_keys(problem)))


def divided(
    t: AttentionTensors, problem: AttentionProblem
) -> tuple[AttentionTensors, AttentionProblem]:
    """Every run as a sequence: run r of sequence b is sequence b * runs + r. Sinks are left out."""
    count, keys = runs(problem), run_keys(problem)
    assert t.seqused_k is not None
    used = t.seqused_k
    starts = torch.arange(count, device=used.device, dtype=torch.int32) * keys
    whole = replace(problem, batch=problem.batch * count, sinks=False)
    q = t.q.repeat_interleave(count, 0)
    if t.block_table is not None:
        pages = keys // problem.page_size
        room = count * pages - t.block_table.shape[1]
        table = torch.nn.functional.pad(t.block_table, (0, room)).view(-1, pages)
        mine = (used[:, None] - starts).clamp(0, keys).reshape(-1)
        return replace(t, q=q, sinks=None, block_table=table, seqused_k=mine), whole
    padding = t.leftpad_k
    first = starts + (0 if padding is None else padding[:, None])
    first = torch.minimum(first, used[:, None])
    last = torch.minimum(first + keys, used[:, None])
    rows = t.cache_batch_idx
    if rows is None:
        rows = torch.arange(problem.batch, device=used.device, dtype=torch.int32)
    return replace(
        t, q=q, sinks=None, seqused_k=last.reshape(-1).contiguous(),
        leftpad_k=first.expand_as(last).reshape(-1).contiguous(),
        cache_batch_idx=rows.repeat_interleave(count),
    ), replace(whole, leftpad=True)  # fmt: skip


def merged(
    out: Tensor, lse: Tensor, count: int, sinks: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """out [B * runs, 1, H, Dv] and lse [B * runs, H, 1], both float32, as [B, 1, H, Dv] in `dtype`
    and [B, H, 1]. A sequence of which nothing is seen gives 0 and -inf."""
    lse = lse.unflatten(0, (-1, count))
    out = out.unflatten(0, (-1, count))
    top = lse.amax(1)
    sink = None if sinks is None else sinks.float()[None, :, None]
    if sink is not None:
        top = torch.maximum(top, sink)
    base = torch.where(top == float("-inf"), 0.0, top)
    total = torch.zeros_like(base) if sink is None else torch.exp(sink - base)
    value = torch.zeros_like(out[:, 0])
    for r in range(count):
        weight = torch.exp(lse[:, r] - base)
        total = total + weight
        value = value + weight.transpose(1, 2)[..., None] * out[:, r]
    seen = torch.where(total == 0.0, 1.0, total)
    value = value / seen.transpose(1, 2)[..., None]
    found = torch.where(total == 0.0, float("-inf"), base + torch.log(seen))
    return value.to(dtype), found
