"""`portattn tune`: measures kernels here and writes the overlay that dispatch obeys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from portattn import tuning
from portattn.cli.options import DeviceOption, device_of
from portattn.cli.output import JsonFlag, print_json, print_table, print_text
from portattn.dispatch import device as devices
from portattn.dispatch.device import Device
from portattn.tuning.candidates import written
from portattn.tuning.outcome import Outcome

NUMERICS = (
    "Tile sizes fix the numerics: where a rule changed, the order of reduction changes, and with "
    "it the last bits of results."
)


def tune(
    budget: Annotated[
        float, typer.Option(min=0.0, help="Seconds of measuring; nothing new begins after them.")
    ] = 120.0,
    kernel: Annotated[
        list[str] | None, typer.Option(help="As triton.forward; may be repeated. All by default.")
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(help="Words of a problem's name, as decode-d128; may be repeated."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew what the journal already knows.")
    ] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="Compile ahead by running every rule; measure nothing.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option(help="Measure the device's rates too; about a second each.")
    ] = True,
    device: DeviceOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure kernels' configurations on a device; write the best into your overlay."""
    found = device_of(device)
    if warm:
        _warm(found, json)
        return
    rates = _calibrate(found) if calibrate else []
    report = _tune(found, kernel or [], problem or [], budget, again)
    if json:
        print_json(_document(report, rates))
    else:
        _show(report, rates)
    if report.interrupted:
        raise typer.Exit(130)


def _calibrate(device: Device) -> list[tuning.Calibration]:
    """The device's rates; with the CPU those of every link to an accelerator."""
    rest = [d for d in devices.available() if d.type in ("cuda", "xpu", "npu")]
    found = [tuning.calibrate(d) for d in ([device, *rest] if device.type == "cpu" else [device])]
    for calibration in found:
        calibration.save()
    return found


def _tune(
    device: Device, kernels: list[str], problems: list[str], budget: float, again: bool
) -> tuning.Report:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("of {task.total:.0f} s"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("tuning", total=budget, doing="")

        def show(step: tuning.Step) -> None:
            bars.update(
                task,
                completed=min(step.elapsed, step.budget),
                description=f"{step.number}/{step.of} {step.target}",
                doing=step.text,
            )

        return tuning.tune(
            device,
            kernels=kernels,
            problems=problems,
            budget=budget,
            again=again,
            progress=show,
        )


def _show(report: tuning.Report, rates: list[tuning.Calibration]) -> None:
    _show_rates(rates)
    print_table(
        f"{report.device}, profile {report.profile}",
        ("problem", "kernel", "before", "us", "after", "us", "faster", "tried"),
        [row for outcome in report.outcomes for row in _rows(outcome)],
    )
    print_table(
        "who runs it now: measured in turns, in us",
        ("problem", "backends, fastest first"),
        [(outcome.target, _ranking(outcome)) for outcome in report.outcomes],
    )
    refused = [row for outcome in report.outcomes for row in _refused(outcome)]
    if refused:
        columns = ("problem", "kernel", "configuration", "why not", "more like it")
        print_table("not taken", columns, refused)
    for name, reasons in report.skipped:
        print_text(f"skipped {name}: {reasons}")
    for name in report.open:
        print_text(f"open    {name}")
    if report.overlay is not None:
        print_text(f"written {report.overlay}")
        if any(_changes_numerics(outcome) for outcome in report.outcomes):
            print_text(NUMERICS)
    if report.interrupted or report.open:
        what = "interrupted" if report.interrupted else "the budget ended first"
        print_text(f"{what}: nothing is lost, the same command goes on ({report.journal})")


def _show_rates(rates: list[tuning.Calibration]) -> None:
    rows = []
    for found in rates:
        speeds = [f"{name} {rate:g} TFLOP/s" for name, rate in found.tflops.items()]
        for what, gbs in (
            ("memory", found.bandwidth_gbs),
            ("host link", found.host_gbs),
            ("peer link", found.peer_gbs),
        ):
            if gbs is not None:
                speeds.insert(0, f"{what} {gbs:g} GB/s")
        rows.append((str(found.device), ", ".join(speeds)))
    if rows:
        print_table("rates", ("device", "measured"), rows)


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """Before and after, of every kernel that had candidates."""
    rows: list[tuple[str, ...]] = []
    for backend in outcome.tuned:
        before, best = outcome.before(backend), outcome.best(backend)
        if best is None:
            continue
        same = before is not None and before.config == best.config
        rows.append(
            (
                outcome.target,
                f"{backend}.{outcome.operation}",
                "refused" if before is None else written(before.config),
                "" if before is None else f"{before.us:.1f}",
                "the same" if same else written(best.config),
                f"{best.us:.1f}",
                "" if before is None else f"{before.score / best.score:.2f} x",
                str(outcome.tried),
            )
        )
    return rows


def _changes_numerics(outcome: Outcome) -> bool:
    for backend in outcome.tuned:
        before, best = outcome.before(backend), outcome.best(backend)
        if best is not None and (before is None or before.config != best.config):
            return True
    return False


def _ranking(outcome: Outcome) -> str:
    best = [(name, outcome.best(name)) for name in outcome.backends()]
    return ", ".join(f"{name} {standing.us:.1f}" for name, standing in best if standing)


def _refused(outcome: Outcome) -> list[tuple[str, ...]]:
    return [
        (outcome.target, kernel, written(config), reason, str(more) if more else "")
        for kernel, config, reason, more in outcome.refused
    ]


def _warm(device: Device, json: bool) -> None:
    console = Console(stderr=True)
    with console.status("compiling") as status:
        done = tuning.warm(device, progress=status.update)
    if json:
        print_json([asdict(item) for item in done])
        return
    rows = [
        (
            item.kernel,
            item.problem,
            item.source,
            "" if item.first is None else f"{item.first:.2f} s",
            "" if item.second is None else f"{item.second:.4f} s",
            item.reason or "",
        )
        for item in done
    ]
    print_table("warm", ("kernel", "problem", "rule", "first call", "second", "why not"), rows)


def _document(report: tuning.Report, rates: list[tuning.Calibration]) -> dict[str, object]:
    return {
        "device": str(report.device),
        "profile": report.profile,
        "rates": [{**asdict(found), "device": str(found.device)} for found in rates],
        "outcomes": [outcome.as_record() for outcome in report.outcomes],
        "open": list(report.open),
        "skipped": dict(report.skipped),
        "overlay": None if report.overlay is None else str(report.overlay),
        "journal": str(report.journal),
        "interrupted": report.interrupted,
        "seconds": report.seconds,
    }
