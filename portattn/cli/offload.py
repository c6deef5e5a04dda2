"""`portattn generate --offload`: the cache that is used, its progress, and what it did."""

from __future__ import annotations

from typing import Any

import typer
from rich.progress import Progress

import portattn
from portattn.cli.plan import tokens
from portattn.offload import machine as machines
from portattn.offload import planner
from portattn.offload.planner import ModelShape, Plan

# Rows of a prompt that go through the model at once.
_CHUNK = 2048


class Offload:
    """A generation with keys and values in host memory.

    Raises a usage error, before anything runs, when `context` tokens have no room.
    """

    def __init__(
        self, network: Any, policy: str, context: str | None, kv_dtype: str | None, show: bool
    ) -> None:
        self._network, self._show, self._kv_dtype = network, show, kv_dtype
        self._bar: Progress | None = None
        self.cache = portattn.HostOffloadCache(
            network.config, policy=policy, kv_dtype=kv_dtype, progress=self._advance
        )
        if context is not None:
            self._check(self._plan(tokens(context)))

    def _plan(self, context: int) -> Plan:
        config = self._network.config.get_text_config(decoder=True)
        heads = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        shape = ModelShape(
            type(self._network).__name__,
            len(self.cache.host_layers),
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            dim,
            dim,
            self._network.dtype.itemsize,
            # On a CPU they are no longer part of what is free.
            0 if self._network.device.type == "cpu" else self._network.get_memory_footprint(),
        )
        here = machines.here(self._network.device)
        return planner.plan(shape, here, context, kv_dtype=self._kv_dtype)

    def _check(self, plan: Plan) -> None:
        if plan.seconds is None:
            raise typer.BadParameter(plan.explain(), param_hint="--context")
        if self._show:
            typer.echo(plan.explain() + "\n", err=True)

    def generate(self, inputs: Any, options: dict[str, Any]) -> None:
        """Answer; a long prompt goes through in chunks, under a progress bar."""
        length = inputs["input_ids"].shape[1]
        if length > _CHUNK:
            options = {**options, "prefill_chunk_size": _CHUNK}
            if self._show:
                self._bar = Progress()
                self._task = self._bar.add_task("reading the prompt", total=length)
                self._bar.start()
        try:
            self._network.generate(**inputs, **options, past_key_values=self.cache)
        finally:
            if self._bar is not None:
                self._bar.stop()

    def _advance(self, length: int) -> None:
        if self._bar is None:
            return
        self._bar.update(self._task, completed=length)
        if self._bar.finished:
            self._bar.stop()
            self._bar = None

    def facts(self) -> dict[str, object]:
        """What lies where, and what the engines did."""
        prefix, host, tail = self.cache.store.parts(0)
        used, taken = self.cache.store.pages
        return {
            "tokens": {"device": prefix + tail, "host": host},
            "pages": {"used": used, "taken": taken},
            "unpinned": self.cache.store.unpinned,
            "rounding_error": self.cache.store.rounding_error,
            **self.cache.engine.metrics.as_dict(),
        }
