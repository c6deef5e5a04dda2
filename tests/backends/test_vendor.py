"""The adapters of installed libraries: what they pass, what they make of the answer, what they
refuse. Where a library is installed, every call is bound to its real signature."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from portattn.backends.common import definition, library
from portattn.dispatch import registry
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import BackendUnavailableError
from tests.backends.signatures import signature, source
from tests.backends.stand_ins import FlashAttn2, FlashAttn4, FlashInfer, Recorder
from tests.conformance.budget import problem_of
from tests.conformance.cases import CASES, Case, build

CPU = torch.device("cpu")
HOPPER = Device("cuda", "nvidia", "sm_90a", "a GPU")
BLACKWELL = replace(HOPPER, family="sm_100a")
STAND_INS = {"flash_attn": FlashAttn2, "flash_attn_4": FlashAttn4, "flashinfer": FlashInfer}
PACKAGES = {
    "flash_attn": ("flash-attn", "flash_attn/flash_attn_interface.py"),
    "flash_attn_4": ("flash-attn-4", "flash_attn/cute/interface.py"),
    "flashinfer": ("flashinfer-python", "flashinfer/decode.py"),
}
DECODE = AttentionProblem("decode", "cache", torch.bfloat16, 2, 1, 512, 8, 2, 128, 128, 128**-0.5)
FORWARD = replace(DECODE, operation="forward", layout="dense", seqlen_q=512)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a backend its stand-in as if the library were installed."""

    def install(name: str) -> Recorder:
        module = importlib.import_module(f"portattn.backends.{name}")
        made = STAND_INS[name]()
        monkeypatch.setattr(module, "_library", lambda: made)
        monkeypatch.setattr(module, "missing", lambda *arguments: None)
        return made

    return install


def fitting(name: str, case: Case) -> Case:
    """The case with a head dim that the library has."""
    return replace(case, head_dim=64) if name == "flashinfer" and not case.head_dim_v else case


@pytest.mark.parametrize(
    ("name", "least"), [("flash_attn", 50), ("flash_attn_4", 50), ("flashinfer", 7)]
)
def test_most_cases_are_within_its_limits(
    name: str, least: int, stand_in: Any, generator: torch.Generator
) -> None:
    stand_in(name)
    problems = []
    for case in CASES:
        built = build(fitting(name, case), torch.float16, CPU, generator)
        problems.append(problem_of(built.tensors, built.options))
    backend = registry.load(name)
    runs = [problem for problem in problems if not backend.reasons_against(problem, HOPPER)]
    assert len(runs) >= least
    assert {problem.page_size > 0 for problem in runs} == {False, True}


def close(found: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reads_and_passes_every_convention(
    name: str, case: Case, stand_in: Any, generator: torch.Generator
) -> None:
    stand_in(name)
    backend = registry.load(name)
    built = build(fitting(name, case), torch.float16, CPU, generator)
    t, problem = built.tensors, problem_of(built.tensors, built.options)
    if backend.reasons_against(problem, HOPPER):
        return
    call = backend.decode if problem.operation == "decode" else backend.forward
    out, lse = call(t, problem, {})
    right, right_lse = definition.forward(t, problem)
    close(out, right)
    close(lse, right_lse)
    backward = replace(problem, operation="backward")
    if problem.operation != "forward" or backend.reasons_against(backward, HOPPER):
        return
    grad_out = right.cos()
    found = backend.backward(grad_out, None, right, right_lse, t, backward, {})
    wanted = definition.backward(grad_out, None, right, right_lse, t, backward)
    for one, other in zip(found[:3], wanted[:3], strict=True):
        assert one is not None and other is not None
        close(one, other)


@pytest.mark.parametrize("name", STAND_INS)
def test_probe_notices_an_answer_that_is_off(
    name: str, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stand_in(name)
    backend = registry.load(name)
    monkeypatch.setattr("portattn.backends.common.trial.torch.device", lambda *at: at and CPU)
    backend.probe(HOPPER)
    assert made.calls
    monkeypatch.setattr(f"portattn.backends.{name}._library", lambda: _Lying(made))
    with pytest.raises(ArithmeticError, match="off by"):
        backend.probe(HOPPER)


class _Lying:
    """A library whose outputs are a little off."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)
        if isinstance(found, type):
            return type("Lying", (found,), {"run": _off(found.run)})  # type: ignore[attr-defined]
        return _off(found)


def _off(call: Any) -> Any:
    def wrong(*arguments: Any, **keywords: Any) -> Any:
        result = call(*arguments, **keywords)
        return None if result is None else (result[0] + 0.1, *result[1:])

    return wrong


LIMITS: list[tuple[str, AttentionProblem, Device, str]] = [
    ("flash_attn", replace(FORWARD, softmax_scale=-0.1), HOPPER, "positive softmax_scale"),
    ("flash_attn_4", replace(FORWARD, softmax_scale=-0.1), HOPPER, "positive softmax_scale"),
    ("flashinfer", replace(DECODE, softmax_scale=-0.1), HOPPER, "positive softmax_scale"),
    ("flash_attn", replace(DECODE, page_size=16), HOPPER, "multiple of 256"),
    ("flash_attn", replace(DECODE, page_size=256, leftpad=True), HOPPER, "no leftpad with pages"),
    ("flash_attn", replace(FORWARD, alibi=True), HOPPER, "alibi is not supported"),
    ("flash_attn_4", replace(FORWARD, head_dim=192, head_dim_v=192), BLACKWELL, "at most 128"),
    (
        "flash_attn_4",
        replace(FORWARD, head_dim=256, head_dim_v=256, softcap=9.0),
        BLACKWELL,
        "no softcap",
    ),
    ("flash_attn_4", FORWARD, replace(HOPPER, family="sm_80"), "is written for"),
    ("flashinfer", replace(DECODE, seqlen_q=2), HOPPER, "one query"),
    ("flashinfer", replace(DECODE, head_dim=96, head_dim_v=96), HOPPER, "not one of"),
    ("flashinfer", FORWARD, HOPPER, "has no forward"),
]


@pytest.mark.parametrize(("name", "problem", "device", "words"), LIMITS)
def test_says_exactly_what_it_cannot_do(
    name: str, problem: AttentionProblem, device: Device, words: str, stand_in: Any
) -> None:
    stand_in(name)
    backend = registry.load(name)
    plain = DECODE if name == "flashinfer" else FORWARD
    assert backend.reasons_against(plain, HOPPER) == []
    found = backend.reasons_against(problem, device)
    assert any(words in reason for reason in found), found


def test_an_absent_library_is_a_reason_with_the_command_that_installs_it() -> None:
    cause = library.missing("portattn-no-such-package")
    assert cause is not None and "pip install portattn-no-such-package" in cause
    with pytest.raises(BackendUnavailableError, match="pip install"):
        library.load("flash_attn", "no_such_module", "portattn-no-such-package")


def test_an_old_or_broken_library_is_a_reason() -> None:
    old = library.missing("torch", (99, 1))
    assert old is not None and "torch 99.1 or newer is needed" in old
    with pytest.raises(BackendUnavailableError, match="can't be imported"):
        library.load("flash_attn", "torch.no_such_module", "torch")
    assert library.missing("torch", (2, 6)) is None
    assert library.load("flash_attn", "torch", "torch", (2, 6)) is torch


@pytest.mark.parametrize("name", STAND_INS)
def test_calls_fit_the_installed_library(
    name: str, stand_in: Any, generator: torch.Generator
) -> None:
    package, file = PACKAGES[name]
    text = source(package, file)
    if text is None:
        pytest.skip(f"{package} is not installed; its source is needed, not a GPU")
    made = stand_in(name)
    backend = registry.load(name)
    for case in CASES:
        built = build(fitting(name, case), torch.float16, CPU, generator)
        problem = problem_of(built.tensors, built.options)
        if backend.reasons_against(problem, HOPPER):
            continue
        call = backend.decode if problem.operation == "decode" else backend.forward
        out, lse = call(built.tensors, problem, {})
        backward = replace(problem, operation="backward")
        if problem.operation == "forward" and not backend.reasons_against(backward, HOPPER):
            backend.backward(out, None, out, lse, built.tensors, backward, {})
    prefix = "BatchDecodeWithPagedKVCacheWrapper." if name == "flashinfer" else ""
    seen = set()
    for call_name, arguments, keywords in made.calls:
        method = signature(text, prefix + call_name)
        method.bind(*((None,) if prefix else ()), *arguments, **keywords)
        seen.add(call_name)
    assert (
        seen
        == {
            "flash_attn": {
                "flash_attn_func",
                "flash_attn_varlen_func",
                "flash_attn_with_kvcache",
                "_flash_attn_backward",
                "_flash_attn_varlen_backward",
            },
            "flash_attn_4": {"flash_attn_func", "flash_attn_varlen_func", "_flash_attn_bwd"},
            "flashinfer": {"__init__", "plan", "run"},
        }[name]
    )
