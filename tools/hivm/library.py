"""What the routines do that HIVM calls: which pipe, what they read and write, and the result.

The routines are the vendor's (its bitcode is closed); names, operands and layouts are those of the
emitted calls. Cube operands are fractal: element (r, c) of a matrix lies at [c // c0, r // 16,
r % 16, c % c0], with c0 elements in 32 bytes. Scratch operands are overwritten with NaN patterns,
so that nothing can rely on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.hivm.memory import Array, View
from tools.hivm.parser import Unsupported


@dataclass
class Work:
    """A piece of one operation on one pipe. `path` names where bytes go, for counting."""

    pipe: str
    name: str
    reads: tuple[View, ...] = ()
    writes: tuple[View, ...] = ()
    # What a routine writes and reads by itself before it ends.
    scratch: tuple[View, ...] = ()
    action: Callable[[], None] | None = None
    path: str = ""
    bytes: int = 0
    # Of the vector unit: elements, bytes of one, and how many times a plain operation it takes.
    elements: int = 0
    itemsize: int = 4
    passes: float = 1.0
    # Of the Cube unit.
    shape: tuple[int, int, int] = (0, 0, 0)
    # Flags of the pipe pair (MTE2, MTE1) and back that the matrix routine handles by itself.
    waits: tuple[int, ...] = ()
    sets: tuple[int, ...] = ()
    # The second half of an operation whose first half runs on another pipe.
    then: Work | None = None
    facts: dict[str, Any] = field(default_factory=dict)


# How many plain passes of the vector unit an operation takes: assumed, no published figure.
_PASSES = {"exp": 2.0, "ln": 2.0, "div": 2.0, "reduce": 1.5, "2d": 1.25}


def works(callee: str, operands: Sequence[Any]) -> Work:
    """The work of one call; Unsupported names a routine that isn't known."""
    for pattern, make in _ROUTINES:
        given = re.fullmatch(pattern, callee)
        if given:
            return make(callee, given, operands)
    raise Unsupported(f"routine {callee}")


def to_fractal(matrix: Array, view: View) -> Array:
    """[R, C] as [C1, R1, 16, c0], zero beyond the matrix."""
    c1, r1, r0, c0 = view.shape
    full = np.zeros((r1 * r0, c1 * c0), matrix.dtype)
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    return full.reshape(r1, r0, c1, c0).transpose(2, 0, 1, 3)


def from_fractal(tiles: Array) -> Array:
    """[C1, R1, 16, c0] as [R, C]."""
    c1, r1, r0, c0 = tiles.shape
    return tiles.transpose(1, 2, 0, 3).reshape(r1 * r0, c1 * c0)


def _nd2nz(callee: str, _: Any, operands: Sequence[Any]) -> Work:
    source, target = operands

    def action() -> None:
        matrix = source.get()
        target.put(to_fractal(matrix, target))

    return Work("MTE2", callee, (source,), (target,), (), action, "GM to L1", source.bytes)


def _set_l1(callee: str, _: Any, operands: Sequence[Any]) -> Work:
    value, target = operands
    return Work(
        "MTE2", callee, (), (target,), (), lambda: target.put(value), "fill L1", target.bytes
    )


def _mma(callee: str, given: re.Match[str], operands: Sequence[Any]) -> Work:
    """c = a b. The first half loads L0 on MTE1, between its flags; the second multiplies on M."""
    a, b, _, m, k, n, c, wait_a, wait_b, set_a, set_b, _, *unused = operands
    if set(unused) - {-1, 0}:
        raise Unsupported(f"{callee} with {unused}")
    held: dict[str, Array] = {}

    def load() -> None:
        held["a"], held["b"] = from_fractal(a.get()), from_fractal(b.get())

    def multiply() -> None:
        rows = min(-(-m // 16) * 16, held["a"].shape[0])
        columns = min(-(-n // 16) * 16, c.shape[0] * c.shape[3])
        left = held["a"][:rows, :k].astype(np.float32)
        right = held["b"][:columns, :k].T if given[1] else held["b"][:k, :columns]
        with np.errstate(all="ignore"):
            product = left @ right.astype(np.float32)
        kept = from_fractal(c.get())
        kept[:rows, :columns] = product
        c.put(to_fractal(kept, c))

    second = Work("M", callee, (), (c,), (), multiply, shape=(m, k, n), itemsize=a.bits // 8)
    return Work(
        "MTE1", callee, (a, b), (), (), load, "L1 to L0", (m * k + k * n) * a.bits // 8,
        shape=(m, k, n), itemsize=a.bits // 8, then=second,
        waits=tuple(x for x in (wait_a, wait_b) if x >= 0),
        sets=tuple(x for x in (set_a, set_b) if x >= 0),
    )  # fmt: skip


def _fixpipe(callee: str, _: Any, operands: Sequence[Any]) -> Work:
    source, target = operands[:2]

    def action() -> None:
        rows, columns = target.shape
        target.put(from_fractal(source.get())[:rows, :columns])

    return Work("FIX", callee, (source,), (target,), (), action, "L0C to GM", target.bytes)


def _copy(pipe: str, path: str) -> Callable[..., Work]:
    def make(callee: str, _: Any, operands: Sequence[Any]) -> Work:
        source, target = operands[:2]
        if source.shape != target.shape:
            raise Unsupported(f"{callee} from {source.shape} to {target.shape}")

        def action() -> None:
            target.put(source.get())

        work = Work(pipe, callee, (source,), (target,), (), action, path, source.bytes)
        if pipe == "V":
            work.elements, work.itemsize = target.elements, max(1, target.bits // 8)
        return work

    return make


def _vector(compute: Callable[..., Any], inputs: int, passes: float = 1.0) -> Callable[..., Work]:
    """An operation of `inputs` operands, then the target, then scratch."""

    def make(callee: str, _: Any, operands: Sequence[Any]) -> Work:
        sources, target, rest = operands[:inputs], operands[inputs], operands[inputs + 1 :]
        scratch = tuple(v for v in rest if isinstance(v, View) and v.elements)

        def action() -> None:
            given = [v.get() if isinstance(v, View) else v for v in sources]
            with np.errstate(all="ignore"):
                result = compute(*given)
            for view in scratch:
                view.put(_garbage(view))
            target.put(result)

        reads = tuple(v for v in sources if isinstance(v, View))
        times = passes * (_PASSES["2d"] if "_2d_" in callee else 1.0)
        widest = max((target, *reads), key=lambda v: v.elements * max(8, v.bits))
        return Work(
            "V", callee, reads, (target,), scratch, action, elements=widest.elements,
            itemsize=max(1, widest.bits // 8), passes=times,
        )  # fmt: skip

    return make


def _garbage(view: View) -> Any:
    return True if view.dtype == "i1" else -1 if view.dtype.startswith("i") else np.nan


def _reduce(compute: Callable[..., Any]) -> Callable[..., Work]:
    def make(callee: str, _: Any, operands: Sequence[Any]) -> Work:
        source, target, scratch, initial = operands

        def action() -> None:
            rows = source.get()
            result = compute(rows, initial)
            scratch.put(np.nan)
            target.put(result)

        return Work(
            "V", callee, (source,), (target,), (scratch,), action, elements=source.elements,
            passes=_PASSES["reduce"],
        )  # fmt: skip

    return make


def _cast_mode(source: Array, mode: int) -> Array:
    """Modes of the casts that occur: 0 rounds to nearest even, 4 cuts the fraction off."""
    if mode not in (0, 4):
        raise Unsupported(f"rounding mode {mode}")
    return np.trunc(source) if mode == 4 else source


def _cast_from(inputs: int) -> Callable[..., Work]:
    def make(callee: str, given: Any, operands: Sequence[Any]) -> Work:
        mode = operands[-1]
        simple = _vector(lambda x: _cast_mode(x.astype(np.float64), mode), 1)
        return simple(callee, given, operands[:-1])

    return make


def _max(rows: Array, initial: float) -> Array:
    with np.errstate(all="ignore"):
        return np.maximum(rows.max(axis=-1, keepdims=True), np.float32(initial))


def _sum(rows: Array, initial: float) -> Array:
    with np.errstate(all="ignore"):
        return rows.sum(axis=-1, keepdims=True, dtype=np.float32) + np.float32(initial)


def _select(mask: Array, yes: Any, no: Any) -> Array:
    return np.where(mask, yes, no)


def _arange(callee: str, _: Any, operands: Sequence[Any]) -> Work:
    target, offset, step = operands
    return Work(
        "V", callee, (), (target,), (),
        lambda: target.put(offset + step * np.arange(target.elements)), elements=target.elements,
    )  # fmt: skip


def _fill(callee: str, _: Any, operands: Sequence[Any]) -> Work:
    value, target = operands
    return Work("V", callee, (), (target,), (), lambda: target.put(value), elements=target.elements)


_T = r"(?:float|half|bfloat16_t|int8_t|int32_t|bool|bool_float)"
_ROUTINES: tuple[tuple[str, Callable[..., Work]], ...] = (
    (rf"nd2nz_{_T}", _nd2nz),
    (rf"set_l1_2d_{_T}", _set_l1),
    (rf"mma_tile_{_T}_to_float(_tb)?", _mma),
    (r"fixpipe_nz2nd_float_to_float_4d_to_2d", _fixpipe),
    (rf"load_gm_to_ubuf_[12]d_{_T}", _copy("MTE2", "GM to UB")),
    (rf"store_ubuf_to_gm_[12]d_{_T}", _copy("MTE3", "UB to GM")),
    (rf"copy_ubuf_to_ubuf_[12]d_{_T}", _copy("V", "")),
    (rf"broadcast_scalar_{_T}_to_[12]d", _fill),
    (r"arange_1d_int32_t", _arange),
    (rf"broadcast_first_axis_align_2d_{_T}", _vector(lambda x: x, 1)),
    (r"enablevc_reduce_max_ar_float", _reduce(_max)),
    (r"enablevc_reduce_sum_ar_float", _reduce(_sum)),
    (rf"vadds?(?:_vs)?_[12]d_{_T}", _vector(lambda x, y: x + y, 2)),
    (rf"vsub_[12]d_{_T}", _vector(lambda x, y: x - y, 2)),
    (rf"vmuls?(?:_vs)?_[12]d_{_T}", _vector(lambda x, y: x * y, 2)),
    (rf"vdiv(?:_vs)?_[12]d_{_T}", _vector(lambda x, y: x / y, 2, _PASSES["div"])),
    (rf"vmaxs?(?:_vs)?_[12]d_{_T}", _vector(np.maximum, 2)),
    (rf"vexp_[12]d_{_T}", _vector(np.exp, 1, _PASSES["exp"])),
    (rf"vln_[12]d_{_T}", _vector(np.log, 1, _PASSES["ln"])),
    (rf"vcmps?_eq_[12]d_{_T}", _vector(lambda x, y: x == y, 2)),
    (r"vnot_[12]d_bool", _vector(lambda x: ~x, 1)),
    (rf"vsel_(?:vv|vs|sv|ss)_1d_{_T}", _vector(_select, 3)),
    (r"vcast_bool_to_half_1d_with_temp", lambda c, g, o: _vector(lambda x: x, 1)(c, g, o[:3])),
    (rf"vcast_{_T}_to_{_T}_1d_with_mode", _cast_from(1)),
)
