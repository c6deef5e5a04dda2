"""Compile the Triton and Gluon kernels for chips that aren't here, and compare with a table.

    python tools/kernel_resources.py            compare
    python tools/kernel_resources.py --write    write the table
    python tools/kernel_resources.py --only sm_90a --only decode

The table is benchmarks/results/triton-resources.json. A row is one kernel of one call of a
backend, with the tiles that it takes on that chip, its arguments specialised as a launch would
specialise them. `spills` counts the instructions that move registers to or from local memory in the
kernel's main loop, which is the shortest one with matrix products: the others are for tiles at an
edge, or with a NaN. With another Triton than the table's it only shows that everything compiles.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver

from portattn.backends.common import launch
from portattn.backends.common.launch import OPERANDS
from portattn.dispatch import registry
from portattn.dispatch.backend import AttentionTensors, Backend
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem, Operation

TABLE = Path(__file__).resolve().parent.parent / "benchmarks/results/triton-resources.json"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Compute capability of each family, and what one block may use of its shared memory.
CHIPS = {
    "sm_80": (80, 163 * 1024),
    "sm_86": (86, 99 * 1024),
    "sm_89": (89, 99 * 1024),
    "sm_90a": (90, 227 * 1024),
    "sm_100a": (100, 227 * 1024),
    "sm_120a": (120, 99 * 1024),
}
CAUSAL = {"causal": True, "window": (-1, 0)}
INT8 = {"kv_dtype": torch.int8, "kv_scale": True}
FLOAT8 = {"kv_dtype": torch.float8_e4m3fn, "kv_scale": True}
WINDOW = {"window": (256, 0), "softcap": 30.0}
PACKED = {"layout": "varlen", **CAUSAL}
Variant = tuple[str, Operation, int, int, dict[str, Any]]
# name, operation, head dims, what else the problem has; "config" holds a tile that profiles choose
VARIANTS: tuple[Variant, ...] = (
    ("forward D64", "forward", 64, 64, {}),
    ("forward D128", "forward", 128, 128, {}),
    ("forward D128 causal", "forward", 128, 128, CAUSAL),
    ("forward D192/128 causal", "forward", 192, 128, CAUSAL),
    ("forward D256", "forward", 256, 256, {}),
    ("backward D64 causal", "backward", 64, 64, CAUSAL),
    ("backward D128 causal", "backward", 128, 128, CAUSAL),
    ("decode D128 32/8", "decode", 128, 128, {"heads": 32, "kv_heads": 8}),
    ("decode D128 32/8 int8", "decode", 128, 128, {"heads": 32, "kv_heads": 8, **INT8}),
    ("decode D128 32/8 float8", "decode", 128, 128, {"heads": 32, "kv_heads": 8, **FLOAT8}),
    ("decode D576/512", "decode", 576, 512, {"heads": 16, "kv_heads": 1}),
)
FIXED = {"deterministic": True}
PERSISTENT = {"persistent": 1, "own_out": 1}
HOPPER_VARIANTS: tuple[Variant, ...] = (
    ("hopper forward D64", "forward", 64, 64, {}),
    ("hopper forward D64, 2 warpgroups", "forward", 64, 64, {"config": {"warpgroups": 2}}),
    ("hopper forward D64 causal", "forward", 64, 64, CAUSAL),
    ("hopper forward D96 causal", "forward", 96, 96, CAUSAL),
    ("hopper forward D128", "forward", 128, 128, {}),
    ("hopper forward D128, persistent", "forward", 128, 128, {"config": PERSISTENT}),
    ("hopper forward D128 causal", "forward", 128, 128, CAUSAL),
    ("hopper forward D128 packed", "forward", 128, 128, PACKED),
    ("hopper forward D128 window", "forward", 128, 128, WINDOW),
    ("hopper forward D192/128 causal", "forward", 192, 128, CAUSAL),
    ("hopper forward D256", "forward", 256, 256, {}),
    ("hopper forward D256 causal", "forward", 256, 256, CAUSAL),
    ("hopper backward D64", "backward", 64, 64, {}),
    ("hopper backward D64 causal", "backward", 64, 64, CAUSAL),
    ("hopper backward D96 causal", "backward", 96, 96, CAUSAL),
    ("hopper backward D128", "backward", 128, 128, {}),
    ("hopper backward D128 causal", "backward", 128, 128, CAUSAL),
    ("hopper backward D128 packed", "backward", 128, 128, PACKED),
    ("hopper backward D128 window", "backward", 128, 128, WINDOW),
    ("hopper backward D64 fixed order", "backward", 64, 64, {**CAUSAL, **FIXED}),
    ("hopper backward D128 fixed order", "backward", 128, 128, {**CAUSAL, **FIXED}),
)


class CompileOnly:
    """Stands for a chip that isn't there: kernels compile for it, and none is loaded."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # type: ignore[no-any-return]

    def get_current_stream(self, device: int) -> int:
        return 0


def rows(only: list[str]) -> dict[str, dict[str, int]]:
    """What each kernel uses, by "family, variant, kernel"; `only` selects by parts of the name."""
    found = {}
    calls = [("triton", family, variant) for family in CHIPS for variant in VARIANTS]
    calls += [("hopper", "sm_90a", variant) for variant in HOPPER_VARIANTS]
    for backend, family, variant in calls:
        label = f"{family}, {variant[0]}"
        if not only or any(part in label for part in only):
            for kernel, used in compile_call(backend, family, variant).items():
                found[f"{label}, {kernel}"] = used
    return found


def compile_call(backend: str, family: str, variant: Variant) -> dict[str, dict[str, int]]:
    """Every kernel that one call launches, compiled for a family."""
    capability, shared = CHIPS[family]
    driver.set_active(CompileOnly(capability))
    compiled: dict[str, dict[str, int]] = {}

    def compile_only(kernel: Any, call: Any, written: Any, plan: Any) -> None:
        planned = plan()
        values = [getattr(call.tensors, name) for name in OPERANDS]
        values += [*call.more, *written, torch.empty(1), torch.empty(1, dtype=torch.int32)]
        args = launch.filler(planned.args)(values)
        grid = (planned.programs, 1, 1)
        made = kernel.warmup(*args, grid=grid, **planned.constants, **planned.options)
        used = usage(made.asm["cubin"], conditional=backend == "hopper")
        if backend == "hopper":
            refuse_serialised(kernel.fn.__name__, made.asm["ptx"])
        used["shared"] = made.metadata.shared
        if used["shared"] > shared:
            raise SystemExit(f"{family}: {kernel.fn.__name__} needs {used['shared']} shared bytes")
        compiled[kernel.fn.__name__] = used

    device = Device("cuda", "nvidia", family, family, cores=100)
    with (
        patch.object(launch, "run", compile_only),
        patch.object(launch, "family", lambda tensor: family),
        patch.object(launch, "device", lambda tensor: device),
    ):
        _call(registry.load(backend), variant)
    return compiled


def _call(backend: Backend, variant: Variant) -> None:
    """One call of a backend over memory that is never read."""
    _, operation, head_dim, head_dim_v, more = variant
    config = more.get("config", {})
    settings = {name: value for name, value in more.items() if name != "config"}
    settings = {"layout": "dense", "heads": 4, "kv_heads": 4, **settings}
    heads, kv_heads = settings["heads"], settings["kv_heads"]
    queries, keys = (1, 8192) if operation == "decode" else (1024, 1024)
    if operation == "decode":
        settings["layout"] = "cache"
    problem = AttentionProblem(
        operation,
        dtype=torch.bfloat16,
        batch=2,
        seqlen_q=queries,
        seqlen_k=keys,
        **settings,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        softmax_scale=head_dim**-0.5,
    )
    packed = problem.layout == "varlen"

    stored = problem.kv_dtype or problem.dtype

    def empty(
        length: int, heads: int, dim: int, dtype: torch.dtype = problem.dtype
    ) -> torch.Tensor:
        shape = (2 * length, heads, dim) if packed else (2, length, heads, dim)
        return torch.empty(shape, dtype=dtype)

    tensors = AttentionTensors(
        empty(queries, heads, head_dim),
        empty(keys, kv_heads, head_dim, stored),
        empty(keys, kv_heads, head_dim_v, stored),
    )
    if problem.kv_scale:
        tensors.k_scale = tensors.v_scale = torch.empty(2, kv_heads)
    if packed:
        tensors.cu_seqlens_q = tensors.cu_seqlens_k = torch.zeros(3, dtype=torch.int32)
    if operation == "decode":
        tensors.seqused_k = torch.zeros(2, dtype=torch.int32)
        backend.decode(tensors, problem, config)
    elif operation == "forward":
        backend.forward(tensors, problem, config)
    else:
        out, lse = empty(queries, heads, head_dim_v), torch.empty(2, heads, queries)
        lse = lse.transpose(0, 1).flatten(1) if packed else lse
        backend.backward(out, None, out, lse, tensors, problem, config)


def refuse_serialised(kernel: str, ptx: str) -> None:
    """Stop where the assembler makes each of a warpgroup's products wait for the one before.

    It does so, with a mere remark, where an accumulator is touched while products are under way.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(90).path, "-v", "--gpu-name", "sm_90a", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for line in said.splitlines():
        if "serialized" in line:
            raise SystemExit(f"{kernel}: {line}")


def usage(cubin: bytes, conditional: bool = False) -> dict[str, int]:
    """Registers, bytes of local memory, and spills in the main loop of a cubin's kernel."""
    tool = TOOLS / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text, code = (
            subprocess.run(
                [tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", text))
    return {
        "registers": int(found["REG"]),
        "local": int(found["STACK"]),
        "spills": main_loop_spills(code, conditional),
    }


def main_loop_spills(code: str, conditional: bool = False) -> int:
    """Local loads and stores in the shortest loop that has matrix instructions; 0 without one.

    conditional: only loops that end with a condition; waits for barriers lie at a kernel's end and
    jump back without one.
    """
    lines = [
        (int(match[1], 16), match[2])
        for match in re.finditer(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", code, re.MULTILINE)
    ]
    bodies = []
    for address, text in lines:
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address and (not conditional or text.startswith("@")):
            body = [t for place, t in lines if int(jump[1], 16) <= place <= address]
            if any("MMA" in t for t in body):
                bodies.append(body)
    shortest = min(bodies, key=len, default=[])
    return sum("LDL" in text or "STL" in text for text in shortest)


def main() -> int:
    """Compare or write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the table, or --only its rows")
    parser.add_argument("--only", action="append", default=[], help="part of a row's name")
    options = parser.parse_args()
    found = rows(options.only)
    table = json.loads(TABLE.read_text())
    if options.write:
        kept = table["kernels"] if options.only else {}
        text = {"triton": triton.__version__, "kernels": {**kept, **found}}
        TABLE.write_text(json.dumps(text, indent=1) + "\n")
        return 0
    if table["triton"] != triton.__version__:
        print(f"compiled; the table is for Triton {table['triton']}, not {triton.__version__}")
        return 0
    differing = [name for name, used in found.items() if table["kernels"].get(name) != used]
    for name in differing:
        print(f"{name}: {found[name]}, the table has {table['kernels'].get(name)}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
