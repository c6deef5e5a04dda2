"""Host pages of int8 or float8: half the bytes of 16-bit keys, rounded once, when they leave.

A page's keys of one head share a scale, the largest of them over what the dtype holds, and its
values likewise: x is kept as round(x / scale). Nothing is clipped, and what a page lost doesn't
depend on other pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from portattn.cache.view import SCALED
from portattn.errors import ArgumentError
from portattn.offload.partial import Call, State, part

Scales = tuple[Tensor, Tensor]  # of keys and of values, [pages, Hkv] float32


def host_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of a name; None is the model's own."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in SCALED}
    if name is not None and name not in names:
        raise ArgumentError("kv_dtype", f"must be one of {', '.join(names)}", repr(name))
    return None if name is None else names[name]


def quantized(pages: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of pages [P, Hkv, page_size, D]: what is kept of them, scales [P, Hkv], and the sums of
    squares of what was lost and of what was there, [2] float64."""
    exact, most = pages.float(), SCALED[dtype]
    # A page of zeros has any scale but zero.
    scale = (exact.abs().amax((2, 3)) / most).clamp(min=torch.finfo(torch.float32).tiny)
    values = (exact / scale[..., None, None]).clamp(-most, most)
    kept = (values.round() if dtype == torch.int8 else values).to(dtype)
    lost = kept.float() * scale[..., None, None] - exact
    return kept, scale, torch.stack([lost.square().sum(), exact.square().sum()]).double()


def floats(pages: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that pages [..., Hkv, page_size, D] of scale [..., Hkv] stand for."""
    return (pages.float() * scale[..., None, None]).to(dtype)


def attend(
    call: Call,
    k: Tensor,
    v: Tensor,
    scales: Scales,
    scores: Sequence[Tensor | None],
    pads: Tensor | None,
    table: Tensor,
) -> State:
    """Attention over whole pages [P, page_size, Hkv, D(v)] of scales [P, Hkv] by table [B, pages].

    Kernels take one scale for a sequence's head, so each page is a sequence to them; the pages'
    results are merged here. scores have page_size * pages columns, pads count the first of them.
    """
    size, made = k.shape[1], []
    for b, row in enumerate(table):
        ids, count = row.long(), row.shape[0]
        query = call.q[b : b + 1].expand(count, -1, -1, -1)
        own = [None if t is None else _by_page(t, b, count, size) for t in scores]
        skip = None
        if pads is not None:
            places = size * torch.arange(count, dtype=torch.int32)
            skip = (pads[b] - places).clamp(0, size).to(torch.int32)
        pair = scales[0][ids], scales[1][ids]
        found = part(
            replace(call, q=query), k, v, own, skip, table=row[:, None], keys=size, scales=pair
        )
        made.append(_merged(*found))
    return torch.stack([out for out, _ in made]), torch.stack([lse for _, lse in made])


def _by_page(scores: Tensor, b: int, count: int, size: int) -> Tensor:
    """Columns [B or 1, H, T, count * size] of one sequence as [count, H, T, size]."""
    own = scores[b if scores.shape[0] > 1 else 0]
    if own.shape[-1] == 1 != count * size:
        return own[None].expand(count, -1, -1, -1)
    paged: Tensor = own.unflatten(-1, (count, size)).permute(2, 0, 1, 3)
    return paged


def _merged(out: Tensor, lse: Tensor) -> State:
    """One state of out [pages, T, H, Dv] and lse [pages, H, T]."""
    whole = lse.logsumexp(0)
    # A row without a visible key has no share anywhere.
    shares = (lse - whole.clamp(min=torch.finfo(lse.dtype).min)).exp()
    merged: Tensor = torch.einsum("pht,pthd->thd", shares.to(out.dtype), out)
    return merged, whole
