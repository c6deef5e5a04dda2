"""The torch.library operators behind the API, and the short way round them in plain eager calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from portattn import arguments, extents
from portattn.arguments import Options
from portattn.dispatch import device as devices
from portattn.dispatch import select
from portattn.dispatch.backend import AttentionTensors, Plan, Run, has_plans
from portattn.dispatch.problem import Operation
from portattn.dispatch.select import Decision

_TENSORS = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, Tensor? alibi_slopes, "
    "Tensor? sinks, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seqused_k, "
    "Tensor? block_table, Tensor? cache_batch_idx, Tensor? leftpad_k, Tensor? rng_state"
)
_OPTIONS = (
    "float softmax_scale, bool causal, SymInt window_left, SymInt window_right, float softcap, "
    "float dropout_p, bool deterministic, SymInt max_seqlen_q, SymInt max_seqlen_k, str? backend"
)
_TENSOR_COUNT = 14

torch.library.define(
    "portattn::attention_forward", f"({_TENSORS}, {_OPTIONS}) -> (Tensor out, Tensor lse)"
)
torch.library.define(
    "portattn::attention_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, bool bias_grad, bool sinks_grad, "
    f"{_TENSORS}, {_OPTIONS}) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks)",
)

# Called with every decision that is about to run; explain.record() adds to it.
observers: list[Callable[[Decision], None]] = []


def forward(tensors: AttentionTensors, options: Options) -> tuple[Tensor, Tensor]:
    """(out, lse) of validated or unvalidated arguments, differentiable where the layout allows."""
    if _needs_dispatcher(tensors.q, tensors.k, tensors.v, tensors.bias, tensors.sinks):
        out, lse = torch.ops.portattn.attention_forward(*_flat(tensors, options))
        return out, lse
    return _run_forward(tensors, options)


def heads_first(
    query: Tensor, key: Tensor, value: Tensor, softmax_scale: float | None, causal: bool
) -> Tensor:
    """out [B, Sq, H, Dv] of query [B, H, Sq, D], key [B, Hkv, Sk, D] and value [B, Hkv, Sk, Dv].

    As `forward` of the transposed tensors. On a CPU, where the views and a decision take longer
    than a short call, neither is made for a call that is planned: decoding adds a key at each step,
    so a plan serves every number of keys up to the next power of two.
    """
    q, k, v = query, key, value
    place: tuple[Any, ...] | None = None
    if q.is_cpu and q.dim() == k.dim() == v.dim() == 4 and not _needs_dispatcher(q, k, v):
        batch, heads, keys, dim = k.shape
        place = (
            softmax_scale, causal, select.environment(), keys == v.size(2), _power(keys),
            q.shape, q.stride(), q.dtype, q.device,
            batch, heads, dim, k.dtype, k.device,
            v.size(0), v.size(1), v.size(3), v.dtype, v.device,
        )  # fmt: skip
        known: _Call | None = select.known(place)
        if known is not None and known.plan is not None:
            out = known.plan.heads_first(q, k, v)
            if out is not None:
                for observe in observers:
                    observe(known.decision)
                return out
    tensors = AttentionTensors(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)
    options = Options(scale, causal, (-1, 0 if causal else -1))
    out, _ = forward(tensors, options)
    if place is not None:
        select.cached(place, lambda: _growing_call(tensors, options))
    return out


def _power(keys: int) -> int:
    """The exponent of the next power of two."""
    return (keys - 1).bit_length() if keys > 1 else 0


def _growing_call(tensors: AttentionTensors, options: Options) -> _Call:
    """The plan for every number of keys up to the next power of two, where all get the same one.

    What decides between backends and configurations by length does so by limits: those who agree
    at both ends agree in between.
    """
    exact = _call("forward", tensors, options)
    problem, device = exact.decision.problem, exact.decision.device
    longest = 1 << _power(problem.seqlen_k)
    first, last = [
        select.select(replace(problem, seqlen_k=keys), device)
        for keys in (longest // 2 + 1, longest)
    ]
    choices = {(d.backend, *sorted(d.config.items())) for d in (first, exact.decision, last)}
    return exact._replace(plan=None) if len(choices) > 1 else _planned(last, tensors)


def decide(
    operation: Operation,
    tensors: AttentionTensors,
    options: Options,
    *,
    bias_grad: bool = False,
    lse_grad: bool = False,
) -> Decision:
    """Validate, describe and decide; after the first call of a problem key, one dict lookup."""
    return _call(operation, tensors, options, bias_grad, lse_grad).decision


class _Call(NamedTuple):
    """A decision, and what runs it."""

    decision: Decision
    run: Run | None
    plan: Plan | None


def _call(
    operation: Operation,
    tensors: AttentionTensors,
    options: Options,
    bias_grad: bool = False,
    lse_grad: bool = False,
) -> _Call:
    def first_time() -> _Call:
        problem = arguments.describe(
            operation, tensors, options, bias_grad=bias_grad, lse_grad=lse_grad
        )
        device = devices.of(tensors.q.device)
        with _without_autocast(device.type):
            decision = select.select(problem, device, backend=options.backend)
        return _planned(decision, tensors)

    key = (operation, bias_grad, lse_grad, options, select.environment(), *_key(tensors))
    return select.cached(key, first_time)


def _planned(decision: Decision, tensors: AttentionTensors) -> _Call:
    """By the backend's plan for tensors like these, else by its method for the operation."""
    runner, problem, config = decision.runner, decision.problem, decision.config
    if problem.operation == "backward":
        return _Call(decision, None, None)
    plan = runner.plan(tensors, problem, config) if has_plans(runner) else None
    if plan is not None:
        return _Call(decision, plan.run, plan)
    method = runner.forward if problem.operation == "forward" else runner.decode

    def run(tensors: AttentionTensors) -> tuple[Tensor, Tensor]:
        with _without_autocast(tensors.q.device.type):
            return method(tensors, problem, config)

    return _Call(decision, run, None)


def _key(tensors: AttentionTensors) -> tuple[Any, ...]:
    key = _layout(tensors.q, tensors.k, tensors.v)
    for place, tensor in enumerate(_optional(tensors)):
        if tensor is not None:
            key += (place, tensor.shape, tensor.dtype, tensor.device)
    return key


_optional = attrgetter(*tuple(AttentionTensors.__dataclass_fields__)[3:])


def _layout(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    return (
        q.shape,
        q.stride(),
        q.dtype,
        q.device,
        k.shape,
        k.stride(),
        k.dtype,
        k.device,
        v.shape,
        v.stride(),
        v.dtype,
        v.device,
    )


def _needs_dispatcher(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, sinks: Tensor | None = None
) -> bool:
    """Whether autograd, tracing or a tensor subclass must see the call as an operator."""
    if _is_compiling() or is_in_torch_dispatch_mode():
        return True
    if not (type(q) is type(k) is type(v) is Tensor):
        return True
    if _functorch_level() is not None:
        return True
    if not torch.is_grad_enabled():
        return False
    if q.requires_grad or k.requires_grad or v.requires_grad:
        return True
    return any(tensor is not None and tensor.requires_grad for tensor in (bias, sinks))


# Looked up once: this is asked at every call, when the caches hold something else.
_is_compiling = torch.compiler.is_compiling
_functorch_level = torch._C._functorch.peek_interpreter_stack


def _run_forward(tensors: AttentionTensors, options: Options) -> tuple[Tensor, Tensor]:
    operation: Operation = "forward" if tensors.seqused_k is None else "decode"
    decision, run, _ = _call(operation, tensors, options)
    extents.check_extents(tensors, options)
    for observe in observers:
        observe(decision)
    assert run is not None
    return run(tensors)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast would lower the precision of the products inside a kernel."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return _NOTHING


_NOTHING: AbstractContextManager[Any] = nullcontext()


def _flat(tensors: AttentionTensors, options: Options) -> tuple[Any, ...]:
    given = (getattr(tensors, name) for name in AttentionTensors.__dataclass_fields__)
    return (*given, *_flat_options(options))


def _flat_options(options: Options) -> tuple[Any, ...]:
    scale, causal, (left, right), *rest = options
    return (scale, causal, left, right, *rest)


def _unflat(flat: tuple[Any, ...]) -> tuple[AttentionTensors, Options]:
    scale, causal, left, right, *rest = flat[_TENSOR_COUNT:]
    return AttentionTensors(*flat[:_TENSOR_COUNT]), Options(scale, causal, (left, right), *rest)


# torch leaves this decorator untyped.
_fake: Callable[[str], Callable[[Any], Any]] = torch.library.register_fake


@torch.library.impl("portattn::attention_forward", "CompositeExplicitAutograd")
def _forward_impl(*flat: Any) -> tuple[Tensor, Tensor]:
    out, lse = _run_forward(*_unflat(flat))
    return out.contiguous(), lse.contiguous()


@_fake("portattn::attention_forward")
def _forward_fake(*flat: Any) -> tuple[Tensor, Tensor]:
    tensors, _ = _unflat(flat)
    q, v = tensors.q, tensors.v
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    # [B, S, H] and [T, H] with the heads before the rows.
    lse_shape = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    return out, q.new_empty(lse_shape, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[:_TENSOR_COUNT])
    ctx.options = inputs[_TENSOR_COUNT:]


def _autograd_backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    out, lse, *saved = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    tensors = AttentionTensors(*saved)
    bias_grad = tensors.bias is not None and ctx.needs_input_grad[3]
    sinks_grad = tensors.sinks is not None and ctx.needs_input_grad[6]
    dq, dk, dv, dbias, dsinks = torch.ops.portattn.attention_backward(
        grad_out, grad_lse, out, lse, bias_grad, sinks_grad, *saved, *ctx.options
    )
    grads: list[Tensor | None] = [None] * (len(saved) + len(ctx.options))
    grads[:3] = [dq, dk, dv]
    grads[3] = dbias if bias_grad else None
    grads[6] = dsinks if sinks_grad else None
    return tuple(grads)


torch.library.register_autograd(
    "portattn::attention_forward", _autograd_backward, setup_context=_setup_context
)


@torch.library.impl("portattn::attention_backward", "CompositeExplicitAutograd")
def _backward_impl(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    bias_grad: bool,
    sinks_grad: bool,
    *flat: Any,
) -> tuple[Tensor, ...]:
    tensors, options = _unflat(flat)
    decision = decide(
        "backward", tensors, options, bias_grad=bias_grad, lse_grad=grad_lse is not None
    )
    for observe in observers:
        observe(decision)
    with _without_autocast(tensors.q.device.type):
        grads = decision.runner.backward(
            grad_out, grad_lse, out, lse, tensors, decision.problem, decision.config
        )
    empty = tensors.q.new_empty(0)
    return (
        grads.dq.contiguous(),
        grads.dk.contiguous(),
        grads.dv.contiguous(),
        grads.dbias.contiguous() if bias_grad and grads.dbias is not None else empty,
        grads.dsinks if sinks_grad and grads.dsinks is not None else empty.clone(),
    )


@_fake("portattn::attention_backward")
def _backward_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    bias_grad: bool,
    sinks_grad: bool,
    *flat: Any,
) -> tuple[Tensor, ...]:
    tensors, _ = _unflat(flat)
    dense = [t.new_empty(t.shape) for t in (tensors.q, tensors.k, tensors.v)]
    for wanted, tensor in ((bias_grad, tensors.bias), (sinks_grad, tensors.sinks)):
        shape_of = tensor if wanted and tensor is not None else None
        dense.append(
            tensors.q.new_empty(0) if shape_of is None else shape_of.new_empty(shape_of.shape)
        )
    return tuple(dense)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> Any:
    raise RuntimeError(
        "portattn has no second derivative of attention; "
        "compute this part with torch's math attention to differentiate twice"
    )


torch.library.register_autograd("portattn::attention_backward", _no_second_derivative)
