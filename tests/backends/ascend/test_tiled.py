"""The tiled kernel where only it is special: whole blocks, its masks' memory, and what it refuses.

The conformance suite's lengths are shorter than a first-level block; here blocks are small enough
that both loops run, over whole blocks and over masked ones.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from portattn.backends.ascend import launch_tiled, split_decode, tiles
from portattn.backends.ascend.tiling_mask import tiling_mask
from portattn.dispatch import registry
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem
from tests.conformance.budget import check, expected, problem_of
from tests.conformance.cases import Case, build, cached, dense, ragged

CPU = torch.device("cpu")
NPU = Device("npu", "huawei", "ascend910b", "Ascend910B2")
FORWARD = AttentionProblem("forward", "dense", torch.float16, 1, 9, 9, 2, 2, 64, 64, 0.125)
BLOCKS = {"block_m": 16, "block_n": 32}
CASES = [
    dense("plain", 1, 40, 150),
    dense("causal", 1, 70, 140, causal=True),
    dense("causal, more queries than keys", 1, 90, 70, causal=True),
    dense("window", 1, 100, 130, window=(70, 9)),
    dense("narrow window", 1, 100, 130, window=(9, 0), causal=True),
    dense("open to the right", 1, 40, 130, window=(20, -1)),
    dense("grouped, wide values", 1, 33, 97, heads=4, head_dim=40, head_dim_v=56, causal=True),
    dense("softcap and sinks", 1, 40, 140, softcap=3.0, sinks=True, causal=True),
    ragged("packed", (3, 90), (70, 70), (0, 5), (40, 0), causal=True, heads=4),
    cached("decode", 1, 130, 7, 64, heads=4, kv_heads=1),
    cached("decode in a window", 1, 130, 7, window=(70, 0)),
    cached("pages", 1, 130, 7, 64, page_size=64, sinks=True),
    cached("prefill over pages", 20, 130, 64, page_size=32, causal=True),
    cached("leftpad and rows", 4, 100, 70, leftpad=True, batch_idx=True, causal=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_and_masked_blocks(case: Case, generator: torch.Generator) -> None:
    backend = registry.load("ascend_tiled")
    if "cpu" not in backend.capability.devices:
        pytest.skip("Triton compiles for a GPU in this process; the interpreter is needed")
    built = build(case, torch.float32, CPU, generator)
    t, problem = built.tensors, problem_of(built.tensors, built.options)
    call = backend.decode if problem.operation == "decode" else backend.forward
    out, lse = call(t, problem, BLOCKS)
    check({"out": out, "lse": lse}, expected(t, built.options), torch.float32, case.name)


LONG = [
    cached("runs", 1, 150, 7, 64, 128, heads=4, kv_heads=1),
    cached("runs behind leftpad", 1, 150, 100, 70, leftpad=True, batch_idx=True, sinks=True),
    cached("runs of pages", 1, 200, 7, 64, page_size=32, heads=4, kv_heads=2),
    cached("runs of pages, sinks", 1, 200, 0, 129, page_size=32, sinks=True),
]


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_runs_of_a_long_cache_are_put_together(
    case: Case, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short runs, so that sequences end in different ones, and some have no key at all."""
    backend = registry.load("ascend_tiled")
    if "cpu" not in backend.capability.devices:
        pytest.skip("Triton compiles for a GPU in this process; the interpreter is needed")
    built = build(case, torch.float32, CPU, generator)
    t, problem = built.tensors, problem_of(built.tensors, built.options)
    whole = launch_tiled.programs(problem, BLOCKS)
    monkeypatch.setattr(split_decode, "RUN", 64)
    count = split_decode.runs(problem)
    assert count >= 3 and launch_tiled.programs(problem, BLOCKS) == count * whole
    out, lse = backend.decode(t, problem, BLOCKS)
    check({"out": out, "lse": lse}, expected(t, built.options), torch.float32, case.name)


def test_bits_of_a_sequence_in_runs_do_not_depend_on_its_batch_or_on_more_room(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = registry.load("ascend_tiled")
    if "cpu" not in backend.capability.devices:
        pytest.skip("Triton compiles for a GPU in this process; the interpreter is needed")
    built = build(LONG[0], torch.float32, CPU, generator)
    t, problem = built.tensors, problem_of(built.tensors, built.options)
    assert t.seqused_k is not None
    monkeypatch.setattr(split_decode, "RUN", 64)
    all_of_it = backend.decode(t, problem, BLOCKS)
    room = torch.nn.functional.pad
    wide = replace(
        t, q=t.q[:1], seqused_k=t.seqused_k[:1],
        k=room(t.k[:1], (0, 0, 0, 0, 0, 100)), v=room(t.v[:1], (0, 0, 0, 0, 0, 100)),
    )  # fmt: skip
    alone = replace(problem, batch=1, seqlen_k=wide.k.shape[1])
    assert split_decode.runs(alone) > split_decode.runs(problem)
    for one, several in zip(backend.decode(wide, alone, BLOCKS), all_of_it, strict=True):
        assert torch.equal(one[0], several[0])


def test_every_masked_block_is_a_window_of_the_mask() -> None:
    """Rows and keys of a masked block are at most the mask's side together, at every legal size."""
    sizes = tiles.KERNELS["forward"]
    for block_m in sizes["block_m"]:
        for block_n in sizes["block_n"]:
            tile = tiles.tile(FORWARD, 64, {"block_m": block_m, "block_n": block_n})
            assert tile.block_m + tile.edge <= tiles.MASK_SIDE


def test_memory_of_the_mask_is_constant() -> None:
    """(2M)^2 bytes whether there are a thousand keys or a million."""
    mask = tiling_mask(tiles.MASK_SIDE, torch.int8, CPU)
    assert mask.numel() * mask.element_size() == tiles.MASK_SIDE**2
    for length in (2**10, 2**20):
        problem = replace(FORWARD, seqlen_q=length, seqlen_k=length, causal=True, window=(-1, 0))
        tile = tiles.tile(problem, length, {})
        assert tile.block_m + tile.edge <= tiles.MASK_SIDE


def test_one_query_packs_its_group() -> None:
    decode = replace(FORWARD, operation="decode", layout="cache", seqlen_q=1, heads=8, kv_heads=2)
    assert launch_tiled.packed(decode) and launch_tiled.programs(decode, {}) == 2
    assert not launch_tiled.packed(replace(decode, window=(5, 0)))
    assert launch_tiled.programs(replace(decode, window=(5, 0)), {}) == 8


REFUSED = [
    (replace(FORWARD, operation="decode", layout="cache", page_size=24), "a multiple of 16 keys"),
    (replace(FORWARD, operation="backward"), "has no backward"),
    (replace(FORWARD, heads=2000, kv_heads=2000, batch=64), "more than 65535"),
    (replace(FORWARD, head_dim=264), "head_dim 264 is more than 256"),
    (replace(FORWARD, alibi=True), "alibi is not supported"),
]


@pytest.mark.parametrize(("problem", "words"), REFUSED)
def test_refuses_in_words(problem: AttentionProblem, words: str) -> None:
    reasons = registry.load("ascend_tiled").reasons_against(problem, NPU)
    assert any(words in reason for reason in reasons), reasons
