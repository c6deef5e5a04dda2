"""The torch.library operators behind the API, and the short way round them in plain eager calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from portattn import calls
from portattn.arguments import Options, Scalars, from_scalars
from portattn.dispatch import select
from portattn.dispatch.backend import AttentionTensors

_TENSORS = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, Tensor? alibi_slopes, "
    "Tensor? sinks, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seqused_k, "
    "Tensor? block_table, Tensor? cache_batch_idx, Tensor? leftpad_k, Tensor? rng_state, "
    "Tensor? k_scale, Tensor? v_scale"
)
_OPTIONS = (
    "float softmax_scale, bool causal, SymInt window_left, SymInt window_right, float softcap, "
    "float dropout_p, bool deterministic, SymInt max_seqlen_q, SymInt max_seqlen_k, str? backend"
)
_TENSOR_COUNT = 16

torch.library.define(
    "portattn::attention_forward", f"({_TENSORS}, {_OPTIONS}) -> (Tensor out, Tensor lse)"
)
torch.library.define(
    "portattn::attention_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, bool bias_grad, bool sinks_grad, "
    f"{_TENSORS}, {_OPTIONS}) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks)",
)


def attend(scalars: Scalars, tensors: AttentionTensors) -> tuple[Tensor, Tensor]:
    """(out, lse), as `forward`, with the options that the scalars stand for.

    A call like an earlier one is recognised by its arguments as they were given.
    """
    q, k, v = tensors.q, tensors.k, tensors.v
    if (
        _is_traced(q, k, v)
        or _needs_gradients(q, k, v, tensors.bias, tensors.sinks)
        or not _SCALARS.issuperset(map(type, scalars))
    ):
        return forward(tensors, from_scalars(q, scalars))
    key = calls.repeat_key(scalars, tensors)
    results = calls.repeat(key, tensors)
    if results is None:
        options = from_scalars(q, scalars)
        results = forward(tensors, options)
        calls.remember(key, tensors, options)
    return results


# A tensor among the arguments is the same object after it has changed.
_SCALARS = frozenset({bool, int, float, str, type(None)})


def forward(tensors: AttentionTensors, options: Options) -> tuple[Tensor, Tensor]:
    """(out, lse) of validated or unvalidated arguments, differentiable where the layout allows."""
    if _is_traced(tensors.q, tensors.k, tensors.v):
        out, lse = torch.ops.portattn.attention_forward(*_flat(tensors, options))
        return out, lse
    if _needs_gradients(tensors.q, tensors.k, tensors.v, tensors.bias, tensors.sinks):
        given = (getattr(tensors, name) for name in AttentionTensors.__dataclass_fields__)
        out, lse = _Differentiable.apply(options, *given)  # type: ignore[no-untyped-call]
        return out, lse
    return calls.run_forward(tensors, options)


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
    if q.is_cpu and q.dim() == k.dim() == v.dim() == 4 and _is_plain(q, k, v):
        batch, heads, keys, dim = k.shape
        place = (
            softmax_scale, causal, select.environment(), keys == v.size(2), calls.power_above(keys),
            q.shape, q.stride(), q.dtype, q.device,
            batch, heads, dim, k.dtype, k.device,
            v.size(0), v.size(1), v.size(3), v.dtype, v.device,
        )  # fmt: skip
        known: calls.Call | None = select.known(place)
        if known is not None and known.plan is not None:
            out = known.plan.heads_first(q, k, v)
            if out is not None:
                for observe in calls.observers:
                    observe(known.decision)
                return out
    tensors = AttentionTensors(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)
    options = Options(scale, causal, (-1, 0 if causal else -1))
    out, _ = forward(tensors, options)
    if place is not None:
        select.cached(place, lambda: calls.growing_call(tensors, options))
    return out


def _is_plain(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return not (_is_traced(q, k, v) or _needs_gradients(q, k, v))


def _is_traced(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a compiler, a transformation or a subclass must see the call as an operator."""
    if _is_compiling() or is_in_torch_dispatch_mode():
        return True
    return not (type(q) is type(k) is type(v) is Tensor) or _functorch_level() is not None


def _needs_gradients(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, sinks: Tensor | None = None
) -> bool:
    """Whether autograd must record the call."""
    if not torch.is_grad_enabled():
        return False
    if q.requires_grad or k.requires_grad or v.requires_grad:
        return True
    return any(tensor is not None and tensor.requires_grad for tensor in (bias, sinks))


# Looked up once: this is asked at every call, when the caches hold something else.
_is_compiling = torch.compiler.is_compiling
_functorch_level = torch._C._functorch.peek_interpreter_stack


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
    out, lse = calls.run_forward(*_unflat(flat))
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


class _Differentiable(torch.autograd.Function):
    """The operator's autograd without the operator's price, for calls that nothing traces."""

    @staticmethod
    def forward(ctx: Any, options: Options, *given: Any) -> tuple[Tensor, Tensor]:
        out, lse = calls.run_forward(AttentionTensors(*given), options)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(out, lse, *given)
        ctx.options = options
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = grads
        out, lse, *saved = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        tensors = AttentionTensors(*saved)
        bias_grad = tensors.bias is not None and ctx.needs_input_grad[4]
        sinks_grad = tensors.sinks is not None and ctx.needs_input_grad[7]
        found: list[Tensor | None] = [None] * (1 + len(saved))
        if torch.is_grad_enabled():  # create_graph: the operator says why that can't be
            found[1:4] = torch.ops.portattn.attention_backward(
                grad_out, grad_lse, out, lse, bias_grad, sinks_grad, *_flat(tensors, ctx.options)
            )[:3]
            return tuple(found)
        made = calls.run_backward(
            grad_out, grad_lse, out, lse, tensors, ctx.options, bias_grad=bias_grad
        )
        found[1:4] = made[:3]
        found[4] = made.dbias if bias_grad else None
        found[7] = made.dsinks if sinks_grad else None
        return tuple(found)


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
    grads = calls.run_backward(grad_out, grad_lse, out, lse, tensors, options, bias_grad=bias_grad)
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
