"""The role of a backend, and the tensors that pass between dispatch and it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import AttentionProblem

Config = Mapping[str, int]


@dataclass(slots=True)
class AttentionTensors:
    """The tensors of one call, already validated.

    dense   q [B, Sq, H, D], k [B, Sk, Hkv, D], v [B, Sk, Hkv, Dv]
    varlen  q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv]; cu_seqlens_q, cu_seqlens_k [B + 1] int32.
            With block_table, k and v are pages and cu_seqlens_k still gives the key counts.
    cache   q [B, Sq, H, D]; k [Bc, S, Hkv, D], v [Bc, S, Hkv, Dv], or pages [P, page, Hkv, D(v)]
            with block_table [B, pages] int32. Sequence b uses keys leftpad_k[b] .. seqused_k[b] of
            row cache_batch_idx[b] (of row b where that is None); queries sit at the end.
    bias    float, 4-D, broadcastable to [B, H, Sq, Sk] (longest lengths where they differ), added
            to the scores; an entry of -inf masks its key.
    mask    bool, same shape rule, True takes part.
    alibi_slopes [H] or [B, H] float32; sinks [H]; rng_state [2] int64: Philox seed and offset.
    k_scale, v_scale [B, Hkv] float32, "cache" only: a key is what k holds times its sequence's and
            head's k_scale, a value likewise; both or neither.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    mask: Tensor | None = None
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    seqused_k: Tensor | None = None
    block_table: Tensor | None = None
    cache_batch_idx: Tensor | None = None
    leftpad_k: Tensor | None = None
    rng_state: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


class Gradients(NamedTuple):
    """dq, dk, dv in the inputs' dtypes; dbias and dsinks where they were asked for."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dbias: Tensor | None = None
    dsinks: Tensor | None = None


class Backend(Protocol):
    """One family of kernels. Its methods are only called for problems it gave no reasons against.

    forward and decode return out, in q's dtype and layout with head_dim_v columns, and lse:
    float32 (float64 for float64 inputs), natural logarithm, sinks included, [B, H, Sq] or, for
    varlen, [H, Tq].
    """

    name: str
    capability: Capability

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        """Why this problem can't run on this device; empty when it can."""
        ...

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        """What will run, in a few words: the kernel's name within the backend."""
        ...

    def probe(self, device: Device) -> None:
        """Run a tiny problem on the device; raise with the cause if it can't."""
        ...

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        """Attention over dense or varlen layouts: (out, lse)."""
        ...

    def backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        tensors: AttentionTensors,
        problem: AttentionProblem,
        config: Config,
    ) -> Gradients:
        """Gradients of (out, lse) given those results; problem.operation is "backward"."""
        ...

    def decode(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        """Attention of the newest queries over a KV cache: (out, lse)."""
        ...


Run = Callable[[AttentionTensors], tuple[Tensor, Tensor]]


class Plan(Protocol):
    """A call of forward or decode worked out for tensors of given shapes, dtypes and devices, with
    q, k and v of given strides. Autocast changes nothing about it."""

    def run(self, tensors: AttentionTensors) -> tuple[Tensor, Tensor]:
        """(out, lse)."""
        ...

    def heads_first(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """out, from the transposed tensors [B, H, S, D]; None where `run` must be called.

        Of the plan's shapes but for the number of keys and the strides of key and value, which may
        be any.
        """
        ...


@runtime_checkable
class HasPlans(Protocol):
    """A backend that works a call out once for all tensors of the same shapes."""

    def plan(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> Plan | None:
        """The plan for tensors like these, None where nothing is gained by one."""
        ...


@runtime_checkable
class HasStandIn(Protocol):
    """A backend that runs some problems by something slower than its own kernels.

    For such a problem the profile's order doesn't speak of it: it comes behind every other
    candidate but the reference.
    """

    def stands_in(self, problem: AttentionProblem, device: Device) -> str | None:
        """Why its own kernels don't run the problem and how to change that; None where they do."""
        ...


@runtime_checkable
class HasLibrary(Protocol):
    """A backend whose kernels lie in a library that is compiled on the user's machine."""

    def library_state(self) -> tuple[str, str]:
        """Which library runs or why none does, and what to do about it, "" for nothing."""
        ...

    def build_library(self) -> str:
        """Compile the library into the cache folder; its path. Raises BackendUnavailableError."""
        ...


@runtime_checkable
class HasSoftware(Protocol):
    """A backend whose devices need software beside portattn, drivers included."""

    def software(self) -> tuple[str, str]:
        """What of it is installed, and what to do about the rest, "" for nothing."""
        ...


@runtime_checkable
class HasTuningReasons(Protocol):
    """A backend that knows, before anything is compiled, which configurations a device can't take.

    `kernel` is "backend.operation", as in profiles.
    """

    def tuning_reasons_against(
        self, kernel: str, config: Config, problem: AttentionProblem, device: Device
    ) -> list[str]:
        """Why a legal configuration can't run the problem there, as the shared memory or the
        registers it would need against those there are; empty when it may."""
        ...


@runtime_checkable
class HasTuningSpace(Protocol):
    """A backend that narrows the product of its legal values to what is worth measuring."""

    def tuning_space(
        self, kernel: str, problem: AttentionProblem, device: Device
    ) -> Iterable[Config]:
        """Configurations of a kernel, each of legal values."""
        ...


def has_plans(backend: Backend) -> TypeGuard[HasPlans]:
    """Whether a backend plans its calls."""
    return _implements(type(backend), HasPlans)


def has_stand_in(backend: Backend) -> TypeGuard[HasStandIn]:
    """Whether a backend may run problems by a stand-in."""
    return _implements(type(backend), HasStandIn)


@cache
def _implements(kind: type, role: type) -> bool:
    # isinstance looks a protocol's methods up anew each time, which costs more than a decision.
    return issubclass(kind, role)
