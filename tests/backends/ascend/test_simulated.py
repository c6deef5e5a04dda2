"""The compiled kernel in the HIVM simulator: right results, no hazards, and faults that show.

data/causal.mlir is what bishengir-compile 1.2.0 made of the `causal` variant (tools/ascend), so
these tests need no compiler; with the compilers there, every variant is compiled anew and run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from tests.backends.ascend.test_compiled import TABLE, compiled, needs_compilers
from tools.hivm import model
from tools.hivm.attention import Case, Launch, errors
from tools.hivm.cases import case_of
from tools.hivm.cases import compiled as read
from tools.hivm.faults import caught, faults, sample, seeded
from tools.hivm.machine import Outcome
from tools.hivm.memory import Buffer, OutOfBounds, View
from tools.hivm.parser import Module, Unsupported, parse

DATA = Path(__file__).parent / "data" / "causal.mlir"
CHOSEN = {"block_m": 64, "block_n": 512, "dim": 128, "dtype": "fp16", "RIGHT": True}
# One sequence of one tile: what faults are tried on.
SMALL = replace(case_of(CHOSEN), seqlen_q=64)


@lru_cache(maxsize=1)
def causal() -> Module:
    return parse(DATA.read_text())


def clean(launch: Launch, **options: int) -> Outcome:
    """Run every block: right within the budget, and nothing to report."""
    found = launch.run(**options)
    assert not found.deadlock, found.deadlock
    assert not found.hazards, [str(hazard) for hazard in found.hazards[:5]]
    assert not found.problems, found.problems[:5]
    off = errors(launch)
    assert off.within, off
    return found


@pytest.mark.parametrize(
    "queries, keys", [(64, 64), (1, 1), (70, 6 * 512 + 271), (130, 100), (64, 2 * 512)]
)
def test_the_program_computes_causal_attention(queries: int, keys: int) -> None:
    seed = int(np.random.SeedSequence().entropy or 0) % 2**32
    print("seed", seed)
    clean(Launch(causal(), Case(CHOSEN, queries, keys, seed=seed)))


def test_whatever_order_the_pipes_take_the_bits_are_the_same() -> None:
    results = []
    for seed in (0, 1, 2):
        launch = Launch(causal(), SMALL)
        clean(launch, seed=seed)
        results.append(launch.results())
    for out, lse in results[1:]:
        assert np.array_equal(out, results[0][0]) and np.array_equal(lse, results[0][1])


def test_a_block_of_keys_takes_twelve_semaphores_however_many_keys_it_has() -> None:
    """Six of the Cube, six of each Vector core: 96 in 4096 keys, and 24 more by whole blocks of 512
    than at none."""
    counts = []
    for whole in (4, 12):
        launch = Launch(causal(), Case(CHOSEN, 64, whole * 512 + 64))
        syncs = launch.run(check=False).syncs
        counts.append(sum(syncs[f"{core} {way}"] for core in ("AIC", "AIV0")
                          for way in ("set", "wait")))  # fmt: skip
    assert counts[1] - counts[0] == 96


def test_bytes_of_scores_pass_through_global_memory_once_each_way() -> None:
    """Scores as float32 to the Vector cores, weights in half back, outputs as float32."""
    rows, keys = 64, 4 * 512 + 64
    moved = Launch(causal(), Case(CHOSEN, rows, keys)).run(check=False).bytes
    # The diagonal's tile ends inside the only masked block, which is passed whole.
    blocks, columns = 5, 4 * 512 + 128
    assert (
        moved["L0C to GM"] == moved["GM to UB"] - rows * 128 == 4 * rows * (columns + 128 * blocks)
    )
    assert moved["UB to GM"] == 2 * rows * columns + 2 * rows * 128 + 4 * rows


TRIED = 44


def test_seeded_faults_are_caught() -> None:
    """At least 95 % of removed waits, wrong flags and swapped buffers; whatever isn't noticed must
    be harmless, in any order of the pipes."""
    tensors = Launch(causal(), SMALL).tensors
    every = faults(causal())
    moved = ("wait too late", "set too early")
    tried = sample([f for f in every if f.kind not in moved], TRIED, seed=0)
    assert len({fault.kind for fault in tried}) == 11
    missed = [fault for fault in tried if not caught(causal(), fault, SMALL, tensors)]
    assert len(missed) <= 0.05 * len(tried), [str(fault) for fault in missed]
    late = sample([f for f in every if f.kind in moved], 12, seed=0)
    unnoticed = [fault for fault in late if not caught(causal(), fault, SMALL, tensors)]
    assert len(unnoticed) < len(late)
    for fault in missed + unnoticed:
        for seed in (1, 2):
            clean(Launch(seeded(causal(), fault), SMALL, tensors), seed=seed)


def test_a_removed_pair_is_seen_by_what_it_no_longer_orders() -> None:
    """Flags stay balanced when set and wait both go: only the accesses can tell."""
    module = parse(DATA.read_text())
    body = module.core("aiv").body
    _remove_pair(body, ["V", "MTE3"])
    found = Launch(module, SMALL).run()
    assert any("store_ubuf_to_gm" in hazard.later for hazard in found.hazards)
    assert not found.deadlock and not found.problems


def _remove_pair(body: list, pipes: list[str]) -> None:
    for op in list(body):
        _remove_pair(op.body, pipes)
        if (
            op.name in ("hivm.hir.set_flag", "hivm.hir.wait_flag")
            and op.attrs["pipes"][:2] == pipes
        ):
            body.remove(op)


def test_what_is_not_known_is_refused_with_its_line() -> None:
    with pytest.raises(Unsupported, match="line 2: %0 = tosa"):
        parse("func.func @f_mix_aic() {\n%0 = tosa.add %a, %b : i32\n}")
    text = DATA.read_text().replace("@vexp_1d_float", "@vtan_1d_float")
    with pytest.raises(Unsupported, match="routine vtan_1d_float"):
        Launch(parse(text), SMALL).run()


def test_addresses_end_with_the_buffer() -> None:
    buffer = Buffer.filled("ub", "ub", 1024)
    View(buffer, 512, 0, (128,), (1,), "f32").put(1.0)
    with pytest.raises(OutOfBounds, match=r"bytes 512 to 1028 of ub, which has 1024"):
        View(buffer, 512, 0, (129,), (1,), "f32").put(1.0)


def test_the_model_continues_what_was_simulated() -> None:
    """At counts of blocks that it doesn't simulate itself."""
    of = model.tiling(causal(), CHOSEN)
    for whole, masked in ((13, 2), (30, 3), (47, 1)):
        real = model.simulated(of, whole, masked)
        assert abs(model.block_cycles(of, whole, masked) / real - 1) < 0.01


@needs_compilers
def test_every_variant_runs_as_compiled(tmp_path: Path) -> None:
    assert len(compiled("variants", tmp_path)) == len(TABLE["variants"])
    found = read(tmp_path)
    assert len(found) == len(TABLE["variants"])
    names = {name.replace(", ", "-").replace(" ", "-"): name for name in TABLE["variants"]}
    for name, (module, chosen) in found.items():
        seen = clean(Launch(module, case_of(chosen)))
        for space, peak in seen.peaks.items():
            assert peak <= TABLE["variants"][names[name]]["peaks"][space], (name, space)
    fit = model.calibrate(model.tiling(*found["plain-512-keys"]))
    assert max(abs(error) for error in fit["left_out"].values()) < 0.2
