"""What the vendor's fused operators take, in words, and which of the packages they need are there.

Sources: the operators' pages in Ascend/op-plugin's documentation, for torch-npu 2.13; where a page
and its users disagree the narrower reading is taken.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata

import torch

from portattn.backends.common.library import missing
from portattn.dispatch.problem import AttentionProblem

PACKAGE = "torch-npu"
OLDEST = (2, 6)
_MAX_HEADS = 256
_MAX_GROUP_INFER = 64
_MAX_LENGTH = 2**20
_MAX_SEQUENCES = 2048  # of packed tensors
_MAX_BATCH_INFER = 65536
_MAX_DIM_INFER = 512
_DIM_MULTIPLE_INFER = 16
_PAGE_MULTIPLE, _MAX_PAGE = 128, 512


def reasons_against(problem: AttentionProblem) -> list[str]:
    """The operators' limits that a problem exceeds; empty when a call of one is valid."""
    reasons = []
    if problem.heads > _MAX_HEADS:
        reasons.append(f"its operators take up to {_MAX_HEADS} heads, not {problem.heads}")
    longest = max(problem.seqlen_q, problem.seqlen_k)
    if longest > _MAX_LENGTH:
        reasons.append(f"its operators take up to {_MAX_LENGTH} rows or keys, not {longest}")
    if problem.head_dim_v > problem.head_dim:
        reasons.append("values can't be wider than keys")
    return reasons + (_infer if problem.operation == "decode" else _training)(problem)


def _training(problem: AttentionProblem) -> list[str]:
    """npu_fusion_attention and its gradient."""
    reasons = []
    if problem.layout == "varlen" and problem.batch > _MAX_SEQUENCES:
        reasons.append(
            f"npu_fusion_attention takes up to {_MAX_SEQUENCES} packed sequences, "
            f"not {problem.batch}"
        )
    if problem.page_size:
        reasons.append("npu_fusion_attention doesn't read pages")
    if problem.sinks and problem.operation == "forward":
        # Its sink argument is younger than the CANN that many devices run.
        reasons.append("npu_fusion_attention is called without sinks: CANN may not know them")
    return reasons


def _infer(problem: AttentionProblem) -> list[str]:
    """npu_fused_infer_attention_score."""
    reasons = []
    if problem.heads // max(problem.kv_heads, 1) > _MAX_GROUP_INFER:
        reasons.append(
            f"npu_fused_infer_attention_score takes up to {_MAX_GROUP_INFER} heads per kv head"
        )
    if problem.batch > _MAX_BATCH_INFER:
        reasons.append(f"npu_fused_infer_attention_score takes a batch up to {_MAX_BATCH_INFER}")
    if problem.head_dim != problem.head_dim_v:
        reasons.append("npu_fused_infer_attention_score takes keys and values of one width")
    if problem.head_dim % _DIM_MULTIPLE_INFER or problem.head_dim > _MAX_DIM_INFER:
        reasons.append(
            f"npu_fused_infer_attention_score takes head dims that are multiples of "
            f"{_DIM_MULTIPLE_INFER} up to {_MAX_DIM_INFER}, not {problem.head_dim}"
        )
    page = problem.page_size
    if page % _PAGE_MULTIPLE or page > _MAX_PAGE:
        reasons.append(
            f"npu_fused_infer_attention_score takes pages of {_PAGE_MULTIPLE} to {_MAX_PAGE} keys "
            f"in steps of {_PAGE_MULTIPLE}, not {page}"
        )
    if problem.sinks:
        reasons.append("npu_fused_infer_attention_score is called without sinks")
    if problem.seqlen_q == 1 and "window" in problem.features:
        reasons.append("npu_fused_infer_attention_score ignores windows for a single query")
    return reasons


@cache
def environment_reasons() -> tuple[str, ...]:
    """Why torch-npu can't be used in this environment, and what to do about it."""
    cause = missing(PACKAGE, OLDEST)
    if cause is not None:
        return (f"{cause}=={_minor(torch.__version__)}.*, for a machine with CANN",)
    mine, torchs = _minor(metadata.version(PACKAGE)), _minor(torch.__version__)
    if mine != torchs:
        return (f"torch-npu {mine} needs torch {mine}, {torchs} is installed",)
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError) as error:
        return (
            f"torch-npu can't be imported ({error}): is CANN installed, and was its set_env.sh "
            "sourced?",
        )
    return ()


@cache
def triton_reasons() -> tuple[str, ...]:
    """Why Triton can't compile for an NPU in this environment.

    triton and triton-ascend install files of the same names: the one that came last breaks the
    other, and uninstalling one takes files of both.
    """
    mine, upstream = (_installed(name) for name in ("triton-ascend", "triton"))
    if mine and upstream:
        return (
            "triton and triton-ascend are both installed and overwrite each other: uninstall both, "
            "then install triton-ascend alone",
        )
    if not mine:
        return ("triton-ascend is not installed: pip install triton-ascend, without triton",)
    return ()


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _minor(version: str) -> str:
    """2.13.0+cpu as 2.13."""
    return ".".join(version.split(".")[:2])
