"""Launches of kernels: planned once for a problem, then filled with pointers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from portattn.dispatch import device as devices
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem

log = logging.getLogger("portattn")


@dataclass(frozen=True)
class Slot:
    """Stands for the index-th tensor of a launch."""

    index: int

    def of(self, values: Sequence[Any]) -> Any:
        """What takes its place: a tensor, or a pointer once the kernel is compiled."""
        return values[self.index]


OPERANDS = tuple(AttentionTensors.__dataclass_fields__)


def operand(name: str) -> Slot:
    """The slot of a tensor of the call, by its name in AttentionTensors."""
    return Slot(OPERANDS.index(name))


def further(index: int) -> Slot:
    """The slot of the index-th tensor beyond the call's own."""
    return Slot(len(OPERANDS) + index)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device."""
    return bool(triton.knobs.runtime.interpret)


def family(tensor: Tensor) -> str:
    """The architecture family that kernels run on."""
    return devices.of(tensor.device).family


def device(tensor: Tensor) -> devices.Device:
    """The device that kernels run on."""
    return devices.of(tensor.device)


def new_lse(q: Tensor) -> Tensor:
    """[B, H, Sq] or [H, T], float32, uninitialised."""
    shape = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    return q.new_empty(shape, dtype=torch.float32)


class Call(NamedTuple):
    """What a launch is for; `more` are operands beyond the call's own tensors."""

    tensors: AttentionTensors
    problem: AttentionProblem
    config: Config
    more: tuple[Tensor | None, ...] = ()


class Plan(NamedTuple):
    """A launch without its pointers.

    `args` hold slots for the call's tensors and for what is written. `options` are Triton's for the
    launch, such as num_warps.
    """

    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, Any]


def run(
    kernel: Any, call: Call, written: tuple[Tensor | None, ...], plan: Callable[[], Plan]
) -> None:
    """Launch on the tensors' device and torch's current stream.

    Triton works out which specialisation of a kernel its arguments need at every launch. The same
    problem with the same strides always needs the same one as long as all pointers are aligned, so
    plan and specialisation are looked up instead.
    """
    device = call.tensors.q.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return run(kernel, call, written, plan)
    values = (*_operands(call.tensors), *call.more, *written)
    key = _key(kernel, call, values)
    prepared = _PREPARED.get(key) if key is not None else None
    if prepared is None:
        prepared = _Prepared(kernel, plan(), call)
        if key is not None:
            if len(_PREPARED) >= _PREPARED_LIMIT:
                _PREPARED.clear()
            _PREPARED[key] = prepared
    prepared.launch(values, aligned=key is not None)
    launches = getattr(_RECORDING, "launches", None)
    if launches is not None:
        launches.append(Launched(prepared, values))
    return None


class Launched(NamedTuple):
    """A launch that was made, with the tensors in the order of its slots."""

    prepared: _Prepared
    values: tuple[Tensor | None, ...]


_RECORDING = threading.local()


@contextmanager
def recorded() -> Iterator[list[Launched]]:
    """The launches of this thread inside the context, in their order."""
    _RECORDING.launches = []
    try:
        yield _RECORDING.launches
    finally:
        _RECORDING.launches = None


class _Prepared:
    """A plan, and the kernel compiled for it once it has run.

    The call's problem and config are kept alive: their ids are part of the key.
    """

    def __init__(self, kernel: Any, plan: Plan, call: Call) -> None:
        self.kernel, self.plan = kernel, plan
        self.alive = (call.problem, call.config)
        self.fill = filler(plan.args)
        self.runner: Callable[..., None] | None = None
        self.compiled: Any = None
        self.constants = tuple(plan.constants[name] for name in kernel.arg_names[len(plan.args) :])
        _announce(kernel, call.problem)

    def launch(self, values: Sequence[Tensor | None], aligned: bool) -> None:
        if self.runner is not None:
            pointers = [0 if value is None else value.data_ptr() for value in values]
            self.runner(*self.fill(pointers), *self.constants)
            return
        plan, grid = self.plan, (self.plan.programs, 1, 1)
        compiled = self.kernel[grid](
            *self.fill([_without_bool(value) for value in values]),
            **plan.constants,
            **plan.options,
        )
        if aligned and compiled is not None:
            self.compiled, self.runner = compiled, compiled[grid]


def forget_plans() -> None:
    """Have every launch planned and its kernel looked up anew."""
    _PREPARED.clear()


def _without_bool(value: Tensor | None) -> Tensor | None:
    """Bytes where a mask has bools, which Triton would take for single bits."""
    if value is not None and value.dtype == torch.bool:
        return value.view(torch.uint8)
    return value


_PREPARED: dict[tuple[Any, ...], _Prepared] = {}
_PREPARED_LIMIT = 4096
_operands = attrgetter(*OPERANDS)


def _key(kernel: Any, call: Call, values: Sequence[Tensor | None]) -> tuple[Any, ...] | None:
    """What decides a plan and its specialisation; None when a pointer isn't aligned."""
    pointers = 0
    key: list[Any] = [kernel, id(call.problem), id(call.config), call.tensors.q.device]
    for value in values:
        if value is None:
            key.append(None)
        else:
            pointers |= value.data_ptr()
            key += (value.stride(), value.dtype)
    if pointers % 16:
        return None
    # A bias or mask of size 1 may have the strides of a full one.
    for value in (call.tensors.bias, call.tensors.mask):
        key.append(None if value is None else value.shape)
    key.append(torch.backends.cuda.matmul.allow_tf32)
    return tuple(key)


def filler(template: Any) -> Callable[[Sequence[Any]], Any]:
    """A function that puts values into a template's slots, at any depth of its tuples."""
    if isinstance(template, Slot):
        return template.of
    parts = [
        (place, filler(part))
        for place, part in enumerate(template)
        if isinstance(part, Slot) or (isinstance(part, tuple) and _has_slot(part))
    ]
    kind, base = type(template), list(template)

    def fill(values: Sequence[Any]) -> Any:
        filled = base.copy()
        for place, part in parts:
            filled[place] = part(values)
        return tuple.__new__(kind, filled)

    return fill


def _has_slot(template: tuple[Any, ...]) -> bool:
    return any(
        isinstance(part, Slot) or (isinstance(part, tuple) and _has_slot(part)) for part in template
    )


_SEEN: set[tuple[str, int, int, torch.dtype]] = set()


def _announce(kernel: Any, problem: AttentionProblem) -> None:
    """Say once that a kernel may have to be compiled, which takes seconds."""
    name = kernel.fn.__name__
    key = (name, problem.head_dim, problem.head_dim_v, problem.dtype)
    if key not in _SEEN:
        _SEEN.add(key)
        log.info("%s: Triton compiles it unless its cache has it (%s)", name, problem)
