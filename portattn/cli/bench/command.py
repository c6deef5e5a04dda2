"""`portattn bench`: suites or a grid of problems, measured against the installed peers."""

from __future__ import annotations

import importlib.util
import json as json_format
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, cast, get_args

import torch
import typer

from portattn.cli.bench import report, session, suites, verify
from portattn.cli.bench.grid import Case, Operation, grid
from portattn.cli.bench.peers import Peer, ours
from portattn.cli.bench.peers_all import PEERS
from portattn.cli.bench.run import Result
from portattn.cli.bench.session import Session
from portattn.cli.environment import record
from portattn.cli.options import BackendOption, DeviceOption, DtypeName, torch_device
from portattn.cli.output import JsonFlag, print_json, print_table


def bench(
    suite: Annotated[
        str | None,
        typer.Option(help=f"Fixed rows, a list or all: {','.join(suites.names())}"),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="Only the rows whose name contains one of these: B1 S,D64")
    ] = None,
    operation: Annotated[str, typer.Option(help="forward,backward,decode")] = "forward",
    dtype: Annotated[str, typer.Option(help="A list: float16,bfloat16,float32")] = "float32",
    batch: Annotated[int, typer.Option(min=1)] = 1,
    seqlen: Annotated[str, typer.Option(help="A list: 512,2048")] = "512,1024",
    heads: Annotated[int, typer.Option(min=1)] = 8,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="As many as heads.")] = None,
    head_dim: Annotated[str, typer.Option(help="A list: 64,128")] = "64",
    causal: Annotated[bool, typer.Option("--causal")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Most samples of each call.")] = 20,
    budget: Annotated[
        float | None, typer.Option(min=1, help="Seconds for all rounds; no limit without it.")
    ] = None,
    peers: Annotated[
        str, typer.Option(help="all, none, or a list of the libraries to compare with")
    ] = "all",
    verified: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="First hold each backend to the conformance cases; then fixed rows or --suite.",
        ),
    ] = False,
    backend: BackendOption = None,
    device: DeviceOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the results here as JSON, after every case.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw them here as PNG; with suites, beside --output.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Measure attention against the installed peers, each checked first, all in one run.

    --suite measures fixed rows with each of our backends; without it, a grid of the other options.
    --verify holds them to the conformance cases first; it writes portattn-verify.json by default.
    """
    plot = _plot_file(plot, output, suite is not None)
    place = torch_device(device)
    if verified and output is None:
        output = Path("portattn-verify.json")
    cases = (
        _suite_cases(suite)
        if suite is not None
        else verify.rows()
        if verified
        else _grid_cases(operation, dtype, batch, seqlen, heads, kv_heads, head_dim, causal)
    )
    cases = _chosen_rows(cases, rows)
    own = ours(backend, place, each=verified or suite is not None)
    machine = record(place)
    failures = _verify(machine, place, backend, output) if verified else 0
    found = session.run(
        cases,
        (*own, *_chosen_peers(peers)),
        place,
        rounds,
        math.inf if budget is None else budget,
        partial(_write, machine, output),
        partial(typer.echo, err=True),
    )
    _show(_document(machine, found), found.results, plot, json)
    if failures:
        typer.echo(f"{failures} conformance cases failed", err=True)
    if failures or any(_failed(result, own[0].name) for result in found.results):
        raise typer.Exit(1)


def _verify(
    machine: dict[str, object], place: torch.device, backend: str | None, output: Path | None
) -> int:
    """How many conformance cases failed; the outcomes join the machine's record as they come."""
    say = partial(typer.echo, err=True)
    outcomes: list[verify.Outcome] = []
    for name in verify.backends_of(place, backend):
        outcomes += verify.conformance([name], place, say)
        machine["conformance"] = verify.document(outcomes)
        _write(machine, output, Session())
    failed = [one for one in outcomes if one.outcome == "failed"]
    for one in failed:
        say(f"FAILED {one.backend} {one.operation} {one.case} {one.dtype}: {one.detail}")
    return len(failed)


def _plot_file(plot: Path | None, output: Path | None, of_suites: bool) -> Path | None:
    """Where to draw: as asked, or beside the results of suites where matplotlib is there."""
    can_draw = importlib.util.find_spec("matplotlib") is not None
    if plot is not None and not can_draw:
        raise typer.BadParameter("--plot needs matplotlib: pip install 'portattn[bench]'")
    if plot is None and output is not None and of_suites and can_draw:
        return output.with_suffix(".png")
    return plot


def _suite_cases(names: str) -> list[Case]:
    chosen = suites.names() if names == "all" else tuple(names.split(","))
    return [
        case
        for name in chosen
        for case in suites.cases(_one_of("--suite", name, (*suites.names(), "all")))
    ]


def _grid_cases(
    operation: str,
    dtype: str,
    batch: int,
    seqlen: str,
    heads: int,
    kv_heads: int | None,
    head_dim: str,
    causal: bool,
) -> list[Case]:
    grouped = heads if kv_heads is None else kv_heads
    if heads % grouped:
        raise typer.BadParameter(f"{heads} heads can't share {grouped} kv heads evenly")
    return grid(
        _operations(operation),
        _dtypes(dtype),
        batch,
        _integers("--seqlen", seqlen),
        heads,
        grouped,
        _integers("--head-dim", head_dim),
        causal,
    )


def _chosen_rows(cases: list[Case], rows: str | None) -> list[Case]:
    if rows is None:
        return cases
    chosen = [case for case in cases if any(part in str(case) for part in rows.split(","))]
    if not chosen:
        known = "\n".join(str(case) for case in cases)
        raise typer.BadParameter(f"--rows {rows!r} is in none of\n{known}")
    return chosen


def _chosen_peers(names: str) -> Sequence[Peer]:
    if names in ("all", "none"):
        return PEERS if names == "all" else ()
    known = {peer.name: peer for peer in PEERS}
    return [known[_one_of("--peers", name, tuple(known))] for name in names.split(",")]


def _failed(result: Result, first: str) -> bool:
    """Our own choice must run where there was time for it; none of our backends may be wrong."""
    if not result.peer.startswith("portattn"):
        return False
    refused = result.timing is None and result.reason != session.SPENT
    return result.wrong or (result.peer == first and refused)


def _document(machine: dict[str, object], found: Session) -> dict[str, object]:
    return report.document(found.results, {**machine, **found.extras()})


def _write(machine: dict[str, object], output: Path | None, found: Session) -> None:
    """Replace the file of results by a whole new one: an interrupted run leaves a valid file."""
    if output is None:
        return
    text = json_format.dumps(_document(machine, found), indent=2) + "\n"
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(output)


def _show(
    document: dict[str, object], results: list[Result], plot: Path | None, json: bool
) -> None:
    if json:
        print_json(document)
    else:
        for case, rows in report.tables(results).items():
            print_table(case, report.COLUMNS, rows)
        print_table("ratios", report.RATIO_COLUMNS, report.ratios(results))
    if plot is not None and results:
        from portattn.cli.bench.plot import plot as draw

        machine = cast("dict[str, object]", document["machine"])
        draw(results, str(machine["device"]), plot)


def _operations(text: str) -> list[Operation]:
    return [
        cast(Operation, _one_of("--operation", name, get_args(Operation)))
        for name in text.split(",")
    ]


def _dtypes(text: str) -> list[str]:
    return [_one_of("--dtype", name, get_args(DtypeName)) for name in text.split(",")]


def _one_of(option: str, name: str, legal: tuple[str, ...]) -> str:
    if name not in legal:
        raise typer.BadParameter(f"{option}: {name!r} is not one of {', '.join(legal)}")
    return name


def _integers(option: str, text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} is a list such as 512,1024, not {text!r}") from error
    if min(values) < 1:
        raise typer.BadParameter(f"{option}: {min(values)} is less than 1")
    return values
