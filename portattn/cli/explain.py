"""`portattn explain`: which kernel would run a problem, and why not the others."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from portattn.cli.options import BackendOption, DtypeName, check_device, device_of, dtype_of
from portattn.cli.output import JsonFlag, print_json, print_text
from portattn.dispatch import profile as profiles
from portattn.dispatch import select
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem, Layout, Operation
from portattn.errors import NoBackendError
from portattn.explain import as_dict, render

OperationName = Literal["forward", "backward", "decode"]
LayoutName = Literal["dense", "varlen", "cache"]


def _described(device: str | None) -> str | None:
    """The shipped profile that a device's name is, dashes or not; None for names of torch's."""
    plain = (device or "").replace("-", "").lower()
    return next((name for name in profiles.names() if name.replace("-", "") == plain), None)


def _check_device(device: str | None) -> str | None:
    return device if _described(device) else check_device(device)


def explain(
    operation: Annotated[OperationName, typer.Option()] = "forward",
    layout: Annotated[
        LayoutName | None, typer.Option(help="cache for decode, dense otherwise")
    ] = None,
    dtype: Annotated[DtypeName, typer.Option()] = "bfloat16",
    batch: Annotated[int, typer.Option(min=1)] = 1,
    seqlen: Annotated[int, typer.Option(min=1, help="Queries and keys.")] = 1024,
    seqlen_q: Annotated[
        int | None, typer.Option(min=0, help="Queries; 1 for decode unless given.")
    ] = None,
    seqlen_k: Annotated[int | None, typer.Option(min=0, help="Keys.")] = None,
    heads: Annotated[int, typer.Option(min=1)] = 32,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="As many as heads.")] = None,
    head_dim: Annotated[int, typer.Option(min=1)] = 128,
    head_dim_v: Annotated[int | None, typer.Option(min=1, help="The same as head_dim.")] = None,
    causal: Annotated[bool, typer.Option("--causal")] = False,
    window: Annotated[str, typer.Option(help="LEFT,RIGHT in keys; -1 is unbounded.")] = "-1,-1",
    softcap: Annotated[float, typer.Option(min=0.0)] = 0.0,
    alibi: Annotated[bool, typer.Option("--alibi")] = False,
    sinks: Annotated[bool, typer.Option("--sinks")] = False,
    dropout: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    page_size: Annotated[int, typer.Option(min=0, help="0: the cache has no pages.")] = 0,
    backend: BackendOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda:0, …; or hardware that isn't here by its profile, as ascend910b.",
            callback=_check_device,
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Another device's profile, by name or path.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Say which kernel runs a problem, how it is configured, and why not the others."""
    if page_size and not _is_cache(operation, layout):
        raise typer.BadParameter("pages belong to a cache: add --layout cache")
    problem = AttentionProblem(
        operation=operation,
        layout=_layout(operation, layout),
        dtype=dtype_of(dtype),
        batch=batch,
        seqlen_q=_first(seqlen_q, 1 if operation == "decode" else seqlen),
        seqlen_k=_first(seqlen_k, seqlen),
        heads=heads,
        kv_heads=_kv_heads(heads, kv_heads),
        head_dim=head_dim,
        head_dim_v=_first(head_dim_v, head_dim),
        softmax_scale=head_dim**-0.5,
        causal=causal,
        window=_window(window),
        softcap=softcap,
        alibi=alibi,
        sinks=sinks,
        dropout_p=dropout,
        page_size=page_size,
    )
    _show(problem, device, profile, backend, json)


def _show(
    problem: AttentionProblem,
    device_name: str | None,
    profile_name: str | None,
    backend: str | None,
    json: bool,
) -> None:
    device, profile = _target(device_name, profile_name)
    try:
        decision = select.select(problem, device, profile=profile, backend=backend)
    except NoBackendError as error:
        if json:
            print_json(_refusal(error))
            raise typer.Exit(1) from error
        raise
    if json:
        print_json(as_dict(decision))
    else:
        print_text(render(decision))


def _target(
    device_name: str | None, profile_name: str | None
) -> tuple[Device, profiles.HardwareProfile | None]:
    described = _described(device_name)
    if described is not None:
        if profile_name is not None and profile_name != described:
            raise typer.BadParameter(f"--device {device_name} and --profile {profile_name}")
        device_name, profile_name = None, described
    if profile_name is None:
        return device_of(device_name), None
    profile = profiles.resolve(profile_name)
    device = profiles.as_device(profile) if device_name is None else device_of(device_name)
    return device, profile


def _refusal(error: NoBackendError) -> dict[str, object]:
    return {
        "backend": None,
        "problem": str(error.problem),
        "device": str(error.device),
        "rejected": {item.backend: list(item.reasons) for item in error.rejections},
    }


def _is_cache(operation: Operation, layout: Layout | None) -> bool:
    return _layout(operation, layout) == "cache"


def _layout(operation: Operation, layout: Layout | None) -> Layout:
    if layout is not None:
        return layout
    return "cache" if operation == "decode" else "dense"


def _first(value: int | None, default: int) -> int:
    return default if value is None else value


def _kv_heads(heads: int, kv_heads: int | None) -> int:
    count = heads if kv_heads is None else kv_heads
    if heads % count:
        raise typer.BadParameter(f"{heads} heads can't share {count} kv heads evenly")
    return count


def _window(text: str) -> tuple[int, int]:
    try:
        left, right = (int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--window is LEFT,RIGHT such as 255,0, not {text!r}") from error
    return left, right
