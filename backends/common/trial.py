"""A small problem that a wrapped library must get right before it is trusted.

Its calls are another project's: a release may rename an argument or change a convention, and this
is where that shows, as the reason against the backend and not as a wrong answer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from portattn.backends.common import definition
from portattn.dispatch.backend import AttentionTensors, Backend
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

_BATCH, _QUERIES, _KEYS, _HEADS, _KV_HEADS, _DIM = 2, 24, 64, 4, 2, 64
_WORST = 2e-2  # of values up to 1 in float16, with gradients that sum 24 of them

_FORWARD = AttentionProblem(
    "forward",
    "dense",
    torch.float16,
    _BATCH,
    _QUERIES,
    _KEYS,
    _HEADS,
    _KV_HEADS,
    _DIM,
    _DIM,
    _DIM**-0.5,
    causal=True,
    window=(-1, 0),
)


def try_out(backend: Backend, device: Device) -> None:
    """Run each operation the backend has; raise ArithmeticError where one isn't the definition's.

    Alignment, grouped heads, lse and its convention, gradients, lengths of a cache.
    """
    where = torch.device(device.type, device.index)
    if not backend.reasons_against(_FORWARD, device):
        tensors = _tensors(where)
        out, lse = backend.forward(tensors, _FORWARD, {})
        right, right_lse = definition.forward(tensors, _FORWARD)
        _compare("forward", (out, lse), (right, right_lse))
        _try_backward(backend, device, tensors, right, right_lse)
    decode = replace(
        _FORWARD,
        operation="decode",
        layout="cache",
        seqlen_q=1,
        page_size=0,
        causal=False,
        window=(-1, -1),
    )
    if not backend.reasons_against(decode, device):
        tensors = _tensors(where)
        tensors.q = tensors.q[:, :1].contiguous()
        tensors.seqused_k = torch.tensor([_KEYS, _KEYS - 27], dtype=torch.int32, device=where)
        _compare("decode", backend.decode(tensors, decode, {}), definition.forward(tensors, decode))


def _try_backward(
    backend: Backend, device: Device, tensors: AttentionTensors, out: Tensor, lse: Tensor
) -> None:
    problem = replace(_FORWARD, operation="backward")
    if backend.reasons_against(problem, device):
        return
    grad_out = out.cos()
    found = backend.backward(grad_out, None, out, lse, tensors, problem, {})
    right = definition.backward(grad_out, None, out, lse, tensors, problem)
    _compare("backward", found[:3], right[:3])


def _tensors(where: torch.device) -> AttentionTensors:
    def wave(seqlen: int, heads: int, step: float) -> Tensor:
        count = _BATCH * seqlen * heads * _DIM
        angles = torch.arange(count, dtype=torch.float32, device=where) * step
        return angles.sin().half().view(_BATCH, seqlen, heads, _DIM)

    return AttentionTensors(
        wave(_QUERIES, _HEADS, 0.37), wave(_KEYS, _KV_HEADS, 0.73), wave(_KEYS, _KV_HEADS, 1.21)
    )


def _compare(
    operation: str, found: tuple[Tensor | None, ...], right: tuple[Tensor | None, ...]
) -> None:
    for one, other in zip(found, right, strict=True):
        assert one is not None and other is not None  # nothing optional is asked for
        if one.shape != other.shape:
            raise ArithmeticError(f"{operation} gives {tuple(one.shape)}, not {tuple(other.shape)}")
        worst = float((one.double() - other.double()).abs().max())
        if not worst < _WORST:
            raise ArithmeticError(f"{operation} is off by {worst:.2g} on a small problem")
