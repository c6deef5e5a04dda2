"""Calls launched like an earlier one: with nothing but new results and other pointers.

A backend's method works out what it launches, with which arguments. For tensors of the same shapes,
strides and dtypes that is the same but for pointers, so a plan keeps the launches of its first call
and repeats them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import reduce
from operator import attrgetter, or_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portattn.backends.common import driver, launch
from portattn.backends.common.launch import OPERANDS
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
        self._again: Callable[[AttentionTensors], Results | None] | None = None

    def run(self, tensors: AttentionTensors) -> Results:
        """out and lse; see AttentionTensors for shapes."""
        if self._again is not None:
            results = self._again(tensors)
            if results is not None:
                return results
            return self._method(tensors, self._problem, self._config)
        with launch.recorded() as launches:
            results = self._method(tensors, self._problem, self._config)
        self._again = repeated(launches, tensors, results)
        return results

    def heads_first(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """None: transposed views are no work to speak of beside a launch."""
        return None


class Memory(NamedTuple):
    """A new tensor's size, strides and dtype."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def repeated(
    launches: Sequence[launch.Launched], tensors: AttentionTensors, results: Results
) -> Callable[[AttentionTensors], Results | None] | None:
    """What makes the same launches with other tensors; None where one of them can't be repeated.

    It returns None itself where a call differs in what its caller doesn't compare.
    """
    given = [name for name in OPERANDS if getattr(tensors, name) is not None]
    written = _written(launches, tensors, results)
    if written is None:
        return None
    names = [*given, *range(len(written))]
    places = {
        OPERANDS.index(name) if isinstance(name, str) else len(OPERANDS) + name: place
        for place, name in enumerate(names)
    }
    device = tensors.q.get_device()
    again = [_launcher(each.prepared, places, device) for each in launches]
    fetch = attrgetter(*given)
    extra = attrgetter(*given[3:], given[-1]) if len(given) > 3 else None
    strides = extra and list(map(_stride, extra(tensors)))
    out, lse, *work = (Memory(tuple(x.shape), x.stride(), x.dtype) for x in written)
    empty, current_stream = driver.empty(tensors.q.device), driver.current_stream
    current_device, hooked = driver.current_device, driver.hooked
    exact = tensors.q.dtype == torch.float32
    tf32 = exact and torch.backends.cuda.matmul.allow_tf32

    def run(tensors: AttentionTensors) -> Results | None:
        pointers = list(map(_pointer, fetch(tensors)))
        if (
            reduce(or_, pointers) & 15
            or current_device() != device
            or (extra is not None and list(map(_stride, extra(tensors))) != strides)
            or (exact and tf32 != torch.backends.cuda.matmul.allow_tf32)
            or hooked()
        ):
            return None
        new_out, new_lse = empty(*out), empty(*lse)
        pointers += new_out.data_ptr(), new_lse.data_ptr()
        # Once all is launched, the stream's next kernels may have this memory.
        scratch = [empty(*each) for each in work]
        pointers += map(_pointer, scratch)
        stream = current_stream(device)
        for each in again:
            each(stream, pointers)
        return new_out, new_lse

    return run


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


def _launcher(prepared: Any, places: dict[int, int], device: int) -> Launch:
    """By the driver itself where it can be, else by Triton's launcher."""
    if driver.wanted():
        try:
            return driver.Launch(
                prepared.compiled, prepared.plan.programs, prepared.plan.args, places, device
            )
        except driver.Unsuited as reason:
            _explain(prepared.kernel.fn.__name__, str(reason))
    return ByTriton(prepared, places)


class ByTriton:
    """A launch by Triton's launcher, with the pointers of slots found in their places."""

    def __init__(self, prepared: Any, places: dict[int, int]) -> None:
        most = 1 + max(places)
        self._order = [(slot, place) for slot, place in places.items()]
        self._most, self._prepared = most, prepared

    def __call__(self, stream: int, pointers: Sequence[int]) -> None:
        values = [0] * self._most
        for slot, place in self._order:
            values[slot] = pointers[place]
        self._prepared.runner(
            *self._prepared.fill(values), *self._prepared.constants, stream=stream
        )


_EXPLAINED: set[tuple[str, str]] = set()


def _explain(kernel: str, reason: str) -> None:
    """Say once that a kernel is launched by Triton, and why."""
    key = (kernel, reason)
    if key not in _EXPLAINED:
        _EXPLAINED.add(key)
        log.info("%s is launched by Triton each time: %s", kernel, reason)
