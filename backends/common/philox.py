"""The dropout mask that every backend reproduces: Philox4x32-10 by element.

Random123 (Salmon et al., SC 2011). For attention weight (i, j) of head h in sequence b:
key = (seed low, seed high), counter = (j, i, b * H + h, offset low), first output word x;
the weight is kept iff (x >> 8) * 2**-24 >= p, and scaled by 1 / (1 - p).
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds; counters are broadcastable int64 tensors of 32-bit words, as are the results."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _multiply(_MULTIPLIERS[0], c0)
        hi1, lo1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def keep_scale(rng_state: Tensor, p: float, heads: Tensor, rows: range, keys: range) -> Tensor:
    """0 for a dropped weight, 1 / (1 - p) for a kept one: [*heads.shape, rows, keys] float64.

    heads holds b * H + h of each score matrix.
    """
    seed, offset = rng_state.tolist()
    i = torch.arange(rows.start, rows.stop, device=heads.device)[:, None]
    j = torch.arange(keys.start, keys.stop, device=heads.device)
    words = philox4x32(
        (j, i, heads[..., None, None], torch.full_like(j, offset & _WORD)),
        (seed & _WORD, (seed >> 32) & _WORD),
    )[0]
    uniform = (words >> 8).double() * 2.0**-24
    return (uniform >= p).double() / (1.0 - p)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of a 32 x 32 bit product, in int64 that holds only 63 bits."""
    high = (b * (a >> 16) + ((b * (a & 0xFFFF)) >> 16)) >> 16
    return high & _WORD, (b * a) & _WORD
