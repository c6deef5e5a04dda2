"""`portattn bench --verify`: each backend of a device on every conformance case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from portattn.arguments import Options
from portattn.cli.bench.grid import Case as Row
from portattn.conformance.budget import GRADIENTS, check, expected, expected_gradients, problem_of
from portattn.conformance.cases import CASES, Case, build
from portattn.dispatch import device as devices
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors, Backend
from portattn.errors import BackendUnavailableError

Operation = Literal["forward", "backward"]
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_SEED = 20


@dataclass(frozen=True)
class Outcome:
    """One case: "passed", "failed" or "declined", the latter two with what was said."""

    backend: str
    case: str
    operation: Operation
    dtype: str
    outcome: Literal["passed", "failed", "declined"]
    detail: str = ""


def backends_of(device: torch.device, chosen: str | None) -> list[str]:
    """The chosen backend, or each that can be loaded and runs on the kind of device."""
    if chosen is not None:
        return [chosen]
    found = []
    for name in registry.names():
        try:
            if device.type in registry.load(name).capability.devices:
                found.append(name)
        except BackendUnavailableError:
            continue  # `portattn backends` says why
    return found


def conformance(
    names: Sequence[str],
    device: torch.device,
    announce: Callable[[str], None],
) -> Iterator[Outcome]:
    """Outcomes as they come: values, and gradients where a case has them, in three dtypes.

    A backend is asked as dispatch would ask it; what it declines isn't run.
    """
    for name in names:
        backend = registry.load(name)
        for dtype in _DTYPES:
            announce(f"{name}: {len(CASES)} cases in {_short(dtype)} ...")
            for case in CASES:
                yield _outcome(backend, name, case, "forward", dtype, device)
                if case.differentiable:
                    yield _outcome(backend, name, case, "backward", dtype, device)


def document(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """How many there were of each outcome, and all that didn't pass; what passed is counted."""
    counts: dict[str, dict[str, int]] = {}
    for one in outcomes:
        of_backend = counts.setdefault(one.backend, {"passed": 0, "failed": 0, "declined": 0})
        of_backend[one.outcome] += 1
    rest = [asdict(one) for one in outcomes if one.outcome != "passed"]
    return {"counts": counts, "not_passed": rest}


def rows() -> list[Row]:
    """What is timed: shapes that a 16 GB card holds, in the dtype that old tensor cores take."""
    forward = [
        Row("forward", "float16", 4096 // seqlen, seqlen, 16, 16, dim, causal, suite="verify")
        for dim in (64, 128)
        for seqlen in (1024, 4096)
        for causal in (False, True)
    ]
    backward = [
        Row("backward", "float16", 1, 4096, 16, 16, dim, True, suite="verify") for dim in (64, 128)
    ]
    return forward + backward


def _outcome(
    backend: Backend,
    name: str,
    case: Case,
    operation: Operation,
    dtype: torch.dtype,
    device: torch.device,
) -> Outcome:
    said: Literal["passed", "failed", "declined"] = "passed"
    detail = ""
    try:
        generator = torch.Generator().manual_seed(_SEED)
        built = build(case, dtype, device, generator)
        t, o = built.tensors, built.options
        backwards = operation == "backward"
        problem = problem_of(t, o, operation if backwards else "", backwards)
        reasons = backend.reasons_against(problem, devices.of(device))
        if reasons:
            said, detail = "declined", "; ".join(reasons)
        elif backwards:
            _gradients(backend, t, o, dtype, generator, case.name)
        else:
            _values(backend, t, o, dtype, case.name)
    except Exception as error:  # of any library: the file must say it, and the next case run
        said, detail = "failed", f"{type(error).__name__}: {error}"[:500]
    return Outcome(name, case.name, operation, _short(dtype), said, detail)


def _values(
    backend: Backend, t: AttentionTensors, o: Options, dtype: torch.dtype, about: str
) -> None:
    problem = problem_of(t, o)
    call = backend.decode if problem.operation == "decode" else backend.forward
    out, lse = call(t, problem, {})
    check({"out": out, "lse": lse}, expected(t, o), dtype, about)


def _gradients(
    backend: Backend,
    t: AttentionTensors,
    o: Options,
    dtype: torch.dtype,
    generator: torch.Generator,
    about: str,
) -> None:
    """Gradients of out and lse, from results that the definition stored."""
    out, lse = registry.load("reference").forward(t, problem_of(t, o), {})

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    grad_out, grad_lse = normal(out), normal(lse).masked_fill(lse.isinf(), 0)
    want = expected_gradients(t, o, grad_out, grad_lse, {"out": out, "lse": lse})
    problem = problem_of(t, o, "backward", True)
    grads = backend.backward(grad_out, grad_lse, out, lse, t, problem, {})
    got = {f"d{n}": g for n, g in zip(GRADIENTS, grads, strict=True) if g is not None}
    check(got, want, dtype, about)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
