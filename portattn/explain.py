"""explain(): a Decision for people, and a record of what really ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from portattn import arguments, calls
from portattn.arguments import as_scores_shape
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.problem import Operation
from portattn.dispatch.select import Decision


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    deterministic: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
    operation: Operation = "forward",
) -> Decision:
    """What `attention` with these arguments would run, and why; nothing but a probe is run.

    `return_lse` is accepted so that a call can be explained as it stands; every backend computes
    the lse. operation="backward" explains the gradient. `print(render(decision))` shows it.
    """
    tensors = AttentionTensors(
        q,
        k,
        v,
        as_scores_shape("bias", bias),
        as_scores_shape("mask", mask),
        alibi_slopes,
        sinks,
    )
    options = arguments.options(
        q,
        causal=causal,
        softmax_scale=softmax_scale,
        window_size=window_size,
        softcap=softcap,
        dropout_p=dropout_p,
        deterministic=deterministic,
        backend=backend,
    )
    bias_grad = operation == "backward" and bias is not None and bias.requires_grad
    return calls.decide(operation, tensors, options, bias_grad=bias_grad)


@contextmanager
def record() -> Iterator[Counter[Decision]]:
    """Count the decisions that run inside the block: {decision: calls}."""
    counts: Counter[Decision] = Counter()

    def observe(decision: Decision) -> None:
        counts[decision] += 1

    calls.observers.append(observe)
    try:
        yield counts
    finally:
        calls.observers.remove(observe)


def as_dict(decision: Decision) -> dict[str, Any]:
    """A decision as plain values, for JSON."""
    estimate = decision.estimate
    return {
        "problem": str(decision.problem),
        "device": str(decision.device),
        "profile": decision.profile,
        "backend": decision.backend,
        "kernel": decision.detail,
        "config": dict(decision.config),
        "config_source": decision.config_source,
        "forced": decision.forced,
        "candidates": list(decision.candidates),
        "notes": list(decision.notes),
        "rejected": {item.backend: list(item.reasons) for item in decision.rejected},
        "modelled": None
        if estimate is None
        else {
            "seconds": estimate.seconds,
            "flops": estimate.flops,
            "bytes": estimate.bytes,
            "bound": estimate.bound,
        },
        "measured_us": decision.measured_us,
        "times": {
            time.backend: {"measured_us": time.measured_us, "predicted_us": time.predicted_us}
            for time in decision.times
        },
    }


def render(decision: Decision) -> str:
    """A decision as text: what runs, its configuration and source, times, and who can't."""
    config = ", ".join(f"{name}={value}" for name, value in decision.config.items())
    lines = [
        f"problem   {decision.problem}",
        f"device    {decision.device}, profile {decision.profile}",
        f"runs      {decision.backend} ({decision.detail})"
        + (" because it was asked for" if decision.forced else ""),
        f"config    {config or 'none needed'} [{decision.config_source}]",
        f"time      {_times(decision)}",
    ]
    width = max(len(time.backend) for time in decision.times)
    for position, time in enumerate(decision.times):
        name = "candidate" if position == 0 else ""
        lines.append(f"{name:10}{time.backend:{width}}  {time}")
    lines += [f"note      {note}" for note in decision.notes]
    for item in decision.rejected:
        lines.append(f"cannot    {item.backend}: {'; '.join(item.reasons)}")
    return "\n".join(lines)


def _times(decision: Decision) -> str:
    parts = []
    if decision.measured_us is not None:
        parts.append(f"{decision.measured_us:.1f} us measured")
    estimate = decision.estimate
    if estimate is not None and estimate.seconds is not None:
        parts.append(f"{estimate.seconds * 1e6:.1f} us modelled, {estimate.bound} bound")
    return "; ".join(parts) or "unknown: the profile states no rates"
