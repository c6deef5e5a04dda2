"""Compiles the tiled kernel for an Ascend 910B2 with the vendor's compiler, without CANN or NPU.

Triton -> TTIR -> linalg by triton-ascend, then to memory-planned, synchronised HIVM by
bishengir-compile of ascendnpu-ir. The compiler stops where CANN's closed code generator would
start. Run it where triton-ascend is the Triton that is imported (`make test-ascend`):

    python tools/ascend/compile_tiled.py OUT --compiler .../ascendnpuir/bin [--set probe]

prints one JSON line per variant, and leaves the linalg and HIVM texts in OUT. With `--target
Ascend950PR_9589` a tile that the planner refuses is halved until one fits; `keys` says which.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from portattn.backends.ascend import tiles
from portattn.backends.ascend.tiled import tiled_kernel

TARGET = "Ascend910B2"
# Its successor has a compiler of its own in the same package.
ASCEND_950 = "Ascend950PR_9589"
OPTIONS = (
    "--enable-auto-multi-buffer=true",
    "--enable-auto-bind-sub-block=true",
    "--enable-hfusion-compile=true",
    "--enable-hivm-compile=true",
    "--enable-triton-kernel-compile=true",
)
POINTERS = {
    "mask_ptr": "*i8", "sinks_ptr": "*fp32", "lse_ptr": "*fp32",
    **dict.fromkeys(("starts_q", "starts_k", "used_k", "first_k", "rows_k", "table"), "*i32"),
}  # fmt: skip
FLAGS = ("VARLEN", "CACHE", "LEFTPAD", "INDEXED", "PACKED", "SINKS", "SOFTCAP", "LEFT", "RIGHT")


def variants() -> dict[str, dict[str, Any]]:
    """Every variant that is compiled for each change, by name.

    A variant is its tile, head dim and dtype, and the kernel's constants that are set.
    """
    base = {"block_m": 64, "block_n": 512, "dim": 128, "dtype": "fp16"}
    decode = {**base, "block_m": 16, "block_n": 1024, "CACHE": True, "PACKED": True, "GROUP": 4}
    causal = {**base, "RIGHT": True}
    return {
        "plain, 512 keys": base,
        "plain, 256 keys": {**base, "block_n": 256},
        "plain, 128 keys": {**base, "block_n": 128},
        "causal": causal,
        "causal, bfloat16": {**causal, "dtype": "bf16"},
        "causal, float32": {**causal, "dtype": "fp32"},
        "causal, head dim 64": {**causal, "dim": 64},
        "causal, head dim 96": {**causal, "dim": 96},
        "causal, head dim 256": {**causal, "dim": 256},
        "causal, few rows": {**causal, "block_m": 16, "block_n": 1024},
        "causal, varlen": {**causal, "VARLEN": True},
        "causal, grouped heads": {**causal, "GROUP": 4},
        "window": {**causal, "LEFT": True},
        "softcap and sinks": {**causal, "SOFTCAP": True, "SINKS": True},
        "everything": {**causal, "LEFT": True, "SOFTCAP": True, "SINKS": True},
        "decode": decode,
        "decode, sinks": {**decode, "SINKS": True},
        "decode, leftpad, rows of the cache": {**decode, "LEFTPAD": True, "INDEXED": True},
        "decode, a run of keys": {**decode, "LEFTPAD": True, "INDEXED": True, "out": "fp32"},
        "decode, a run of pages of 128": {**decode, "block_n": 128, "PAGE": 128, "out": "fp32"},
        "decode, pages of 128": {**decode, "block_n": 128, "PAGE": 128},
        "decode, pages of 16": {**decode, "block_n": 16, "PAGE": 16},
        "prefill over pages of 128": {**causal, "CACHE": True, "block_n": 128, "PAGE": 128},
    }


def probed() -> dict[str, dict[str, Any]]:
    """The grid of first-level tiles, each with every feature that takes room beside the scores."""
    everything = {"RIGHT": True, "LEFT": True, "SOFTCAP": True, "SINKS": True}
    grid = itertools.product(
        ("fp16", "fp32"), (64, 128, 256), (16, 32, 64, 128), (64, 128, 256, 512, 1024)
    )
    return {
        f"{dtype} {dim} {rows}x{keys}": {
            "block_m": rows, "block_n": keys, "dim": dim, "dtype": dtype, **everything
        }
        for dtype, dim, rows, keys in grid
    }  # fmt: skip


def combinations() -> dict[str, dict[str, Any]]:
    """Each tile that the backend uses, with each set of the features that its buffers notice."""
    found = {}
    for (size, dim, rows), keys in tiles.KEYS.items():
        for flags in itertools.product((False, True), repeat=4):
            chosen = dict(zip(("RIGHT", "LEFT", "SOFTCAP", "SINKS"), flags, strict=True))
            dtype = {2: "fp16", 4: "fp32"}[size]
            on = "+".join(name.lower() for name, flag in chosen.items() if flag) or "plain"
            tile = {"block_m": rows, "block_n": keys, "dim": dim, "dtype": dtype}
            found[f"{dtype} {dim} {rows}x{keys} {on}"] = {**tile, **chosen}
    return found


def signature(fn: Any, chosen: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Triton's signature of the kernel for a variant, and its constants."""
    dim, page = chosen["dim"], chosen.get("PAGE", 0)
    constants: dict[str, Any] = {name: bool(chosen.get(name, False)) for name in FLAGS}
    constants |= {
        "GROUP": chosen.get("GROUP", 1), "D": dim, "DV": dim, "WIDTH": 1 << (dim - 1).bit_length(),
        "WIDTH_V": 1 << (dim - 1).bit_length(), "BLOCK_M": chosen["block_m"],
        "BLOCK_N": chosen["block_n"], "SIDE": tiles.MASK_SIDE, "PAGE": page,
        "EDGE": min(tiles.EDGE, chosen["block_n"]),
    }  # fmt: skip
    types = {}
    for name in fn.arg_names:
        if name in constants:
            continue
        if name in ("scale", "softcap"):
            types[name] = "fp32"
        elif name == "out_ptr":
            types[name] = "*" + chosen.get("out", chosen["dtype"])
        elif name in POINTERS or name.endswith("_ptr"):
            types[name] = POINTERS.get(name, "*" + chosen["dtype"])
        else:
            types[name] = "i32"
    return types, constants


def to_linalg(
    fn: Any, types: dict[str, str], constants: dict[str, Any], named: str = TARGET
) -> tuple[str, str]:
    """The kernel as linalg, and whether it uses both units ("mix")."""
    from triton._C.libtriton import ir
    from triton.backends.ascend import compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    target = GPUTarget("npu", named, 0)
    backend = make_backend(target)
    options = backend.parse_options({})
    source = ASTSource(fn, signature=types, constants=constants)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    implementation = backend.get_codegen_implementation()
    module = source.make_ir(options, implementation, backend.get_module_map(), context)
    facts = {"target": target, **options.__dict__}
    ttir = compiler.make_ttir(module, facts, options)
    linalg = compiler.ttir_to_linalg(ttir, facts, options, named_ops=True)
    linalg, facts = compiler._parse_linalg_metadata(linalg, facts)
    return linalg, facts["mix_mode"]


def to_hivm(
    name: str, linalg: str, out: Path, compiler: Path, target: str = TARGET
) -> tuple[str | None, list[str]]:
    """The kernel's HIVM, None where the compiler refuses it, and its errors."""
    source = out / f"{name}.mlir"
    source.write_text(linalg)
    kept = out / name
    kept.mkdir(exist_ok=True)
    text = kept / "module.hivm.opt.mlir"
    text.unlink(missing_ok=True)
    binary = "bishengir-compile" + ("-a5" if target == ASCEND_950 else "")
    command = [str(compiler / binary), str(source), f"--target={target}", *OPTIONS]
    command += [f"--save-temps={kept}", "-o", str(out / f"{name}.o")]
    path = f"{compiler}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": path}
    )
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    return (text.read_text() if text.exists() else None), errors


def facts_of(hivm: str) -> dict[str, Any]:
    """Functions, the peak of each on-chip buffer in bytes, and the syncs of the innermost loop."""
    functions = re.findall(r"func\.func @(\w+)\(", hivm)
    return {
        "mixed": sorted(kind for kind in ("mix_aic", "mix_aiv")
                        if any(name.endswith(kind) for name in functions)),
        "peaks": peaks(hivm),
        "loop_syncs": loop_syncs(hivm),
    }  # fmt: skip


_SIZES = {"f16": 2, "bf16": 2, "f32": 4, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "i1": 1}
_CONSTANT = re.compile(r"(%\w+) = (?:arith\.constant |llvm\.mlir\.constant\()(\d+) : i64")
_CAST = re.compile(
    r"hivm\.hir\.pointer_cast\(([^)]*)\).*?memref<((?:\d+x)*)([a-z]\w*), (?:strided<[^>]*>, )?"
    r"#hivm\.address_space<(\w+)>"
)


def peaks(hivm: str) -> dict[str, int]:
    """The largest offset + size of each on-chip address space."""
    found: dict[str, int] = {}
    for function in hivm.split("func.func @")[1:]:  # values are numbered anew in each
        constants = dict(_CONSTANT.findall(function))
        for addresses, shape, dtype, space in _CAST.findall(function):
            size = _SIZES.get(dtype)
            if size is None:
                continue
            for extent in filter(None, shape.split("x")):
                size *= int(extent)
            for address in addresses.replace(" ", "").split(","):
                if address in constants:
                    found[space] = max(found.get(space, 0), int(constants[address]) + size)
    return found


def loop_syncs(hivm: str) -> dict[str, int]:
    """Cross-core syncs inside loops, by function: static counts of a body that runs per block."""
    counts: Counter[str] = Counter()
    function, depth, loops = "", 0, []
    for line in hivm.splitlines():
        named = re.search(r"func\.func @(\w+)\(", line)
        if named:
            function = "aic" if named[1].endswith("mix_aic") else "aiv"
        if re.search(r"\bscf\.(for|while)\b", line):
            loops.append(depth)
        depth += line.count("{") - line.count("}")
        while loops and depth <= loops[-1]:
            loops.pop()
        sync = re.search(r"hivm\.hir\.sync_block_(set|wait)\b", line)
        if sync and loops:
            counts[f"{function}_{sync[1]}"] += 1
    return dict(sorted(counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--compiler", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--target", choices=(TARGET, ASCEND_950), default=TARGET)
    sets = {"variants": variants, "probe": probed, "combinations": combinations}
    parser.add_argument("--set", choices=sets, default="variants")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name, chosen in sets[given.set]().items():
        if not re.search(given.only, name):
            continue
        result = one(name, chosen, given)
        while "error" in result and given.target == ASCEND_950 and chosen["block_n"] > 16:
            chosen = {**chosen, "block_n": chosen["block_n"] // 2}
            result = one(name, chosen, given)
        if given.target == ASCEND_950 and "error" not in result:
            result = {"name": name, "keys": chosen["block_n"], "mixed": result["mixed"],
                      "peaks": result["peaks"]}  # fmt: skip
        print(json.dumps(result, sort_keys=True), flush=True)
    return 0


def one(name: str, chosen: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """What the compilers say of a variant."""
    result: dict[str, Any] = {"name": name}
    name = re.sub(r"[ ,]+", "-", name)
    try:
        linalg, result["mode"] = to_linalg(
            tiled_kernel, *signature(tiled_kernel, chosen), named=given.target
        )
    except Exception as error:  # the front end's own exceptions, one per unsupported construct
        text = getattr(error, "stderr", b"") or str(error)
        result["error"] = text.decode() if isinstance(text, bytes) else text
        result["error"] = result["error"][-600:]
    else:
        hivm, errors = to_hivm(name, linalg, given.out, given.compiler, given.target)
        (given.out / name / "variant.json").write_text(json.dumps(chosen))
        said = "; ".join(errors)[:400] or "no HIVM, and no reason given"
        result |= facts_of(hivm) if hivm else {"error": said}
    return result


if __name__ == "__main__":
    sys.exit(main())
