"""Attention as one formula per sequence, in plain torch, independent of every backend."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from portattn.arguments import Options
from portattn.dispatch.backend import AttentionTensors


def attention(t: AttentionTensors, o: Options) -> tuple[Tensor, Tensor]:
    """out and lse in the dtype of the inputs, differentiable, shaped as backends return them."""
    varlen = t.q.dim() == 3
    outs, lses = [], []
    batch = len(t.cu_seqlens_q) - 1 if t.cu_seqlens_q is not None else len(t.q)
    for b in range(batch):
        q, k, v = sequence(t, b)
        out, lse = _one(q, k, v, t, o, b)
        outs.append(out)
        lses.append(lse)
    heads, dim_v = t.q.shape[-2], t.v.shape[-1]
    if not varlen:
        shape = (batch, t.q.shape[1], heads, dim_v)
        if not outs:
            return t.q.new_zeros(shape), t.q.new_zeros(batch, heads, t.q.shape[1])
        return torch.stack(outs), torch.stack(lses)
    rest = len(t.q) - sum(len(out) for out in outs)
    outs.append(t.q.new_zeros(rest, heads, dim_v))
    lses.append(t.q.new_full((heads, rest), -math.inf))
    return torch.cat(outs), torch.cat(lses, 1)


def sequence(t: AttentionTensors, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [Sq, H, D], k and v [Sk, Hkv, D] of one sequence, scaled where they are stored so."""
    q, k, v = stored_sequence(t, b)
    if t.k_scale is None or t.v_scale is None:
        return q, k, v
    k, v = (x.double() * s[b].double()[:, None] for x, s in ((k, t.k_scale), (v, t.v_scale)))
    return q, k.to(q.dtype), v.to(q.dtype)


def stored_sequence(t: AttentionTensors, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [Sq, H, D], k and v [Sk, Hkv, D] of one sequence, as they lie in memory."""
    starts = t.cu_seqlens_q
    q = t.q[b] if starts is None else t.q[starts[b] : starts[b + 1]]
    first = int(t.leftpad_k[b]) if t.leftpad_k is not None else 0
    if t.block_table is not None:
        if t.seqused_k is not None:
            last = int(t.seqused_k[b])
        else:
            assert t.cu_seqlens_k is not None
            last = int(t.cu_seqlens_k[b + 1] - t.cu_seqlens_k[b])
        size = t.k.shape[1]
        places = [(int(t.block_table[b, j // size]), j % size) for j in range(first, last)]
        rows = [page for page, _ in places], [slot for _, slot in places]
        return q, t.k[rows], t.v[rows]
    if t.seqused_k is not None:
        row = int(t.cache_batch_idx[b]) if t.cache_batch_idx is not None else b
        span = slice(first, int(t.seqused_k[b]))
        return q, t.k[row, span], t.v[row, span]
    if t.cu_seqlens_k is not None:
        span = slice(int(t.cu_seqlens_k[b]), int(t.cu_seqlens_k[b + 1]))
        return q, t.k[span], t.v[span]
    return q, t.k[b], t.v[b]


def visible(t: AttentionTensors, o: Options, b: int, size: tuple[int, int]) -> Tensor:
    """Which keys sequence b's queries see: [H, Sq, Sk]."""
    queries, keys = size
    i = torch.arange(queries, device=t.q.device)[:, None] + keys - queries
    j = torch.arange(keys, device=t.q.device)
    left, right = o.window
    seen = torch.ones(t.q.shape[-2], queries, keys, dtype=torch.bool, device=t.q.device)
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    if o.causal:
        seen &= j <= i
    if t.mask is not None:
        seen &= _of(t.mask, b, size)
    if t.bias is not None:
        seen &= _of(t.bias, b, size) > -math.inf
    return seen


def term_sizes(
    t: AttentionTensors, o: Options, grad_out: Tensor | None = None, grad_lse: Tensor | None = None
) -> dict[str, float]:
    """The largest sum of absolute terms behind an entry of each result, times 1 + that of a score.

    One rounding of every score and every sum changes a result by this times the rounding unit,
    however much of the terms cancels.
    """
    sizes: dict[str, float] = {}

    def grow(name: str, terms: Tensor) -> None:
        sizes[name] = max(sizes.get(name, 0.0), float(terms.max()) if terms.numel() else 0.0)

    batch = len(t.cu_seqlens_q) - 1 if t.cu_seqlens_q is not None else len(t.q)
    for b in range(batch):
        q, k, v = sequence(t, b)
        p, _ = _weights(q, k, t, o, b)
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        reach = q.transpose(0, 1).abs() @ k.transpose(1, 2).abs() * abs(o.softmax_scale)
        worst = 1.0 + (float(reach.max()) if reach.numel() else 0.0)
        grow("out", p @ v.abs() * worst)
        grow("lse", torch.tensor([worst]))
        if grad_out is None:
            continue
        g = sequence(replace(t, q=grad_out), b)[0].transpose(0, 1).to(p.dtype)
        w = p * (g.abs() @ v.transpose(1, 2).abs()) * worst
        w = w + p * w.sum(-1, keepdim=True)
        if grad_lse is not None and grad_lse.numel():
            w = w + p * grad_lse.abs().max().to(p.dtype) * worst
        grow("dq", abs(o.softmax_scale) * (w @ k.abs()))
        dk = abs(o.softmax_scale) * (w.transpose(1, 2) @ q.transpose(0, 1).abs())
        grow("dk", dk.unflatten(0, (-1, group)).sum(1))
        dv = p.transpose(1, 2) @ g.abs() * worst
        grow("dv", dv.unflatten(0, (-1, group)).sum(1))
        if t.bias is not None:
            dims = [d for d in range(3) if t.bias.shape[d + 1] == 1]
            total = w.sum(dims) if dims else w
            grow("dbias", total * (batch if t.bias.shape[0] == 1 else 1))
        grow("dsinks", w.sum((1, 2)) * batch)
    return sizes


def _one(
    q: Tensor, k: Tensor, v: Tensor, t: AttentionTensors, o: Options, b: int
) -> tuple[Tensor, Tensor]:
    p, lse = _weights(q, k, t, o, b)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1).transpose(0, 1)
    return (p @ v).transpose(0, 1), lse


def _weights(
    q: Tensor, k: Tensor, t: AttentionTensors, o: Options, b: int
) -> tuple[Tensor, Tensor]:
    """Attention weights [H, Sq, Sk] after dropout, and lse [H, Sq]."""
    size = (len(q), len(k))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1)
    s = q.transpose(0, 1) @ k.transpose(1, 2) * o.softmax_scale
    if o.softcap:
        s = o.softcap * torch.tanh(s / o.softcap)
    if t.alibi_slopes is not None:
        slopes = t.alibi_slopes if t.alibi_slopes.dim() == 1 else t.alibi_slopes[b]
        i = torch.arange(size[0], device=q.device)[:, None] + size[1] - size[0]
        distance = (i - torch.arange(size[1], device=q.device)).abs()
        s = s - slopes[:, None, None].to(s.dtype) * distance
    if t.bias is not None:
        bias = _of(t.bias, b, size)
        s = s + torch.where(bias == -math.inf, 0, bias).to(s.dtype)
    seen = visible(t, o, b, size)
    s = s.masked_fill(~seen, -math.inf)
    top = s.detach().amax(-1, keepdim=True) if size[1] else s.new_full((*s.shape[:2], 1), -math.inf)
    if t.sinks is not None:
        top = torch.maximum(top, t.sinks.detach()[:, None, None].to(s.dtype))
    top = torch.where(top == -math.inf, 0, top)
    weight = torch.where(seen, (s - top).exp(), 0)
    total = weight.sum(-1, keepdim=True)
    if t.sinks is not None:
        total = total + (t.sinks[:, None, None].to(s.dtype) - top).exp()
    p = weight / torch.where(total == 0, 1, total)
    if o.dropout_p:
        p = p * _dropout(t, o.dropout_p, b, p)
    lse = torch.where(total == 0, -math.inf, top + torch.where(total == 0, 1, total).log())
    return p, lse[..., 0]


def _of(tensor: Tensor, b: int, size: tuple[int, int]) -> Tensor:
    part = tensor[b if tensor.shape[0] > 1 else 0]
    return part[
        :,
        : max(size[0], 1) if part.shape[1] == 1 else size[0],
        : max(size[1], 1) if part.shape[2] == 1 else size[1],
    ]


def _dropout(t: AttentionTensors, probability: float, b: int, like: Tensor) -> Tensor:
    """Philox4x32-10 in numpy: counter (j, i, b H + h, offset), key the halves of the seed."""
    assert t.rng_state is not None
    seed, offset = (int(x) for x in t.rng_state)
    heads = like.shape[0]
    import numpy as np  # only dropout needs it

    h, i, j = np.meshgrid(*(np.arange(n, dtype=np.uint64) for n in like.shape), indexing="ij")
    c = [j, i, np.uint64(b * heads) + h, np.full_like(j, offset & 0xFFFFFFFF)]
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, d = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        shift = np.uint64(32)
        c = [
            (d >> shift) ^ c[1] ^ np.uint64(key[0]),
            d & low,
            (a >> shift) ^ c[3] ^ np.uint64(key[1]),
            a & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    keep = (c[0] >> np.uint64(8)).astype(np.float64) * 2.0**-24 >= probability
    return torch.from_numpy(keep / (1 - probability)).to(like)
