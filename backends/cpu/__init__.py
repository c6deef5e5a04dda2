"""Attention on a CPU: every feature, by a library in C where it is built, else by torch."""

from __future__ import annotations

import torch
from torch import Tensor

from portattn.backends.cpu import build, library, torch_tiles
from portattn.backends.cpu.compiled_prefill import (
    prefill_backward,
    prefill_forward,
    reasons_against_prefill,
)
from portattn.backends.cpu.decode_call import decode, reasons_against_decode
from portattn.backends.cpu.decode_plan import DecodePlan, plan_decode
from portattn.dispatch.backend import AttentionTensors, Config, Gradients
from portattn.dispatch.capability import Capability
from portattn.dispatch.device import Device
from portattn.dispatch.problem import FEATURES, AttentionProblem
from portattn.errors import BackendUnavailableError

_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_SIZES = tuple(2**n for n in range(4, 13))


class CpuBackend:
    """Compiled kernels with float32 sums; torch operations for float64 and without the library."""

    name = "cpu"
    capability = Capability(
        devices=frozenset({"cpu"}),
        dtypes=_FLOATS,
        kv_dtypes=_FLOATS | {torch.int8, torch.float8_e4m3fn},
        operations={
            "forward": frozenset({"dense", "varlen"}),
            "backward": frozenset({"dense", "varlen"}),
            "decode": frozenset({"cache"}),
        },
        features=frozenset(FEATURES),
        max_head_dim=65536,
        kernels={
            "forward": {"block_m": _SIZES, "block_n": _SIZES},
            "backward": {"block_m": _SIZES, "block_n": _SIZES},
            "decode": {"block_n": _SIZES},
        },
        promises=frozenset({"repeatable", "poison"}),
    )

    def reasons_against(self, problem: AttentionProblem, device: Device) -> list[str]:
        reasons = self.capability.reasons_against(problem, device)
        if problem.operation == "backward" and problem.page_size:
            reasons.append("paged keys have no gradient")
        return reasons

    def describe(self, problem: AttentionProblem, device: Device) -> str:
        missing = self.stands_in(problem, device)
        if missing is not None:
            return f"tiled torch operations: {missing}"
        compiled = library.load()
        assert compiled is not None
        kernel = "decode kernel" if _is_decode(problem) else "tiles"
        return f"compiled {kernel}, {library.variant(compiled)}"

    def stands_in(self, problem: AttentionProblem, device: Device) -> str | None:
        """Why torch operations run in place of the compiled kernels; None where those run."""
        if library.load() is None:
            reason = library.state().reason
            return f"no compiled library: {reason}; {library.HOW_TO_BUILD}"
        if _is_decode(problem):
            return None
        return "; ".join(reasons_against_prefill(problem)) or None

    def library_state(self) -> tuple[str, str]:
        compiled = library.load()
        if compiled is None:
            return f"none: {library.state().reason}", library.HOW_TO_BUILD
        others = ", ".join(library.usable_variants(compiled))
        return f"{library.state().path}, {library.variant(compiled)} of {others}", ""

    def build_library(self) -> str:
        try:
            path = build.build(library.cache_folder())
        except (build.BuildError, OSError) as error:
            raise BackendUnavailableError(self.name, str(error)) from error
        library.forget()
        return str(path)

    def probe(self, device: Device) -> None:
        """One query over two equal keys must give the mean of their values, by either path."""
        v = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)
        tensors = AttentionTensors(torch.ones(1, 1, 1, 2), torch.ones_like(v), v)
        problem = AttentionProblem("forward", "dense", v.dtype, 1, 1, 2, 1, 1, 2, 2, 1.0)
        for run in (self.forward, torch_tiles.forward):
            out, _ = run(tensors, problem, {})
            if out.flatten().tolist() != [2.0, 3.0]:
                raise ArithmeticError(
                    f"the mean of two values came out as {out.flatten().tolist()}"
                )

    def forward(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> tuple[Tensor, Tensor]:
        compiled = library.load()
        if compiled is not None:
            if _is_decode(problem):
                block_n = config.get("block_n", 0)
                return decode(compiled, tensors, problem, block_n, _threads(problem))
            if not reasons_against_prefill(problem):
                return prefill_forward(compiled, tensors, problem, config, _threads(problem))
        return torch_tiles.forward(tensors, problem, config)

    decode = forward

    def plan(
        self, tensors: AttentionTensors, problem: AttentionProblem, config: Config
    ) -> DecodePlan | None:
        """The decode kernel's call; a call of the tiles takes too long to gain from one."""
        if library.load() is None or not _is_decode(problem):
            return None
        work = _work(problem) / max(1, problem.seqlen_k)
        threads = library.cores(), _WORTH_A_THREAD[True] / max(1.0, work)

        def unplanned(tensors: AttentionTensors) -> tuple[Tensor, Tensor]:
            return self.forward(tensors, problem, config)

        return plan_decode(tensors, problem, config.get("block_n", 0), threads, unplanned)

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
        compiled = library.load()
        given = (grad_out, grad_lse, out, lse, tensors, problem)
        if compiled is not None and not reasons_against_prefill(problem):
            grads = prefill_backward(compiled, *given, _threads(problem))
            if grads is not None:
                return grads
        return torch_tiles.backward(*given, config)


# Multiply-adds worth another thread, about 0.1 ms each: torch's own threads still spin on their
# cores after an operator, and one of ours that waits for a core holds all of them up.
_WORTH_A_THREAD = {True: 2e6, False: 8e6}


def _threads(problem: AttentionProblem) -> int:
    """How many threads share a problem, the caller's included; results don't depend on it."""
    enough = int(_work(problem) / _WORTH_A_THREAD[_is_decode(problem)])
    return max(1, min(library.threads(), enough))


def _work(problem: AttentionProblem) -> float:
    """Multiply-adds."""
    dims = problem.head_dim + problem.head_dim_v
    queries = problem.rows * problem.heads
    return queries * problem.seqlen_k * dims * (0.5 if problem.causal else 1.0)


def _is_decode(problem: AttentionProblem) -> bool:
    """Whether the kernel for few queries runs: it splits the keys of one head over threads."""
    return problem.operation != "backward" and not reasons_against_decode(problem)
