"""transformers' tensor parallel with portattn's sums: load_sharded gives each rank its shard.

transformers shards the weights while it loads them, by the model's own plan (DTensor). Its rowwise
layers become portattn.parallel.tensor.linear. Where the heads don't divide by the ranks, each rank
takes as equal a share of the query heads as there is, with a copy of the key and value heads that
they read.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from portattn.errors import ArgumentError
from portattn.integrations.versions import require
from portattn.parallel import tensor

STYLE = "portattn_rowwise"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def load_sharded(source: str, ranks: int, **options: Any) -> Any:
    """AutoModelForCausalLM.from_pretrained(source, **options), sharded over `ranks` ranks.

    Collective: every rank of the default process group, which has `ranks`, calls it.

    Raises ArgumentError when the model has fewer query heads than ranks, no plan for tensor
    parallel, or heads that don't divide in a form that isn't known here; IntegrationError for a
    transformers without torch's DTensor styles.
    """
    require("transformers", (5, 20), (6,))
    transformers: Any = importlib.import_module("transformers")
    parallel: Any = importlib.import_module("transformers.distributed.tensor_parallel")
    distributed: Any = importlib.import_module("transformers.distributed")
    _register(parallel)
    config = transformers.AutoConfig.from_pretrained(source, local_files_only=True)
    rules = _rules(config, source, ranks)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        distributed_config=distributed.DistributedConfig(tp_size=ranks, tp_plan=rules),
        **options,
    )
    if any(style == "replicate" for style in rules.values()):
        world = torch.distributed.group.WORLD
        assert world is not None
        _divide_heads(model, world)
    return model


def _register(parallel: Any) -> None:
    if STYLE in parallel.ALL_PARALLEL_STYLES:
        return

    class Summed(parallel.RowwiseParallel):  # type: ignore[misc]
        """transformers' rowwise style; without gradients, a plain Linear's sum is portattn's."""

        def install_forward(self, module: nn.Module, mesh: Any) -> nn.Module:
            super().install_forward(module, mesh)
            usual = module.forward
            group = mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")

            def forward(x: Tensor) -> Tensor:
                plain = type(module) is nn.Linear and not isinstance(x, DTensor)
                if torch.is_grad_enabled() or not plain:
                    summed: Tensor = usual(x)
                    return summed
                return tensor.linear(x, _local(module.weight), group, _local(module.bias))

            module.forward = forward
            return module

    parallel.ALL_PARALLEL_STYLES.register(STYLE, Summed())


def _local(parameter: Any) -> Any:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _rules(config: Any, source: str, ranks: int) -> dict[str, str]:
    """What differs from the model's own plan: rule by rule, by the modules' names in it."""
    text = config.get_text_config(decoder=True)
    plan = getattr(text, "base_model_tp_plan", None)
    if not plan:
        raise ArgumentError("tp", f"must be 1: {source} has no plan for tensor parallel", ranks)
    heads = text.num_attention_heads
    if heads < ranks:
        raise ArgumentError("tp", f"must be at most {heads}, the model's query heads", ranks)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    even = heads % ranks == 0 and kv_heads % ranks == 0
    prefix = "model."
    rules = {}
    for name, style in plan.items():
        if not even and ".self_attn." in name:
            if name.rsplit(".", 1)[-1] not in _PROJECTIONS:
                raise ArgumentError(
                    "tp",
                    f"must divide {heads} and {kv_heads} heads: {name} can't be divided unevenly",
                    ranks,
                )
            rules[prefix + name] = "replicate"
        elif style == "rowwise":
            rules[prefix + name] = STYLE
    return rules


def heads_of(rank: int, ranks: int, heads: int) -> range:
    """The query heads of a rank: as equal shares as there are."""
    return range(heads * rank // ranks, heads * (rank + 1) // ranks)


def kv_heads_of(mine: range, group_size: int) -> list[int]:
    """The key head for each of a rank's, once for a run of queries where all runs are as long.

    Attention takes equal groups only: where a share cuts through groups, each query head gets a
    copy of its key head.
    """
    read = [head // group_size for head in mine]
    once = sorted(set(read))
    equal = len({read.count(head) for head in once}) == 1
    return once if equal else read


def _divide_heads(model: Any, group: ProcessGroup) -> None:
    rank, ranks = group.rank(), group.size()
    text = model.config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    group_size = heads // (getattr(text, "num_key_value_heads", None) or heads)
    mine = heads_of(rank, ranks, heads)
    read = kv_heads_of(mine, group_size)
    for module in model.modules():
        if not all(isinstance(getattr(module, name, None), nn.Linear) for name in _PROJECTIONS):
            continue
        dim = module.head_dim
        _keep(module.q_proj, 0, list(mine), dim)
        _keep(module.k_proj, 0, read, dim)
        _keep(module.v_proj, 0, read, dim)
        _keep(module.o_proj, 1, list(mine), dim)
        module.num_key_value_groups = len(mine) // len(read)
        module.o_proj.forward = _summing(module.o_proj, group)


def _keep(linear: nn.Linear, axis: int, heads: list[int], dim: int) -> None:
    """Leave a projection only the features of some heads, on axis 0 or 1 of its weight."""
    weight = _local(linear.weight).unflatten(axis, (-1, dim))
    index = torch.tensor(heads, device=weight.device)
    linear.weight = nn.Parameter(
        weight.index_select(axis, index).flatten(axis, axis + 1).contiguous(), requires_grad=False
    )
    if axis == 0 and linear.bias is not None:
        bias = _local(linear.bias).unflatten(0, (-1, dim))
        linear.bias = nn.Parameter(bias.index_select(0, index).flatten(), requires_grad=False)


def _summing(linear: nn.Linear, group: ProcessGroup) -> Any:
    def forward(x: Tensor) -> Tensor:
        return tensor.linear(x, linear.weight, group, linear.bias)

    return forward
