"""Long sequences: no backend holds a matrix of all scores, forward or backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from portattn.arguments import describe, options
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors

# Elements of the largest tensor allowed: the reference's chunk of scores, and for the others a
# small multiple of the inputs, which grow with the length only.
LIMITS = {"reference": 8 * 2**20, "cpu": 2**20, "torch_sdpa": 2**20}
SEQLEN = 8192


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("name", LIMITS)
def test_no_tensor_grows_with_the_square_of_the_length(name: str) -> None:
    backend = registry.load(name)
    q = torch.randn(1, SEQLEN, 1, 16)
    tensors = AttentionTensors(q, q, q)
    settings = options(q, causal=True, softmax_scale=None, window_size=(-1, -1), softcap=0.0)
    with Largest() as seen:
        out, lse = backend.forward(tensors, describe("forward", tensors, settings), {})
        problem = describe("backward", tensors, settings)
        backend.backward(q, None, out, lse, tensors, problem, {})
    assert seen.elements <= LIMITS[name] < SEQLEN * SEQLEN // 4
