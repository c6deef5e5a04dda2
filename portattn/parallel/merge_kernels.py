"""The merges of merge.py as one Triton kernel each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16
_PARTS_ROWS = 4


@triton.jit
def _merge_rows(
    out, lse, part, part_lse, rows, heads, dim,
    out_b, out_s, out_h, lse_b, lse_h, lse_s,
    part_b, part_s, part_h, part_lse_b, part_lse_h, part_lse_s,
    ROWS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(rows, ROWS)
    program = tl.program_id(0).to(tl.int64)
    h = program % heads
    b = program // heads // tiles
    s = (program // heads % tiles) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    inside = s < rows
    lse_at = lse + b * lse_b + h * lse_h + s * lse_s
    a = tl.load(lse_at, mask=inside, other=float("-inf"))
    c = tl.load(
        part_lse + b * part_lse_b + h * part_lse_h + s * part_lse_s,
        mask=inside,
        other=float("-inf"),
    )
    top = tl.maximum(a, c)
    # Two empty parts: exp(-inf - 0) is 0 for both.
    top = tl.where(top == float("-inf"), 0.0, top)
    ea = tl.exp(a - top)
    ec = tl.exp(c - top)
    total = ea + ec
    scale = 1.0 / tl.where(total == 0.0, 1.0, total)
    columns = tl.arange(0, DIM)[None, :]
    mask = inside[:, None] & (columns < dim)
    out_at = out + b * out_b + h * out_h + s[:, None] * out_s + columns
    mine = tl.load(out_at, mask=mask, other=0.0).to(tl.float32)
    theirs = tl.load(
        part + b * part_b + h * part_h + s[:, None] * part_s + columns, mask=mask, other=0.0
    ).to(tl.float32)
    # What a part of no weight holds counts for nothing, NaN included.
    mine = tl.where((ea != 0.0)[:, None], mine * (ea * scale)[:, None], 0.0)
    theirs = tl.where((ec != 0.0)[:, None], theirs * (ec * scale)[:, None], 0.0)
    tl.store(out_at, (mine + theirs).to(out.dtype.element_ty), mask=mask)
    tl.store(lse_at, tl.where(total == 0.0, float("-inf"), top + tl.log(total)), mask=inside)


@triton.jit
def _merge_parts(
    parts, sinks, out, lse, count, seqlen, heads, dim, part_stride, rows,
    SINKS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    # A row is one (sequence, query, head), in the order of `parts` and `out`.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    inside = row < rows
    h = row % heads
    columns = tl.arange(0, DIM)[None, :]
    mask = inside[:, None] & (columns < dim)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    if SINKS:
        top = tl.load(sinks + h, mask=inside, other=float("-inf")).to(tl.float32)
    at = parts + row * (dim + 1)
    for part in range(count):
        value = tl.load(at + part * part_stride + dim, mask=inside, other=float("-inf"))
        top = tl.maximum(top, value)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([ROWS], tl.float32)
    if SINKS:
        sink = tl.load(sinks + h, mask=inside, other=float("-inf")).to(tl.float32)
        total += tl.exp(sink - top)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for part in range(count):
        part_at = at + part * part_stride
        weight = tl.exp(tl.load(part_at + dim, mask=inside, other=float("-inf")) - top)
        total += weight
        value = tl.load(part_at[:, None] + columns, mask=mask, other=0.0)
        acc += tl.where((weight != 0.0)[:, None], value * weight[:, None], 0.0)
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + row[:, None] * dim + columns, acc.to(out.dtype.element_ty), mask=mask)
    # lse is [B, H, Sq].
    b = row // heads // seqlen
    s = row // heads % seqlen
    value = tl.where(total == 0.0, float("-inf"), top + tl.log(total))
    tl.store(lse + (b * heads + h) * seqlen + s, value, mask=inside)


def merge_rows(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """out and lse become the merge with part; [B, S, H, Dv] with [B, H, S], or without the B."""
    if out.numel() == 0:
        return
    if out.dim() == 3:
        out, lse, part, part_lse = (x[None] for x in (out, lse, part, part_lse))
    if part.stride(-1) != 1:
        part = part.contiguous()
    batch, rows, heads, dim = out.shape
    if out.stride(-1) != 1:
        merged = out.contiguous()
        merge_rows(merged, lse, part, part_lse)
        out.copy_(merged)
        return
    _merge_rows[(batch * heads * triton.cdiv(rows, _ROWS),)](
        out, lse, part, part_lse, rows, heads, dim,
        *out.stride()[:3], *lse.stride(), *part.stride()[:3], *part_lse.stride(),
        ROWS=_ROWS, DIM=triton.next_power_of_2(dim), num_warps=4,
    )  # fmt: skip


def merge_parts(parts: Tensor, sinks: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """out [B, Sq, H, Dv] and lse [B, H, Sq] of contiguous float32 parts [N, B, Sq, H, Dv + 1]."""
    count, batch, seqlen, heads, width = parts.shape
    out = parts.new_empty((batch, seqlen, heads, width - 1), dtype=dtype)
    lse = parts.new_empty((batch, heads, seqlen))
    rows = batch * seqlen * heads
    if rows:
        _merge_parts[(triton.cdiv(rows, _PARTS_ROWS),)](
            parts, parts if sinks is None else sinks, out, lse, count, seqlen, heads, width - 1,
            parts.stride(0), rows,
            SINKS=sinks is not None, ROWS=_PARTS_ROWS, DIM=triton.next_power_of_2(width - 1),
            num_warps=4,
        )  # fmt: skip
    return out, lse
