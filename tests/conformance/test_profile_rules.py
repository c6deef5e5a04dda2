"""Every configuration that a shipped profile can choose gives the right answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from portattn.dispatch import device as devices
from portattn.dispatch import profile as profiles
from portattn.dispatch import registry
from portattn.errors import BackendUnavailableError
from tests.conformance.budget import check, expected, expected_gradients, problem_of
from tests.conformance.cases import CASES, build

# A case of several tiles for each operation that kernels are named after.
LARGE = {"forward": "causal 129x200", "backward": "causal 129x200", "decode": "pages of 16"}


def rules() -> Iterator[object]:
    for name in profiles.names():
        for kernel, choices in profiles.by_name(name).kernels.items():
            for number, choice in enumerate(choices, 1):
                label = f"{name}-{kernel}-{number}"
                yield pytest.param(kernel, dict(choice.use), id=label)


@pytest.mark.parametrize(("kernel", "config"), list(rules()))
def test_rule(kernel: str, config: dict[str, int], generator: torch.Generator) -> None:
    name, _, operation = kernel.partition(".")
    try:
        backend = registry.load(name)
    except BackendUnavailableError as error:
        pytest.skip(f"until it is installed: {error}")
    case = next(case for case in CASES if case.name == LARGE[operation])
    built = build(case, torch.float32, torch.device("cpu"), generator)
    t, o = built.tensors, built.options
    problem = problem_of(t, o, operation)
    here = devices.of(torch.device("cpu"))
    if backend.reasons_against(problem, here):
        pytest.skip(f"{name} runs on another device: its rules are tried where it runs")
    if operation != "backward":
        run = backend.decode if operation == "decode" else backend.forward
        out, lse = run(t, problem, config)
        check({"out": out, "lse": lse}, expected(t, o), torch.float32, f"{kernel} {config}")
        return
    out, lse = registry.load("reference").forward(t, problem_of(t, o), {})
    g = torch.randn(out.shape, generator=generator)
    dq, dk, dv, *_ = backend.backward(g, None, out, lse, t, problem, config)
    want = expected_gradients(t, o, g, None, {"out": out, "lse": lse})
    check({"dq": dq, "dk": dk, "dv": dv}, want, torch.float32, f"{kernel} {config}")
