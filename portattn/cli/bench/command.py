"""`portattn bench`: a grid of problems, measured against the installed peers."""

from __future__ import annotations

import importlib.util
import json as json_format
from pathlib import Path
from typing import Annotated, cast, get_args

import torch
import typer

from portattn.cli.bench import report
from portattn.cli.bench.grid import Case, Operation, grid
from portattn.cli.bench.peers import PEERS, Portattn
from portattn.cli.bench.run import Result, run_case
from portattn.cli.environment import record
from portattn.cli.options import BackendOption, DeviceOption, DtypeName, torch_device
from portattn.cli.output import JsonFlag, print_json, print_table


def bench(
    operation: Annotated[str, typer.Option(help="forward,backward,decode")] = "forward",
    dtype: Annotated[str, typer.Option(help="A list: float16,bfloat16,float32")] = "float32",
    batch: Annotated[int, typer.Option(min=1)] = 1,
    seqlen: Annotated[str, typer.Option(help="A list: 512,2048")] = "512,1024",
    heads: Annotated[int, typer.Option(min=1)] = 8,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="As many as heads.")] = None,
    head_dim: Annotated[str, typer.Option(help="A list: 64,128")] = "64",
    causal: Annotated[bool, typer.Option("--causal")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each call.")] = 20,
    backend: BackendOption = None,
    device: DeviceOption = None,
    output: Annotated[Path | None, typer.Option(help="Write the results here, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the results here, as PNG.")] = None,
    json: JsonFlag = False,
) -> None:
    """Measure attention against the installed peers, each checked first, all in one run."""
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("--plot needs matplotlib: pip install 'portattn[bench]'")
    grouped = heads if kv_heads is None else kv_heads
    if heads % grouped:
        raise typer.BadParameter(f"{heads} heads can't share {grouped} kv heads evenly")
    cases = grid(
        _operations(operation),
        _dtypes(dtype),
        batch,
        _integers("--seqlen", seqlen),
        heads,
        grouped,
        _integers("--head-dim", head_dim),
        causal,
    )
    place = torch_device(device)
    results = _measure(cases, backend, place, rounds)
    _show(report.document(results, record(place)), results, output, plot, json)
    if any(result.peer.startswith("portattn") and result.timing is None for result in results):
        raise typer.Exit(1)


def _measure(
    cases: list[Case], backend: str | None, device: torch.device, rounds: int
) -> list[Result]:
    peers = (Portattn(backend), *PEERS)
    results: list[Result] = []
    for case in cases:
        typer.echo(f"{case} ...", err=True)
        results += run_case(case, peers, device, rounds)
    return results


def _show(
    document: dict[str, object],
    results: list[Result],
    output: Path | None,
    plot: Path | None,
    json: bool,
) -> None:
    if json:
        print_json(document)
    else:
        for case, rows in report.tables(results).items():
            print_table(case, report.COLUMNS, rows)
    if output is not None:
        output.write_text(json_format.dumps(document, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        machine = cast("dict[str, object]", document["machine"])
        report.plot(results, str(machine["device"]), plot)


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
