"""Calls launched like an earlier one: with nothing but new results and other pointers.

A backend's method works out what it launches, with which arguments. For tensors of the same shapes,
strides and dtypes that is the same but for pointers, so a plan keeps the launches of its first call
and repeats them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import attrgetter, or_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portattn.backends.common import driver, launch
from portattn.backends.common.launch import OPERANDS
from portattn.backends.common.parameters import Unsuited
from portattn.dispatch.backend import AttentionTensors, Config
from portattn.dispatch.problem import AttentionProblem

log = logging.getLogger("portattn")

Results = tuple[Tensor, Tensor]
Method = Callable[[AttentionTensors, AttentionProblem, Config], Results]
Launch = Callable[[int, Sequence[int]], None]


class Repeats:
    """A forward or decode of tensors of the same shapes, dtypes and device, again and again.

    q, k and v have the same strides too. The first call goes by `method`, which may launch kernels
    by launch.run and do nothing else to its tensors; later calls repeat its launches.
    """

    def __init__(self, method: Method, problem: AttentionProblem, config: Config) -> None:
        self._method, self._problem, self._config = method, problem, config
        self._again: Again | None = None

    def run(self, tensors: AttentionTensors) -> Results:
        """out and lse; see AttentionTensors for shapes."""
        if self._again is not None:
            results = self._again(tensors)
            if results is not None:
                return results
            return self._method(tensors, self._problem, self._config)
        with launch.recorded() as launches:
            results = self._method(tensors, self._problem, self._config)
        written = _written(launches, tensors, results)
        self._again = Again(launches, tensors, written) if written else None
        return results

    def heads_first(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """None: transposed views are no work to speak of beside a launch."""
        return None


class Memory(NamedTuple):
    """A new tensor's size, strides and dtype."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Again:
    """Makes the launches of an earlier call with other tensors."""

    def __init__(
        self,
        launches: Sequence[launch.Launched],
        tensors: AttentionTensors,
        written: Sequence[Tensor],
    ) -> None:
        q = tensors.q
        given = [name for name in OPERANDS if getattr(tensors, name) is not None]
        slots = [OPERANDS.index(name) for name in given]
        slots += range(len(OPERANDS), len(OPERANDS) + len(written))
        places = {slot: place for place, slot in enumerate(slots)}
        self.device = q.get_device()
        self.launches = [_launcher(each.prepared, places, self.device) for each in launches]
        self._fetch = attrgetter(*given)
        # Of one name there would be no tuple.
        self._extra = attrgetter(*given[3:], given[-1]) if len(given) > 3 else None
        self._strides = self._extra and list(map(_stride, self._extra(tensors)))
        self._empty = driver.empty(q.device)
        out, lse, *work = (Memory(tuple(x.shape), x.stride(), x.dtype) for x in written)
        self._out, self._lse, self._work = out, lse, work
        self._exact = q.dtype == torch.float32
        self._tf32 = torch.backends.cuda.matmul.allow_tf32

    def __call__(self, tensors: AttentionTensors) -> Results | None:
        """out and lse; None where a call differs in what its caller doesn't compare."""
        pointers = list(map(_pointer, self._fetch(tensors)))
        extra, device = self._extra, self.device
        if (
            reduce(or_, pointers) & 15
            or driver.current_device() != device
            or (extra is not None and list(map(_stride, extra(tensors))) != self._strides)
            or (self._exact and self._tf32 != torch.backends.cuda.matmul.allow_tf32)
            or driver.hooked()
        ):
            return None
        empty = self._empty
        out, lse = empty(*self._out), empty(*self._lse)
        pointers += out.data_ptr(), lse.data_ptr()
        if self._work:
            # Once all is launched, the stream's next kernels may have this memory.
            work = [empty(*each) for each in self._work]
            pointers += map(_pointer, work)
        stream = driver.current_stream(device)
        for each in self.launches:
            each(stream, pointers)
        return out, lse


_pointer, _stride = Tensor.data_ptr, Tensor.stride


def _written(
    launches: Sequence[launch.Launched], tensors: AttentionTensors, results: Results
) -> list[Tensor] | None:
    """The tensors that the launches write, results first; None if they can't be repeated.

    They must all have had the call's own memory, aligned, and the same results and work.
    """
    own = [0 if t is None else t.data_ptr() for t in map(tensors.__getattribute__, OPERANDS)]
    longest: list[Tensor] = []
    for each in launches:
        operands = each.values[: len(OPERANDS)]
        if (
            each.prepared.compiled is None
            or [0 if value is None else value.data_ptr() for value in operands] != own
        ):
            return None
        written = [value for value in each.values[len(OPERANDS) :] if value is not None]
        shared = min(len(written), len(longest))
        if any(a is not b for a, b in zip(written[:shared], longest[:shared], strict=True)):
            return None
        longest = max(written, longest, key=len)
    if len(longest) < 2 or longest[0] is not results[0] or longest[1] is not results[1]:
        return None
    return longest


def _launcher(prepared: Any, places: Mapping[int, int], device: int) -> Launch:
    """By the driver itself where it can be, else by Triton's launcher."""
    if driver.wanted() != "triton":
        try:
            return driver.Launch(
                prepared.compiled, prepared.plan.programs, prepared.plan.args, places, device
            )
        except Unsuited as reason:
            _explain(prepared.kernel.fn.__name__, str(reason))
    return ByTriton(prepared, places)


class ByTriton:
    """A launch by Triton's launcher, with the pointers of slots found in their places."""

    def __init__(self, prepared: Any, places: Mapping[int, int]) -> None:
        self.prepared, self._places = prepared, places

    def __call__(self, stream: int, pointers: Sequence[int]) -> None:
        values = [0] * (1 + max(self._places))
        for slot, place in self._places.items():
            values[slot] = pointers[place]
        prepared = self.prepared
        prepared.runner(*prepared.fill(values), *prepared.constants, stream=stream)


_EXPLAINED: set[tuple[str, str]] = set()


def _explain(kernel: str, reason: str) -> None:
    """Say once that a kernel is launched by Triton, and why."""
    key = (kernel, reason)
    if key not in _EXPLAINED:
        _EXPLAINED.add(key)
        log.info("%s is launched by Triton each time: %s", kernel, reason)
