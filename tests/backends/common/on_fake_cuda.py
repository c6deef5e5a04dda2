"""Launches on a CUDA driver that runs nothing; test_driver.py runs this file where it is found.

Kernels are compiled for a chip that isn't there, and both Triton's own launcher and ours hand their
parameters to fake_cuda.c, which notes them.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

import portattn
from portattn.backends.common import driver, launch, parameters, repeats
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from portattn.errors import ArgumentError, LaunchError

MOST, WIDEST = 160, 128
HALF = torch.float16
# Python and C functions that a repeated eager call makes, all of them.
FORWARD_CALLS, DECODE_CALLS = 50, 70


class Record(ctypes.Structure):
    """fake_cuda.c's."""

    _fields_ = [
        ("launches", ctypes.c_int),
        ("config", driver._Config),
        ("attribute", driver._Attribute),
        ("function", ctypes.c_void_p),
        ("bytes", (ctypes.c_ubyte * WIDEST) * MOST),
    ]


FAKE = ctypes.CDLL("libcuda.so.1")
FAKE.fake_record.restype = ctypes.POINTER(Record)


class FakeDevice:
    """What Triton asks of a driver, for a Hopper that never runs."""

    launcher_cls = CudaLauncher

    def __init__(self) -> None:
        self.utils = CudaUtils()
        self.utils.get_device_properties = lambda device: {"max_shared_mem": 227 * 1024}
        # Kernels differ in their size, which thus stands for the address of the function.
        self.utils.load_binary = lambda name, kernel, *_: (1, len(kernel), 32, 0, 1024)
        self.utils.unload_module = lambda module: None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return -1

    def get_current_stream(self, device: int) -> int:
        return driver.current_stream(device)


@pytest.fixture(scope="module", autouse=True)
def fake_device() -> None:
    triton.runtime.driver.set_active(FakeDevice())
    launch.family = lambda tensor: "sm_90a"
    launch.device = lambda tensor: Device("cuda", "nvidia", "sm_90a", "sm_90a", cores=4)
    # Tensors are the CPU's, and taken for the GPU's.
    kind = type(registry.load("triton"))
    kind.probe = lambda self, device: None
    backend = registry.load("triton")
    backend.capability = replace(backend.capability, devices=frozenset({"cpu", "cuda"}))


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each thread has a stream of its own, and nothing is left over."""
    monkeypatch.setenv("PORTATTN_LAUNCH", "driver")
    monkeypatch.setattr(driver, "current_stream", lambda device: threading.get_ident())
    yield
    for name in ("fake_status", "fake_pause", "fake_count"):
        ctypes.c_int.in_dll(FAKE, name).value = 0


def expect(compiled: Any) -> int:
    """Tell the driver how large a kernel's parameters are; returns how many there are."""
    entry = re.search(r"\.entry \w+\(([^)]*)\)", compiled.asm["ptx"])
    assert entry
    sizes = []
    for parameter in entry[1].split(","):
        bits, count = re.search(r"\.[busf](\d+).*?(?:\[(\d+)\])?$", parameter.strip()).groups()
        sizes.append(int(bits) // 8 * int(count or 1))
    (ctypes.c_int * MOST).in_dll(FAKE, "fake_sizes")[: len(sizes)] = sizes
    ctypes.c_int.in_dll(FAKE, "fake_count").value = len(sizes)
    return len(sizes)


def noted() -> dict[str, Any]:
    """This thread's last launch."""
    record = FAKE.fake_record().contents
    config = record.config
    return {
        "grid": tuple(config.grid),
        "block": tuple(config.block),
        "shared": config.shared,
        "stream": config.stream,
        "attributes": (config.attribute_count, record.attribute.id, record.attribute.value),
        "function": record.function,
        "parameters": [bytes(row) for row in record.bytes],
    }


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).to(HALF)


def lengths(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


Case = tuple[str, str, AttentionTensors, AttentionProblem]


def dense() -> Case:
    q, k, v = normal(2, 24, 4, 16), normal(2, 24, 2, 16), normal(2, 24, 2, 16)
    problem = AttentionProblem("forward", "dense", HALF, 2, 24, 24, 4, 2, 16, 16, 0.25)
    return "triton", "forward", AttentionTensors(q, k, v), problem


def with_tma() -> Case:
    q, k, v = normal(2, 80, 4, 96), normal(2, 80, 2, 96), normal(2, 80, 2, 64)
    problem = AttentionProblem("forward", "dense", HALF, 2, 80, 80, 4, 2, 96, 64, 0.25)
    return "hopper", "forward", AttentionTensors(q, k, v), problem


def packed_with_features() -> Case:
    tensors = AttentionTensors(
        normal(40, 4, 16),
        normal(40, 2, 16),
        normal(40, 2, 32),
        bias=torch.randn(1, 4, 24, 1),
        mask=torch.rand(2, 1, 24, 24) > 0.5,
        alibi_slopes=torch.rand(2, 4),
        sinks=torch.randn(4),
        cu_seqlens_q=lengths(0, 24, 40),
        cu_seqlens_k=lengths(0, 24, 40),
        rng_state=torch.tensor([7, 9]),
    )
    problem = AttentionProblem(
        "forward", "varlen", HALF, 2, 24, 24, 4, 2, 16, 32, 0.3,
        window=(20, 3), softcap=5.0, alibi=True, bias=True, mask=True, sinks=True, dropout_p=0.1,
        total_q=40, total_k=40, full_size_mask=True,
    )  # fmt: skip
    return "triton", "forward", tensors, problem


def paged() -> Case:
    """Long enough that a second kernel merges."""
    q, k, v = normal(2, 1, 4, 16), normal(90, 16, 2, 16), normal(90, 16, 2, 16)
    table = torch.randperm(88).int().view(2, 44)
    tensors = AttentionTensors(q, k, v, seqused_k=lengths(700, 5), block_table=table)
    problem = AttentionProblem("decode", "cache", HALF, 2, 1, 704, 4, 2, 16, 16, 0.25, page_size=16)
    return "triton", "decode", tensors, problem


CONFIG: dict[str, int] = {}


def planned(case: Case) -> repeats.Repeats:
    """A plan that has run once, and so has launches to repeat."""
    backend, name, tensors, problem = case
    plan = repeats.Repeats(getattr(registry.load(backend), name), problem, CONFIG)
    plan.run(tensors)
    assert plan._again is not None
    return plan


def launchers(plan: repeats.Repeats) -> list[Any]:
    assert plan._again is not None
    return list(plan._again.launches)


@pytest.fixture(scope="module")
def plain() -> Case:
    return dense()


MADE = [dense, packed_with_features, paged]
if triton.__version__.startswith(parameters.KNOWN_MAPS):
    MADE.append(with_tma)


@pytest.mark.parametrize("make", MADE)
def test_the_driver_gets_what_triton_would_hand_it(
    make: Callable[[], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each launch, byte by byte, with the pointers of other tensors than the first ones."""
    case = make()
    plan = planned(case)
    other = replace(case[2], q=case[2].q.clone(), v=case[2].v.clone())
    handed: list[tuple[int, list[int]]] = []
    repeated = []
    for each in launchers(plan):
        assert isinstance(each, driver.Launch)
        call = each.__class__.__call__

        def watched(self: Any, stream: int, pointers: list[int], call: Any = call) -> None:
            count = expect(self.compiled)
            call(self, stream, pointers)
            handed.append((stream, list(pointers)))
            repeated.append((count, noted()))

    with monkeypatch.context() as patch:
        patch.setattr(driver.Launch, "__call__", watched)
        plan.run(other)
    monkeypatch.setenv("PORTATTN_LAUNCH", "triton")
    by_triton = launchers(planned(case))
    assert len(by_triton) == len(repeated) == (2 if make is paged else 1)
    for each, (stream, pointers), (count, found) in zip(by_triton, handed, repeated, strict=True):
        assert isinstance(each, repeats.ByTriton)
        assert expect(each.prepared.compiled) == count > 15
        each(stream, pointers)
        assert noted() == found
        assert other.q.data_ptr() in pointers and found["stream"] == threading.get_ident()


def test_hooks_go_through_triton(plain: Case) -> None:
    plan = planned(plain)
    told: list[Any] = []
    hooks = triton.knobs.runtime.launch_enter_hook
    hooks.add(told.append)
    try:
        plan.run(plain[2])
        assert len(told) == 1
    finally:
        hooks.remove(told.append)
    plan.run(plain[2])
    assert len(told) == 1


def test_other_alignment_is_another_launch(plain: Case) -> None:
    plan = planned(plain)
    k = plain[2].k
    shifted = torch.zeros(k.numel() + 1, dtype=HALF)[1:].view(k.shape)
    before = FAKE.fake_record().contents.function
    plan.run(replace(plain[2], k=shifted))
    assert FAKE.fake_record().contents.function != before


def test_a_refusal_has_the_drivers_name(plain: Case) -> None:
    plan = planned(plain)
    ctypes.c_int.in_dll(FAKE, "fake_status").value = 700
    with pytest.raises(LaunchError, match=r"forward_kernel.*CUDA_ERROR_MADE_UP \(700\), made up"):
        plan.run(plain[2])


def test_a_thread_without_a_context_gets_one(plain: Case) -> None:
    plan = planned(plain)
    FAKE.fake_lose_context()
    before = FAKE.fake_record().contents.launches
    plan.run(plain[2])
    assert FAKE.fake_record().contents.launches == before + 1


def test_threads_dont_share_parameters(plain: Case) -> None:
    """All launch one kernel at once, and each must find its own pointers and stream noted."""
    plan = planned(plain)
    (direct,) = launchers(plan)
    expect(direct.compiled)
    at = [i for i, p in enumerate(direct._parameters) if p.type == "*"]
    ctypes.c_int.in_dll(FAKE, "fake_pause").value = 3
    wrong: list[Any] = []

    def work() -> None:
        tensors = AttentionTensors(*(x.clone() for x in (plain[2].q, plain[2].k, plain[2].v)))
        for _ in range(300):
            out, lse = plan.run(tensors)
            mine = [x.data_ptr() for x in (tensors.q, tensors.k, tensors.v, out, lse)]
            found = noted()
            got = [int.from_bytes(found["parameters"][i][:8], "little") for i in at]
            if got != mine or found["stream"] != threading.get_ident():
                wrong.append((got, mine))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 1 < len(direct._free) <= 5


@pytest.mark.parametrize(
    "change", [{"num_ctas": 2}, {"global_scratch_size": 8}, {"name": "gone"}, {"shared": 2**20}]
)
def test_what_is_unusual_is_left_to_triton(plain: Case, change: dict[str, Any]) -> None:
    with pytest.raises(parameters.Unsuited):
        _changed(plain, lambda ptx: ptx, **change)


@pytest.mark.parametrize(
    "old, new",
    [
        ("param_1,", "param_1,\n.param .u32 more,"),
        ("param_1,", "param_1,\n.param .align 8 .b8 more[16],"),
        ("\n)", ",\n.param .u64 .ptr .global .align 1 more\n)"),
        (".f32", ".f64"),
    ],
)
def test_parameters_that_differ_are_left_to_triton(plain: Case, old: str, new: str) -> None:
    with pytest.raises(parameters.Unsuited, match="compiled parameters"):
        _changed(plain, lambda ptx: ptx.replace(old, new, 1))


def _changed(case: Case, edit: Callable[[str], str], **change: Any) -> None:
    """Prepare a launch of a kernel whose metadata or PTX is another."""
    _, _, tensors, problem = case
    with launch.recorded() as launches:
        registry.load("triton").forward(tensors, problem, CONFIG)
    prepared = launches[0].prepared
    compiled = prepared.compiled
    other = SimpleNamespace(
        src=compiled.src,
        asm={"ptx": edit(compiled.asm["ptx"])},
        metadata=SimpleNamespace(**{**compiled.metadata._asdict(), **change}),
        function=compiled.function,
    )
    driver.Launch(other, 1, prepared.plan.args, dict.fromkeys(range(64), 0), -1)


def test_a_scale_beyond_float32_is_left_to_triton(plain: Case) -> None:
    """Which makes it infinite."""
    backend, name, tensors, problem = plain
    plan = planned((backend, name, tensors, replace(problem, softmax_scale=1e300)))
    assert isinstance(launchers(plan)[0], repeats.ByTriton)


@pytest.mark.parametrize("make", MADE)
def test_without_a_wish(make: Callable[[], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver launches what it has been seen to launch."""
    monkeypatch.delenv("PORTATTN_LAUNCH")
    by = repeats.ByTriton if make is with_tma else driver.Launch
    assert all(isinstance(each, by) for each in launchers(planned(make())))


def test_an_unknown_way_to_launch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTATTN_LAUNCH", "quickly")
    with pytest.raises(ArgumentError, match="PORTATTN_LAUNCH"):
        driver.wanted()


def functions_called(call: Callable[[], object]) -> int:
    """Python's and C's, in a call like three earlier ones."""
    for _ in range(3):
        call()
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@torch.no_grad()
def test_a_repeated_eager_call_is_short() -> None:
    """Its host time is what it calls; a time would depend on the machine."""
    q, k = normal(1, 24, 8, 64), normal(1, 2048, 2, 64)
    cache = portattn.ContiguousKVCache.from_tensors(k, k, lengths(2048))
    new = q[:, :1].contiguous()
    launches = FAKE.fake_record().contents.launches
    forward = functions_called(lambda: portattn.attention(q, k, k, causal=True, backend="triton"))
    # The first call is Triton's.
    assert FAKE.fake_record().contents.launches == launches + 4
    decode = functions_called(lambda: portattn.attention_with_kvcache(new, cache, backend="triton"))
    assert FAKE.fake_record().contents.launches == launches + 4 + 8
    assert forward <= FORWARD_CALLS and decode <= DECODE_CALLS
