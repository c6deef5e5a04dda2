"""The tiled kernel through the vendor's compiler for the 910B2: it compiles, and into what.

The compilers live in folders that nothing else imports from, since triton-ascend is installed under
the name of triton; `make test-ascend` makes them. What they made of each variant is committed in
benchmarks/results/ascend-hivm.json; `python tools/ascend/compile_tiled.py --help` says how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("PORTATTN_ASCEND", ROOT / ".ascend"))
TABLE = json.loads((ROOT / "benchmarks" / "results" / "ascend-hivm.json").read_text())
# Bytes of the 910B's buffers, as the compiler's own device description has them.
LIMITS = {"cbuf": 512 * 1024, "cc": 128 * 1024, "ub": 192 * 1024}
COMPILER = FOLDER / "ir" / "ascendnpuir" / "bin"
needs_compilers = pytest.mark.skipif(
    not (COMPILER.exists() and (FOLDER / "triton" / "triton").exists()),
    reason="needs triton-ascend and ascendnpu-ir in folders of their own: make test-ascend",
)


def compiled(which: str, out: Path, target: str = "Ascend910B2") -> dict[str, dict[str, Any]]:
    """What the compilers make of a set of variants, by name."""
    environment = {name: value for name, value in os.environ.items() if "INTERPRET" not in name}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(FOLDER / "triton"), str(ROOT)]),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "TRITON_CACHE_DIR": str(out / "cache"),
        "PATH": f"{COMPILER}{os.pathsep}{os.environ['PATH']}",
    }
    tool = str(ROOT / "tools" / "ascend" / "compile_tiled.py")
    command = [sys.executable, tool, str(out), "--compiler", str(COMPILER), "--set", which]
    command += ["--target", target]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=800, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line.pop("name"): line for line in lines}


@needs_compilers
def test_every_variant_becomes_what_is_committed(tmp_path: Path) -> None:
    assert compiled("variants", tmp_path) == TABLE["variants"]


@needs_compilers
def test_the_ascend_950_is_compiled_for_too(tmp_path: Path) -> None:
    """With the most keys of a block that its planner accepts, and what it refuses."""
    found = compiled("variants", tmp_path, "Ascend950PR_9589")
    for facts in found.values():
        facts.pop("error", None)  # texts that name this run's files
    assert found == TABLE["ascend950"]


def test_what_the_ascend_950_refuses_is_said() -> None:
    """248 KiB of Unified Buffer and 512 KiB of L1, by its compiler's own messages."""
    table = TABLE["ascend950"]
    assert set(table) == set(TABLE["variants"])
    assert [name for name, facts in table.items() if "keys" not in facts] == ["decode, pages of 16"]
    for name, facts in table.items():
        if "keys" in facts:
            assert facts["mixed"] == ["mix_aic", "mix_aiv"]
            assert facts["peaks"]["ub"] <= 248 * 1024 and facts["peaks"]["cbuf"] <= 512 * 1024, name


@needs_compilers
def test_every_tile_fits_with_every_set_of_features(tmp_path: Path) -> None:
    found = compiled("combinations", tmp_path)
    assert len(found) == 12 * 16
    for name, facts in found.items():
        assert "error" not in facts, (name, facts)
        _within_limits(name, facts)


@needs_compilers
def test_the_kernel_runs_in_the_interpreter_of_triton_ascend_too() -> None:
    """One source for both Tritons: the same tests, with the vendor's in triton's place."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(FOLDER / "triton"), str(ROOT)]),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "TRITON_INTERPRET": "1",
    }
    tests = str(ROOT / "tests" / "backends" / "ascend" / "test_tiled.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("name", TABLE["variants"])
def test_committed_variants_run_on_both_units_within_the_buffers(name: str) -> None:
    facts = TABLE["variants"][name]
    assert facts["mode"] == "mix" and facts["mixed"] == ["mix_aic", "mix_aiv"]
    _within_limits(name, facts)


def _within_limits(name: str, facts: dict[str, Any]) -> None:
    assert set(facts["peaks"]) == set(LIMITS), name
    for space, peak in facts["peaks"].items():
        assert 0 < peak <= LIMITS[space], (name, space)


def test_larger_first_level_tiles_exchange_less_often() -> None:
    """Each loop's body holds 12 cross-core syncs whatever its keys: 4096 keys in blocks of 512 take
    96, in blocks of 128 they take 384."""
    counts = {}
    for keys in (128, 256, 512):
        syncs = TABLE["variants"][f"plain, {keys} keys"]["loop_syncs"]
        # Two loops, one over whole blocks and one over masked ones, with the same exchanges.
        assert len(syncs) == 4 and sum(syncs.values()) % 2 == 0
        counts[keys] = 4096 // keys * sum(syncs.values()) // 2
    assert counts == {128: 384, 256: 192, 512: 96}


def test_the_tile_table_is_what_the_planner_accepted() -> None:
    """The most keys of the probed grid that compile with everything on, for each tile height."""
    from portattn.backends.ascend import tiles

    for (size, dim, rows), keys in tiles.KEYS.items():
        accepted = TABLE["probe"][f"{ {2: 'fp16', 4: 'fp32'}[size] } {dim} {rows} rows"]
        assert keys == max(accepted)
