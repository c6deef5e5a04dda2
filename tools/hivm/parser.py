"""HIVM's text as operations: the subset of MLIR that our kernels' memory-planned HIVM uses.

The compiler prints one operation a line. What isn't known is refused with its line, never skipped.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

_NAME = r"%[\w$-]+(?:#\d+)?"
_RESULTS = re.compile(r"^((?:%[\w$-]+(?::\d+)?(?:, )?)+) = (.*)$")
_MEMREF = re.compile(
    r"memref<((?:(?:\d+|\?)x)*)([a-z]+\d*)(?:, strided<\[([^\]]*)\](?:, offset: [^>]*)?>)?"
    r"(?:, #hivm\.address_space<(\w+)>)?>"
)


class Unsupported(ValueError):
    """A line of HIVM that the simulator does not know."""


@dataclass(frozen=True)
class MemType:
    """A memref's type: None is an extent that is known when it runs."""

    shape: tuple[int | None, ...]
    dtype: str
    space: str


@dataclass
class Op:
    """One operation: its operands in the order they are printed, and what else the line says."""

    name: str
    results: tuple[str, ...] = ()
    operands: tuple[Any, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    body: list[Op] = field(default_factory=list)
    line: int = 0


@dataclass
class Function:
    name: str
    arguments: list[tuple[str, str]]
    body: list[Op]


@dataclass(eq=False)
class Module:
    functions: dict[str, Function]
    maps: dict[str, Any]

    def core(self, kind: str) -> Function:
        """The function of a unit, `aic` or `aiv`."""
        return next(f for name, f in self.functions.items() if name.endswith(f"mix_{kind}"))

    @property
    def workspace(self) -> int:
        """Bytes of global memory that each block exchanges scores through."""
        name = next(name for name in self.functions if "infer_workspace_shape" in name)
        return int(self.functions[name].body[0].attrs["value"])


def parse(text: str) -> Module:
    """The functions with bodies and the affine maps of a module."""
    maps: dict[str, Any] = {}
    functions: dict[str, Function] = {}
    stack: list[list[Op]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("#map"):
            name, _, body = line.partition(" = ")
            maps[name] = _affine(body)
        elif line.startswith("func.func private") or not line or line.startswith("module"):
            continue
        elif line.startswith("func.func"):
            function = _function(line)
            functions[function.name] = function
            stack = [function.body]
        elif line.startswith("}"):
            if stack:
                stack.pop()
        elif line.startswith("return"):
            continue
        else:
            op = _operation(line, number)
            stack[-1].append(op)
            if line.endswith("{"):
                stack.append(op.body)
    return Module(functions, maps)


def _function(line: str) -> Function:
    name = re.search(r"@(\w+)\(", line)
    assert name
    found = re.findall(r"(%\w+): (memref<[^>]*>+|\w+)", line)
    return Function(name[1], found, [])


def _affine(body: str) -> Any:
    """affine_map<(d0)[s0] -> (e, ...)> as a function of its dims and symbols to a tuple."""
    given = re.match(r"affine_map<\(([^)]*)\)(?:\[([^\]]*)\])? -> \((.*)\)>$", body)
    if not given:
        raise Unsupported(body)
    names = [n.strip() for part in given.groups()[:2] if part for n in part.split(",")]
    text = given[3].replace("floordiv", "//").replace(" mod ", " % ")
    text = re.sub(r"\(([^()]*(?:\([^()]*\))?[^()]*)\) ceildiv (\d+)", r"-(-(\1) // \2)", text)
    text = re.sub(r"(\w+) ceildiv (\d+)", r"-(-\1 // \2)", text)
    if not re.fullmatch(r"[\w\s+\-*/%(),]*", text) or "ceildiv" in text:
        raise Unsupported(body)
    return eval(f"lambda {', '.join(names)}: ({text},)", {"__builtins__": {}})


def memtype(text: str) -> MemType:
    """The last memref type of a text."""
    found = _MEMREF.findall(text)
    if not found:
        raise Unsupported(text)
    dims, dtype, _, space = found[-1]
    shape = tuple(None if d == "?" else int(d) for d in dims.split("x") if d)
    return MemType(shape, dtype, space or "gm")


def _names(text: str) -> tuple[str, ...]:
    return tuple(re.findall(_NAME, text))


def _list(text: str) -> tuple[Any, ...]:
    """A printed list of extents: integers and names of values."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(part if part.startswith("%") else int(part) for part in parts)


def _operation(line: str, number: int) -> Op:
    results: tuple[str, ...] = ()
    given = _RESULTS.match(line)
    rest = line
    if given:
        rest = given[2]
        for part in given[1].split(", "):
            name, _, count = part.partition(":")
            results += tuple(f"{name}#{i}" for i in range(int(count))) if count else (name,)
    name = rest.split(" ", 1)[0].split("[", 1)[0].split("(", 1)[0]
    name = name.removeprefix("func.") if name == "func.call" else name
    for prefix, read in _READERS.items():
        if name == prefix or (prefix.endswith(".") and name.startswith(prefix)):
            operands, attrs = read(rest)
            return Op(name, results, operands, attrs, [], number)
    raise Unsupported(f"line {number}: {line}")


Parsed = tuple[tuple[Any, ...], dict[str, Any]]


def _constant(rest: str) -> Parsed:
    value, _, dtype = rest.removeprefix("arith.constant ").partition(" : ")
    if value in ("true", "false"):
        return (), {"value": int(value == "true")}
    if value.startswith("0x"):
        return (), {"value": struct.unpack("<f", struct.pack("<I", int(value, 16)))[0]}
    return (), {"value": float(value) if "f" in dtype else int(value)}


def _arith(rest: str) -> Parsed:
    text, _, dtype = rest.rpartition(" : ")
    predicate = re.match(r"arith\.cmp[if] (\w+),", text)
    attrs = {"predicate": predicate[1] if predicate else "", "type": dtype.split(" to ")[-1]}
    return _names(text), attrs


def _apply(rest: str) -> Parsed:
    name = re.search(r"#map\d*", rest)
    assert name
    return _names(rest), {"map": name[0]}


def _for(rest: str) -> Parsed:
    given = re.match(rf"scf\.for ({_NAME}) = ({_NAME}) to ({_NAME}) step ({_NAME})", rest)
    if not given:
        raise Unsupported(rest)
    carried = re.search(r"iter_args\((.*?)\) ->", rest)
    pairs = re.findall(rf"({_NAME}) = ({_NAME})", carried[1]) if carried else []
    return given.groups()[1:], {"index": given[1], "carried": pairs}


def _if(rest: str) -> Parsed:
    if not re.fullmatch(rf"scf\.if {_NAME} {{", rest):
        raise Unsupported(rest)
    return _names(rest), {}


def _yield(rest: str) -> Parsed:
    return _names(rest.split(" : ")[0]), {}


def _pointer(rest: str) -> Parsed:
    return _names(rest.split(" : ")[0]), {"type": memtype(rest)}


def _cast(rest: str) -> Parsed:
    return _names(rest.split(" : ")[0]), {"type": memtype(rest)}


def _reinterpret(rest: str) -> Parsed:
    given = re.match(
        rf"memref\.reinterpret_cast ({_NAME}) to offset: \[(.*?)\], sizes: \[(.*?)\], "
        r"strides: \[(.*?)\]", rest,
    )  # fmt: skip
    if not given:
        raise Unsupported(rest)
    offset, sizes, strides = (_list(given[i]) for i in (2, 3, 4))
    attrs = {"offset": offset[0], "sizes": sizes, "strides": strides, "type": memtype(rest)}
    return (given[1],), attrs


def _subview(rest: str) -> Parsed:
    given = re.match(rf"memref\.subview ({_NAME})\[(.*?)\] \[(.*?)\] \[(.*?)\]", rest)
    if not given:
        raise Unsupported(rest)
    offsets, sizes, steps = (_list(given[i]) for i in (2, 3, 4))
    attrs = {"offsets": offsets, "sizes": sizes, "steps": steps, "type": memtype(rest)}
    return (given[1],), attrs


def _reshape(rest: str) -> Parsed:
    groups = re.search(r"\[(\[.*?\])\]", rest)
    assert groups
    parts = [_list(part) for part in re.findall(r"\[([^\]]*)\]", groups[1])]
    shape = re.search(r"output_shape \[(.*?)\]", rest)
    return _names(rest)[:1], {"groups": parts, "shape": _list(shape[1]) if shape else ()}


def _view(rest: str) -> Parsed:
    return _names(rest.split(" : ")[0]), {"type": memtype(rest)}


def _load(rest: str) -> Parsed:
    return _names(rest.split(" : ")[0]), {"type": memtype(rest)}


def _call(rest: str) -> Parsed:
    given = re.match(r"(?:func\.)?call @(\w+)\((.*?)\) : ", rest)
    if not given:
        raise Unsupported(rest)
    return _names(given[2]), {"callee": given[1]}


def _hir(rest: str) -> Parsed:
    inside = re.search(r"\[([^\]]*)\]", rest)
    parts = [p.strip() for p in inside[1].split(",")] if inside else []
    pipes = [p[1:-1].removeprefix("PIPE_") if p.startswith("<") else p for p in parts]
    flag = re.search(rf"flag = (\d+|{_NAME})", rest)
    return (), {"pipes": pipes, "flag": flag[1] if flag else None}


_READERS = {
    "arith.constant": _constant, "arith.": _arith,
    "affine.": _apply, "scf.for": _for, "scf.if": _if, "scf.yield": _yield,
    "memref.cast": _cast, "memref.reinterpret_cast": _reinterpret, "memref.subview": _subview,
    "memref.collapse_shape": _reshape, "memref.expand_shape": _reshape, "memref.view": _view,
    "memref.load": _load, "memref.extract_strided_metadata": _cast, "call": _call,
    "hivm.hir.pointer_cast": _pointer, "hivm.hir.": _hir,
}  # fmt: skip
