"""Tensor parallel: products whose inner dimension is sharded, added up behind the products.

After attention each rank holds its heads' outputs, and after an MLP's first half its columns: the
projection that follows gives every rank a part of the sum. `linear` computes it in blocks of rows,
as schedule.py orders them, and adds each block up while later ones are computed: through memory
that all ranks map where there is such (CUDA devices of one host that reach each other), else by
sending and receiving in the group (NCCL, gloo, HCCL). A plan that says "all_reduce" has the group's
library reduce each block instead, behind the next block's product.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import P2POp, ProcessGroup, Work

from portattn.attention import attention as attend
from portattn.dispatch import cost
from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.errors import ArgumentError, DeviceError, DtypeError, ShapeError
from portattn.parallel import schedule
from portattn.parallel.schedule import BlockPlan, Speeds
from portattn.parallel.watch import progress

# Of what a data sheet promises, what products and links reach; then a step's cost, and guesses
# where a profile is silent.
_REACHED = 0.75
_START_SECONDS = {"cuda": 8e-6}
_HOST_SECONDS = {"cuda": 30e-6}
_SLOW_START = 50e-6
_UNKNOWN_TFLOPS = 0.1
_UNKNOWN_GBS = 1.0
# Below this many bytes a sum's time is its latency: one collective, whose order is the library's.
_SMALL_BYTES = 2**18


def linear(
    x: Tensor,
    weight: Tensor,
    group: ProcessGroup,
    bias: Tensor | None = None,
    *,
    plan: BlockPlan | None = None,
) -> Tensor:
    """x @ weight.T summed over the ranks of `group`, plus bias; equal on all ranks.

    Args:
        x: [..., inner], this rank's shard of the features; the same leading shape on all ranks.
        weight: [columns, inner], this rank's shard, of x's dtype.
        group: a process group whose backend reaches x's device.
        bias: [columns], whole on every rank; added once.
        plan: which rows are computed and added when; by default the one that the device's profile
            predicts to be the fastest. Every rank must pass the same.

    Returns:
        [..., columns] in x's dtype. Parts are rounded to it and added in fp32 in an order that the
        plan doesn't change; results of at most 256 KiB, and blocks of an "all_reduce" plan,
        are added in the group's own order and dtype.

    Raises:
        ShapeError, DtypeError, DeviceError: an argument doesn't fit the others.
    """
    _check(x, weight, bias, group, plan)
    rows = x.reshape(-1, x.shape[-1])
    out = rows.new_empty((rows.shape[0], weight.shape[0]))
    if plan is None:
        plan = _planned(out, rows.shape[1], group)
    if plan is None:
        torch.mm(rows, weight.T, out=out)
        _reduce(out, group)
    else:
        fill(out, lambda block: rows[block], weight, group, plan)
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], weight.shape[0])


def linear_scattered(
    x: Tensor, weight: Tensor, group: ProcessGroup, *, plan: BlockPlan | None = None
) -> Tensor:
    """The rows of `linear` that this rank adds up, for models whose ranks share the rows there.

    Half of linear's bytes: parts travel behind the products as messages of the group, and sums
    stay where they are. `gather_rows` puts the whole together.

    Args:
        x: [rows, inner], this rank's shard of the features.
        weight, group: see linear.
        plan: by default `scattered_plan`. Every rank must pass the same.

    Returns:
        [rows of plan.span(this rank), columns], the same bits whatever the pieces, where a
        product's kernel is the same; and as linear's, where linear goes by messages as well.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError: see linear.
    """
    if x.dim() != 2:
        raise ShapeError("x", "[rows, inner]", list(x.shape))
    _check(x, weight, None, group, plan)
    # As rows of the whole, so that a block's place in it and in the span is found as for linear.
    out = x.new_empty((x.shape[0], weight.shape[0]))
    plan = plan or scattered_plan(x, weight, group)
    span = plan.span(group.rank())
    if group.size() == 1:
        return x @ weight.T
    progress.begin("the scattered sum of", list(out.shape))
    _by_messages(out, lambda block: x[block], weight, group, plan, gather=False)
    return out[span].clone()


def scattered_plan(x: Tensor, weight: Tensor, group: ProcessGroup) -> BlockPlan:
    """What linear_scattered does without a plan, the same on all ranks: gather_rows needs it."""
    sizes = (x.shape[0], x.shape[1], weight.shape[0], x.element_size(), group.size())
    chosen = _best(sizes, speeds(x)) if group.size() > 1 else None
    return chosen or schedule.cut(x.shape[0], group.size())


def gather_rows(mine: Tensor, group: ProcessGroup, plan: BlockPlan) -> Tensor:
    """[plan.rows, columns] from every rank's span [its rows, columns], as before the next product.

    Raises ShapeError for rows that aren't this rank's span.
    """
    spans = [plan.span(rank) for rank in range(plan.ranks)]
    counts = [span.stop - span.start for span in spans]
    if mine.dim() != 2 or mine.shape[0] != counts[group.rank()]:
        raise ShapeError("mine", f"[{counts[group.rank()]}, columns]", list(mine.shape))
    if group.size() == 1:
        return mine
    progress.begin("the gather of", [plan.rows, mine.shape[1]])
    # Spans differ by a row at most: padded, one collective that every backend has takes them.
    padded = mine.new_zeros((max(counts), mine.shape[1]))
    padded[: mine.shape[0]] = mine
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    group: ProcessGroup,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    plan: BlockPlan | None = None,
) -> Tensor:
    """Attention of this rank's heads and its output projection, summed over the ranks of `group`.

    A block's query rows are attended to and projected before the next block's: its sum travels
    behind both. With causal=True a block reads no key that none of its rows may see.

    Args:
        q: [1, seqlen_q, heads, head_dim], this rank's heads of one sequence.
        k, v: [1, seqlen_k, kv_heads, head_dim].
        weight: [columns, heads * head_dim], this rank's shard of the projection.
        group, plan: see linear; plan.rows is seqlen_q.
        causal, softmax_scale: see portattn.attention.

    Returns:
        [1, seqlen_q, columns], equal on all ranks.

    Raises:
        ShapeError, DtypeError, DeviceError: an argument doesn't fit the others.
    """
    if q.dim() != 4 or q.shape[0] != 1:
        raise ShapeError("q", "[1, seqlen_q, heads, head_dim]", list(q.shape))
    _check(q.flatten(2), weight, None, group, plan)
    seqlen, hidden = q.shape[1], k.shape[1] - q.shape[1]
    out = q.new_empty((seqlen, weight.shape[0]))

    def attended(block: slice) -> Tensor:
        seen = slice(None, max(hidden + block.stop, 0) if causal else None)
        rows = attend(
            q[:, block], k[:, seen], v[:, seen], causal=causal, softmax_scale=softmax_scale
        )
        assert isinstance(rows, Tensor)
        return rows.flatten(2)[0]

    if plan is None:
        plan = _planned(out, weight.shape[1], group)
    if plan is None:
        torch.mm(attended(slice(0, seqlen)), weight.T, out=out)
        _reduce(out, group)
    else:
        fill(out, attended, weight, group, plan)
    return out[None]


def fill(
    out: Tensor,
    rows: Callable[[slice], Tensor],
    weight: Tensor,
    group: ProcessGroup,
    plan: BlockPlan,
) -> None:
    """out [rows, columns] = the sum over ranks of rows(block) @ weight.T, block by block.

    `rows` gives [stop - start, inner] for a slice of rows, on the current stream; weight is
    [columns, inner]. Every rank passes the same plan.
    """
    progress.begin("the sum of", list(out.shape))
    if _reachable(out, group, plan):
        _symmetric(group, out.device).fill(out, rows, weight, plan)
    elif plan.reduction == "all_reduce":
        _by_reductions(out, rows, weight, group, plan)
    else:
        _by_messages(out, rows, weight, group, plan)


def _planned(out: Tensor, inner: int, group: ProcessGroup) -> BlockPlan | None:
    """The profile's plan for so many rows; without one, the fastest that is predicted.

    None where one reduction after the product is predicted to be faster.
    """
    sizes = (out.shape[0], inner, out.shape[1], out.element_size(), group.size())
    if group.size() == 1 or out.nbytes <= _SMALL_BYTES:
        return None
    rules = profiles.for_device(devices.of(out.device)).blocks
    if rules:
        return schedule.of_rules(rules, out.shape[0], group.size())
    return _best(sizes, speeds(out))


@cache
def _best(sizes: tuple[int, int, int, int, int], known: Speeds) -> BlockPlan | None:
    plan = schedule.best(*sizes, known)
    _, inner, columns, itemsize, _ = sizes
    told = schedule.modelled(plan, inner, columns, itemsize, known)
    return plan if told.total < schedule.plain_seconds(*sizes, known) else None


def _reduce(out: Tensor, group: ProcessGroup) -> None:
    if group.size() > 1:
        progress.begin("the sum of", list(out.shape))
        dist.all_reduce(out, group=group)


def speeds(x: Tensor) -> Speeds:
    """What the profile of x's device predicts of products in x's dtype and of the link to a peer.

    Without a peer's link in the profile: 1 GB/s, the order of an Ethernet port and of gloo.
    """
    device = devices.of(x.device)
    profile = profiles.for_device(device)
    known = cost.rates(profile, device.cores)
    tflops = known.tflops_of(x.dtype) or _UNKNOWN_TFLOPS
    return Speeds(
        multiply=tflops * 1e12 * _REACHED,
        send=(profile.links.peer_gbs or _UNKNOWN_GBS) * 1e9 * _REACHED,
        start=_START_SECONDS.get(x.device.type, _SLOW_START),
        host=_HOST_SECONDS.get(x.device.type, 0.0),
        cores=device.cores if x.device.type == "cuda" else 1,
    )


def _by_messages(
    out: Tensor,
    rows: Callable[[slice], Tensor],
    weight: Tensor,
    group: ProcessGroup,
    plan: BlockPlan,
    *,
    gather: bool = True,
) -> None:
    """The same blocks with messages of the group; parts are added in the order of the ranks."""
    rank, ranks = group.rank(), group.size()
    arriving: list[Work] = []
    parts: dict[int, Tensor] = {}
    for block in plan.order(rank):
        parts[block.owner] = rows(slice(block.start, block.stop)) @ weight.T
        if block.owner != rank:
            continue
        # Each piece's sum waits for its parts only; its results travel while the next is computed.
        received = [torch.empty_like(parts[rank]) for _ in range(ranks - 1)]
        others = [(rank + step) % ranks for step in range(1, ranks)]
        _wait(
            _exchange(
                group,
                {other: parts[other] for other in others},
                dict(zip(others, received, strict=True)),
            )
        )
        held = {rank: parts[rank], **dict(zip(others, received, strict=True))}
        mine = out[block.start : block.stop]
        mine.copy_(_in_order([held[source] for source in range(ranks)]))
        if not gather:
            continue
        blocks = plan.pieces[block.piece]
        arriving += _exchange(
            group,
            dict.fromkeys(others, mine),
            {other: out[blocks[other].start : blocks[other].stop] for other in others},
        )
    _wait(arriving)


def _by_reductions(
    out: Tensor,
    rows: Callable[[slice], Tensor],
    weight: Tensor,
    group: ProcessGroup,
    plan: BlockPlan,
) -> None:
    """Each block's all-reduce travels behind the next block's product, in the library's order."""
    works: list[Work] = []
    for block in plan.order(group.rank()):
        if block.rows:
            mine = out[block.start : block.stop]
            torch.mm(rows(slice(block.start, block.stop)), weight.T, out=mine)
            works.append(dist.all_reduce(mine, group=group, async_op=True))
    _wait(works)


def _in_order(parts: list[Tensor]) -> Tensor:
    """Their sum in fp32, or in their own dtype if that is wider."""
    total = parts[0].to(torch.promote_types(parts[0].dtype, torch.float32))
    for part in parts[1:]:
        total = total + part
    return total


def _exchange(
    group: ProcessGroup, sent: dict[int, Tensor], arriving: dict[int, Tensor]
) -> list[Work]:
    operations = []
    for function, tensors in ((dist.isend, sent), (dist.irecv, arriving)):
        for other, tensor in tensors.items():
            if tensor.numel():
                peer = dist.get_global_rank(group, other)
                operations.append(P2POp(function, tensor, peer, group))
    return list(dist.batch_isend_irecv(operations)) if operations else []


def _wait(works: list[Work]) -> None:
    for work in works:
        work.wait()


def _reachable(out: Tensor, group: ProcessGroup, plan: BlockPlan) -> bool:
    """Whether all ranks of the group map each other's memory, and no block is empty."""
    whole = all(block.rows for blocks in plan.pieces for block in blocks)
    whole = whole and plan.reduction == "owner"
    return whole and out.is_cuda and _maps_peers(group, out.device)


@cache
def _maps_peers(group: ProcessGroup, device: torch.device) -> bool:
    """Collective, once for a group: the same answer on every rank."""
    facts: list[Any] = [None] * group.size()
    dist.all_gather_object(facts, (platform.node(), device.index), group=group)
    hosts, indices = zip(*facts, strict=True)
    here = len(set(hosts)) == 1 and len(set(indices)) == len(indices)
    reached = here and all(
        other == device.index or torch.cuda.can_device_access_peer(device.index, other)
        for other in indices
    )
    dist.all_gather_object(facts, reached, group=group)
    return all(facts)


@cache
def _symmetric(group: ProcessGroup, device: torch.device) -> Any:
    return importlib.import_module("portattn.parallel.symmetric").SymmetricSum(group, device)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, group: ProcessGroup, plan: BlockPlan | None
) -> None:
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        shown = f"{list(x.shape)} and {list(weight.shape)}"
        raise ShapeError("weight", "[columns, inner] for x [..., inner]", shown)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError("bias", f"[{weight.shape[0]}]", list(bias.shape))
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise DtypeError(name, f"x's dtype, {x.dtype}", tensor.dtype)
        if tensor is not None and tensor.device != x.device:
            raise DeviceError(name, f"x's device, {x.device}", tensor.device)
    rows = x.numel() // max(x.shape[-1], 1)
    if plan is not None and (plan.rows, plan.ranks) != (rows, group.size()):
        given = f"{plan.rows} rows for {plan.ranks} ranks"
        raise ArgumentError("plan", f"{rows} rows for {group.size()} ranks", given)
