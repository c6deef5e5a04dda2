"""Results over parts of the keys, merged row by row where they lie: exact, by log-sum-exp.

    lse = log(exp(lse_a) + exp(lse_b))        out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b

Source: FlashAttention (arXiv 2205.14135), section 3.1. A part that saw no key (lse -inf) adds
nothing, whatever its out holds. On NVIDIA GPUs with Triton it is one kernel, elsewhere torch's.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

# Rows along a dimension: [start, stop), or their places.
Rows = tuple[int, int] | Tensor
_NOTHING = float("-inf")


class Merged:
    """The merge so far over the rows of one rank.

    Results are [B, S, H, Dv] with lse [B, H, S], or [T, H, Dv] with [H, T]. What more than one
    merge reaches is kept in float32, so that a result is rounded once.
    """

    def __init__(self, rows: int, parts: int) -> None:
        self._rows, self._wide = rows, parts > 2
        self._state: tuple[Tensor, Tensor] | None = None

    def add(self, where: Rows, out: Tensor, lse: Tensor) -> None:
        """Add the result over further keys for some rows; it may be kept and written to."""
        if self._state is None:
            self._begin(where, out, lse)
        elif isinstance(where, tuple):
            merge_into(*_at(self._state, where), out, lse)
        else:
            mine = _at(self._state, where)
            merge_into(*mine, out, lse)
            self._state[0].index_copy_(-3, where, mine[0])
            self._state[1].index_copy_(-1, where, mine[1])

    def _begin(self, where: Rows, out: Tensor, lse: Tensor) -> None:
        if self._wide and out.dtype.itemsize < 4:
            out = out.float()
        if where == (0, self._rows):
            self._state = out, lse.contiguous()
            return
        shape = list(out.shape)
        shape[-3] = self._rows
        whole = out.new_zeros(shape)
        whole_lse = lse.new_full((*lse.shape[:-1], self._rows), _NOTHING)
        if isinstance(where, tuple):
            whole.narrow(-3, where[0], where[1] - where[0]).copy_(out)
            whole_lse.narrow(-1, where[0], where[1] - where[0]).copy_(lse)
        else:
            whole.index_copy_(-3, where, out)
            whole_lse.index_copy_(-1, where, lse)
        self._state = whole, whole_lse

    def result(self, sinks: Tensor | None, like: Tensor, head_dim_v: int) -> tuple[Tensor, Tensor]:
        """(out, lse) over all parts, the sinks [H] counted once; `like` is q."""
        if self._state is None:
            out = like.new_zeros((*like.shape[:-1], head_dim_v))
            wide = torch.float64 if like.dtype == torch.float64 else torch.float32
            shape = (*like.shape[:-3], like.shape[-2], like.shape[-3])
            self._state = out, torch.full(shape, _NOTHING, dtype=wide, device=like.device)
        out, lse = self._state
        if sinks is not None:
            out, lse = with_sinks(out, lse, sinks)
        return out.to(like.dtype), lse


def _at(state: tuple[Tensor, Tensor], where: Rows) -> tuple[Tensor, Tensor]:
    out, lse = state
    if isinstance(where, tuple):
        start, count = where[0], where[1] - where[0]
        return out.narrow(-3, start, count), lse.narrow(-1, start, count)
    return out.index_select(-3, where), lse.index_select(-1, where)


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """A result with sinks [H] in its denominator: a part with that lse and no value."""
    total = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    return out * _weight(lse, total), total


def merge_into(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Write the merge of (out, lse) and a part over them; out's dtype is float32 or the part's."""
    if _fused(out):
        from portattn.parallel.merge_kernels import merge_rows

        merge_rows(out, lse, part, part_lse)
        return
    total = torch.logaddexp(lse, part_lse)
    mine, theirs = (_weight(one, total) for one in (lse, part_lse))
    out.copy_((out * mine).where(mine != 0, 0.0) + (part * theirs).where(theirs != 0, 0.0))
    lse.copy_(total)


def merge_all(parts: Tensor, sinks: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The merge of parts [N, B, Sq, H, Dv + 1], whose last column is the lse, in their order.

    Returns out [B, Sq, H, Dv] of `dtype` and lse [B, H, Sq], sinks [H] counted once.
    """
    if _fused(parts) and parts.dtype == torch.float32:
        from portattn.parallel.merge_kernels import merge_parts

        return merge_parts(parts, sinks, dtype)
    values, lses = parts[..., :-1], parts[..., -1]
    lse = torch.logsumexp(lses, 0)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.to(lse.dtype))
    weights = torch.where(lses == _NOTHING, 0.0, (lses - lse).exp())[..., None]
    out = (values * weights).where(weights != 0, 0.0).sum(0)
    return out.to(dtype), lse.transpose(1, 2).contiguous()


def _weight(part: Tensor, total: Tensor) -> Tensor:
    """exp(part - total) beside out's rows: 0 for an empty part, also where all are empty."""
    weight = torch.where(part == _NOTHING, 0.0, (part - total).exp())
    return weight.transpose(-1, -2)[..., None]


def _fused(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64 and _has_triton()


@cache
def _has_triton() -> bool:
    return torch.version.hip is None and find_spec("triton") is not None
