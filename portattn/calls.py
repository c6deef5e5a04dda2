"""From a call's arguments to what runs it: decided and planned once, then looked up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from operator import attrgetter, is_not
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portattn import arguments, extents
from portattn.arguments import Options
from portattn.dispatch import device as devices
from portattn.dispatch import select
from portattn.dispatch.backend import AttentionTensors, Gradients, Plan, Run, has_plans
from portattn.dispatch.problem import Operation
from portattn.dispatch.select import Decision

# Called with every decision that is about to run; explain.record() adds to it.
observers: list[Callable[[Decision], None]] = []


def decide(
    operation: Operation,
    tensors: AttentionTensors,
    options: Options,
    *,
    bias_grad: bool = False,
    lse_grad: bool = False,
) -> Decision:
    """Validate, describe and decide; after the first call of a problem key, one dict lookup."""
    return call_for(operation, tensors, options, bias_grad, lse_grad).decision


class Call(NamedTuple):
    """A decision, and what runs it."""

    decision: Decision
    run: Run | None
    plan: Plan | None


def call_for(
    operation: Operation,
    tensors: AttentionTensors,
    options: Options,
    bias_grad: bool = False,
    lse_grad: bool = False,
) -> Call:
    key = (operation, bias_grad, lse_grad, options, *select.environment(), *_key(tensors))
    known: Call | None = select.known(key)
    if known is not None:
        return known

    def first_time() -> Call:
        problem = arguments.describe(
            operation, tensors, options, bias_grad=bias_grad, lse_grad=lse_grad
        )
        device = devices.of(tensors.q.device)
        with _without_autocast(device.type):
            decision = select.select(problem, device, backend=options.backend)
        return _planned(decision, tensors)

    return select.cached(key, first_time)


def _planned(decision: Decision, tensors: AttentionTensors) -> Call:
    """By the backend's plan for tensors like these, else by its method for the operation."""
    runner, problem, config = decision.runner, decision.problem, decision.config
    if problem.operation == "backward":
        return Call(decision, None, None)
    plan = runner.plan(tensors, problem, config) if has_plans(runner) else None
    if plan is not None:
        return Call(decision, plan.run, plan)
    method = runner.forward if problem.operation == "forward" else runner.decode

    def run(tensors: AttentionTensors) -> tuple[Tensor, Tensor]:
        with _without_autocast(tensors.q.device.type):
            return method(tensors, problem, config)

    return Call(decision, run, None)


def _key(tensors: AttentionTensors) -> tuple[Any, ...]:
    q, k, v = tensors.q, tensors.k, tensors.v
    offset: Any = q.storage_offset()
    key: tuple[Any, ...] = (
        q.shape, q.stride(), q.dtype, q.device,
        k.shape, k.stride(), k.dtype, k.device,
        v.shape, v.stride(), v.dtype, v.device,
        # What decides whether all are aligned, beside their strides.
        (offset | k.storage_offset() | v.storage_offset()) % 16,
    )  # fmt: skip
    optional = _optional(tensors)
    if any(map(_is_given, optional)):
        for place, tensor in enumerate(optional):
            if tensor is not None:
                key += (place, tensor.shape, tensor.dtype, tensor.device)
    return key


_optional = attrgetter(*tuple(AttentionTensors.__dataclass_fields__)[3:])
_is_given = partial(is_not, None)


class Repeatable(NamedTuple):
    """A decision, what runs it, and the options that its key stands for."""

    decision: Decision
    run: Run
    options: Options


def repeat_key(scalars: tuple[Any, ...], tensors: AttentionTensors) -> tuple[Any, ...]:
    """What two calls of one entry point must have in common to be alike; `scalars` as given."""
    return (scalars, select.environment(), *_key(tensors))


def repeat(key: tuple[Any, ...], tensors: AttentionTensors) -> tuple[Tensor, Tensor] | None:
    """(out, lse) of a call like the one that was remembered by this key; None without one."""
    known: Repeatable | None = select.known(key)
    if known is None:
        return None
    decision, run, options = known
    if tensors.q.is_cpu:
        extents.check_extents(tensors, options)
    for observe in observers:
        observe(decision)
    return run(tensors)


def remember(key: tuple[Any, ...], tensors: AttentionTensors, options: Options) -> None:
    """Let calls of this key be repeated."""
    decision, run, _ = call_for(_forward_or_decode(tensors), tensors, options)
    assert run is not None
    select.cached(key, lambda: Repeatable(decision, run, options))


def power_above(keys: int) -> int:
    """The exponent of the next power of two."""
    return (keys - 1).bit_length() if keys > 1 else 0


def growing_call(tensors: AttentionTensors, options: Options) -> Call:
    """The plan for every number of keys up to the next power of two, where all get the same one.

    What decides between backends and configurations by length does so by limits: those who agree
    at both ends agree in between.
    """
    exact = call_for("forward", tensors, options)
    problem, device = exact.decision.problem, exact.decision.device
    longest = 1 << power_above(problem.seqlen_k)
    first, last = [
        select.select(replace(problem, seqlen_k=keys), device)
        for keys in (longest // 2 + 1, longest)
    ]
    choices = {(d.backend, *sorted(d.config.items())) for d in (first, exact.decision, last)}
    return exact._replace(plan=None) if len(choices) > 1 else _planned(last, tensors)


def run_forward(tensors: AttentionTensors, options: Options) -> tuple[Tensor, Tensor]:
    decision, run, _ = call_for(_forward_or_decode(tensors), tensors, options)
    if tensors.q.is_cpu:
        # Elsewhere reading lengths would make the host wait for the device at every call.
        extents.check_extents(tensors, options)
    for observe in observers:
        observe(decision)
    assert run is not None
    return run(tensors)


def _forward_or_decode(tensors: AttentionTensors) -> Operation:
    return "forward" if tensors.seqused_k is None else "decode"


def run_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: AttentionTensors,
    options: Options,
    *,
    bias_grad: bool,
) -> Gradients:
    decision = decide(
        "backward", tensors, options, bias_grad=bias_grad, lse_grad=grad_lse is not None
    )
    for observe in observers:
        observe(decision)
    with _without_autocast(tensors.q.device.type):
        return decision.runner.backward(
            grad_out, grad_lse, out, lse, tensors, decision.problem, decision.config
        )


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast would lower the precision of the products inside a kernel."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return _NOTHING


_NOTHING: AbstractContextManager[Any] = nullcontext()
