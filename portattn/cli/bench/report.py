"""Results as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from portattn.cli.bench.run import Result

RATIO_COLUMNS = ("case", "ours", "best other", "ratio")
COLUMNS = ("peer", "median ms", "quartiles ms", "TFLOP/s", "K+V GB/s", "error", "note")


def tables(results: Sequence[Result]) -> dict[str, list[tuple[str, ...]]]:
    """For every case the text cells under COLUMNS; the error is relative to what is allowed."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for result in results:
        found.setdefault(str(result.case), []).append(_row(result))
    return found


def document(results: Sequence[Result], record: Mapping[str, object]) -> dict[str, object]:
    """What is written to a file: the record of the run, then every result."""
    return {**record, "ratios": ratios(results), "results": [_entry(result) for result in results]}


def ratios(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """For every case: portattn's best, the best other, and how many times faster ours is."""
    rows: list[tuple[str, ...]] = []
    for case in dict.fromkeys(result.case for result in results):
        timed = [one for one in results if one.case == case and one.timing is not None]
        ours = _fastest([one for one in timed if one.peer.startswith("portattn")])
        theirs = _fastest([one for one in timed if not one.peer.startswith("portattn")])
        if ours is None or theirs is None:
            continue
        assert ours.timing is not None and theirs.timing is not None
        ratio = theirs.timing.median / ours.timing.median
        rows.append((str(case), _named(ours), _named(theirs), f"{ratio:.3f}"))
    return rows


def _fastest(results: Sequence[Result]) -> Result | None:
    timed = [(one.timing.median, index) for index, one in enumerate(results) if one.timing]
    return results[min(timed)[1]] if timed else None


def _named(result: Result) -> str:
    assert result.timing is not None
    return f"{result.peer} {result.timing.median * 1e6:.1f} us"


def _row(result: Result) -> tuple[str, ...]:
    timing = result.timing
    return (
        result.peer,
        "" if timing is None else f"{timing.median * 1e3:.3f}",
        "" if timing is None else f"{timing.lower * 1e3:.3f} .. {timing.upper * 1e3:.3f}",
        "" if result.tflops is None else f"{result.tflops:.3g}",
        "" if result.kv_gbs is None else f"{result.kv_gbs:.3g}",
        "" if result.error_ratio is None else f"{result.error_ratio:.2f}",
        result.reason or result.kernel or "",
    )


def _entry(result: Result) -> dict[str, object]:
    timing = result.timing
    return {
        "case": asdict(result.case),
        "peer": result.peer,
        "seconds": None if timing is None else asdict(timing),
        "tflops": result.tflops,
        "kv_gbs": result.kv_gbs,
        "error_over_allowed": result.error_ratio,
        "reason": result.reason,
        "kernel": result.kernel,
    }
