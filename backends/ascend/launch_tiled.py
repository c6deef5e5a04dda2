"""From tensors and a problem to a launch of the tiled kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from portattn.backends.ascend import split_decode, tiles
from portattn.backends.ascend.tiled import tiled_kernel
from portattn.backends.ascend.tiling_mask import tiling_mask
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem


def packed(problem: AttentionProblem) -> bool:
    """Whether a group's heads are the rows of one tile, as its single query has but one each."""
    return problem.layout == "cache" and problem.seqlen_q == 1 and problem.window[0] < 0


def programs(problem: AttentionProblem, config: Config) -> int:
    """Programs of a launch."""
    if packed(problem):
        rows = problem.heads // problem.kv_heads
        per_head = -(-rows // tiles.tile(problem, rows, config).block_m)
        return per_head * problem.batch * problem.kv_heads * split_decode.runs(problem)
    block_m = tiles.tile(problem, problem.seqlen_q, config).block_m
    return -(-problem.seqlen_q // block_m) * problem.batch * problem.heads


def run(t: AttentionTensors, problem: AttentionProblem, config: Config) -> tuple[Tensor, Tensor]:
    """out and lse of any layout; see AttentionTensors for shapes."""
    if packed(problem) and split_decode.runs(problem) > 1:
        parts = _launched(*split_decode.divided(t, problem), config, torch.float32)
        return split_decode.merged(*parts, split_decode.runs(problem), t.sinks, t.q.dtype)
    return _launched(t, problem, config, t.q.dtype)


def _launched(
    t: AttentionTensors, problem: AttentionProblem, config: Config, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """out in `dtype` and lse of one launch."""
    q = t.q
    # Zeros and -inf: packed tensors may have room past the last sequence, which no program writes.
    out = q.new_zeros((*q.shape[:-1], problem.head_dim_v), dtype=dtype)
    lse_shape = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    lse = q.new_full(lse_shape, float("-inf"), dtype=torch.float32)
    if not lse.numel() or not problem.keys:
        return _without_keys(out, lse, t.sinks)
    group = problem.heads // problem.kv_heads
    as_group = packed(problem)
    rows = group if as_group else problem.seqlen_q
    tile = tiles.tile(problem, rows, config)
    left, right = problem.window
    heads = problem.kv_heads if as_group else problem.heads
    row_tiles = -(-rows // tile.block_m)
    mask = tiling_mask(tiles.MASK_SIDE, torch.int8, q.device)
    table = t.block_table
    args = (
        q, t.k, t.v, out, lse, mask, t.sinks,
        t.cu_seqlens_q, t.cu_seqlens_k, t.seqused_k, t.leftpad_k, t.cache_batch_idx, table,
        *_strides(q), *_strides(t.k), *_strides(t.v), *_strides(out),
        0 if lse.dim() == 2 else lse.stride(0), lse.stride(-2),
        0 if table is None else table.stride(0),
        float(problem.softmax_scale), float(problem.softcap), left, right, heads, row_tiles,
        problem.seqlen_q, problem.seqlen_k,
    )  # fmt: skip
    tiled_kernel[(row_tiles * heads * problem.batch,)](*args, **_constants(t, problem, tile, group))
    return out, lse


def _constants(
    t: AttentionTensors, problem: AttentionProblem, tile: tiles.Tile, group: int
) -> dict[str, Any]:
    left, right = problem.window
    as_group = packed(problem)
    return {
        "GROUP": group,
        "D": problem.head_dim,
        "WIDTH": tiles.width(problem.head_dim),
        "DV": problem.head_dim_v,
        "WIDTH_V": tiles.width(problem.head_dim_v),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "EDGE": tile.edge,
        "SIDE": tiles.MASK_SIDE,
        "PAGE": problem.page_size,
        "VARLEN": problem.layout == "varlen",
        "CACHE": problem.layout == "cache",
        "LEFTPAD": t.leftpad_k is not None,
        "INDEXED": t.cache_batch_idx is not None,
        "PACKED": as_group,
        "SINKS": t.sinks is not None,
        "SOFTCAP": problem.softcap != 0.0,
        "LEFT": left >= 0,
        # The only query sees every key there is.
        "RIGHT": right >= 0 and not as_group,
    }


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Batch (or page), row and head strides of a tensor whose last stride is 1."""
    strides = tensor.stride()[:-1]
    return (0, *strides) if len(strides) == 2 else strides  # type: ignore[return-value]


def _without_keys(out: Tensor, lse: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows that see nothing but a sink."""
    return out, lse if sinks is None else sinks.float()[:, None].expand_as(lse).contiguous()
