"""`portattn plan`: what fits where, and how long a step takes, without running anything."""

from __future__ import annotations

import json as json_module
import re
from pathlib import Path
from typing import Annotated, cast

import typer

from portattn.cli.options import DeviceOption, torch_device
from portattn.cli.output import JsonFlag, print_json
from portattn.dispatch import profile as profiles
from portattn.errors import ArgumentError
from portattn.offload import machine as machines
from portattn.offload import planner
from portattn.offload.planner import SHAPES, ModelShape, Policy
from portattn.parallel import planner as parallel


def tokens(text: str) -> int:
    """A count such as 8192, 128K or 1M; K and M are powers of two, as context lengths are named."""
    match = re.fullmatch(r"(\d+)([KkMm]?)", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a count such as 8192, 128K or 1M")
    return int(match[1]) * {"": 1, "K": 2**10, "M": 2**20}[match[2].upper()]


def plan(
    model: Annotated[
        str, typer.Option(help=f"A folder with a config.json, or {', '.join(SHAPES)}.")
    ] = "llama-3-8b",
    context: Annotated[str, typer.Option(help="Tokens a sequence: 8192, 128K, 1M.")] = "128K",
    batch: Annotated[int, typer.Option(min=1)] = 1,
    tp: Annotated[int, typer.Option(min=1, help="Devices that share the heads.")] = 1,
    devices: Annotated[
        str | None, typer.Option(help="Many devices, all keys on them: 8xv100-32, 64xh100.")
    ] = None,
    cp: Annotated[
        int | None, typer.Option(min=1, help="With --devices: what shares the tokens.")
    ] = None,
    blocks: Annotated[
        int, typer.Option(min=1, help="With --devices: parts of the rows that are summed over tp.")
    ] = 4,
    policy: Annotated[str, typer.Option(help=", ".join(planner.POLICIES))] = "auto",
    profile: Annotated[
        str | None, typer.Option(help="Another device's profile, such as nvidia-h100.")
    ] = None,
    device: DeviceOption = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="int8 or float8_e4m3fn for the host's part.")
    ] = None,
    host_gbs: Annotated[float | None, typer.Option(help="What the CPU reads, 1e9 bytes/s.")] = None,
    link_gbs: Annotated[float | None, typer.Option(help="The host link, 1e9 bytes/s.")] = None,
    host_gib: Annotated[
        float | None, typer.Option(help="Host memory for keys and values, GiB.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Divide a model's keys and values between device, CPU and link; predict the time of a step.

    With --devices, divide the model and its tokens among tp x cp of them; predict memory and times.
    """
    if devices is not None:
        spread = parallel.plan(
            shape_of(model),
            parallel.cluster(devices),
            tokens(context),
            tp=tp,
            cp=cp,
            batch=batch,
            blocks=blocks,
        )
        _show(spread, json)
        return
    host_bytes = None if host_gib is None else int(host_gib * 2**30)
    if profile is None:
        machine = machines.here(torch_device(device), host_gbs=host_gbs)
    else:
        machine = machines.of_profile(
            profiles.resolve(profile), host_gbs=host_gbs, link_gbs=link_gbs, host_bytes=host_bytes
        )
    made = planner.plan(
        shape_of(model),
        machine,
        tokens(context),
        batch=batch,
        policy=cast(Policy, policy),  # checked there
        tp=tp,
        kv_dtype=kv_dtype,
    )
    _show(made, json)


def _show(made: planner.Plan | parallel.ParallelPlan, json: bool) -> None:
    if json:
        print_json(made.as_dict())
    else:
        typer.echo(made.explain())


def shape_of(model: str) -> ModelShape:
    """The shape of a known model or of a transformers folder, by its config alone."""
    if model in SHAPES:
        return SHAPES[model]
    folder = Path(model).expanduser()
    try:
        config = json_module.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
        dim = config.get("head_dim") or config["hidden_size"] // heads
        kv_heads = config.get("num_key_value_heads") or heads
    except (OSError, ValueError, KeyError) as error:
        known = ", ".join(SHAPES)
        raise ArgumentError(
            "model", f"must be {known} or a folder with a decoder's config.json", repr(model)
        ) from error
    types = config.get("layer_types") or ["full_attention"] * layers
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    size, width = 4 if name == "float32" else 2, config.get("hidden_size") or heads * dim
    copies = 1 if config.get("tie_word_embeddings") else 2
    return ModelShape(
        folder.name,
        types.count("full_attention"),
        heads,
        kv_heads,
        dim,
        dim,
        size,
        weights,
        width,
        min(weights, copies * config.get("vocab_size", 0) * width * size),
    )
