"""One triangular mask for every block of scores: FastAttention's tiling-mask (arXiv 2410.16663).

The mask M is 2m x 2m, M[r, c] = 1 where c > r, and nothing else is ever stored. Of a block of b1
rows and b2 keys, whose first row sees keys up to `delta` (counted from the block's first key), the
element (i, j) is hidden where j > i + delta. A window of M from (r, c) on hides j > i + r - c:

    r = clamp(delta, 0, b2)        c = clamp(-delta, 0, b1)

r - c = delta wherever the block has hidden and visible elements; beyond that the clamps keep it all
visible (delta >= b2) or all hidden (delta <= -b1). The window lies inside M since r + b1 and c + b2
are at most b1 + b2, which must therefore be at most 2m. The left side of a sliding window is the
complement of a second window of M, with delta one less than the first visible key.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Rows and columns of the mask that the vendor's operators take (sparse_mode 2, 3 and 4).
VENDOR_SIDE = 2048


def window_start(delta: int, rows: int, keys: int) -> tuple[int, int]:
    """(r, c), where the block's window of the mask begins."""
    return min(max(delta, 0), keys), min(max(-delta, 0), rows)


@lru_cache(maxsize=8)
def tiling_mask(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[side, side], 1 (or True) above the diagonal; one per device, whatever the length."""
    ones = torch.ones(side, side, dtype=torch.bool)
    return torch.triu(ones, diagonal=1).to(dtype).to(device)
