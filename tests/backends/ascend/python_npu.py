"""A device `npu` without an NPU, in Python: tensors over CPU memory that say they lie on `npu:0`.

torch names its free device once per process, so this runs in a process of its own:

    python -m tests.backends.ascend.python_npu

Every call goes through the public API, the operators, the dispatcher and the vendor route; the
vendor's operators are the stand-in of fused_operators.py. What no kernel of a real NPU would take,
a CPU tensor among those of the NPU, is refused.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils import backend_registration

# The operators' own code, by name: torch hands it to no one once it is registered.
IMPLEMENTED: dict[str, Any] = {}
_register = torch.library.impl


def _recorded(name: str, *given: Any, **options: Any) -> Any:
    def register(function: Any) -> Any:
        IMPLEMENTED[name] = function
        return _register(name, *given, **options)(function)

    return register


torch.library.impl = _recorded  # type: ignore[assignment]

import portattn  # noqa: E402
from portattn.backends import ascend  # noqa: E402
from portattn.backends.ascend import constraints  # noqa: E402
from tests.backends.ascend.fused_operators import FusedOperatorsV2  # noqa: E402

torch.library.impl = _register

DEVICE = torch.device("privateuseone:0")


class NpuTensor(Tensor):
    """A tensor on `npu:0` whose elements lie in a CPU tensor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> NpuTensor:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        """torch has none for tensors like these."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "portattn":
            declared = func._schema.arguments
            given = {a.name: a.default_value for a in declared if a.has_default_value()}
            given |= dict(zip((a.name for a in declared), args, strict=False)) | kwargs
            return IMPLEMENTED[func._schema.name](*(given[a.name] for a in declared))
        target = kwargs.get("device")
        moves = func is torch.ops.aten._to_copy.default or func is torch.ops.aten.copy_.default
        if not moves:
            _same_device(func, (args, kwargs))
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree.tree_map(_held, args), **tree.tree_map(_held, kwargs))
        if func is torch.ops.aten.copy_.default:
            return args[0]
        away = target is not None and torch.device(target).type != "npu"
        return found if away else tree.tree_map(_wrapped, found)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, NpuTensor) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, NpuTensor):
        return NpuTensor(value)
    return value


def _same_device(func: Any, values: Any) -> None:
    """Scalars of the CPU may meet tensors of any device, nothing else may."""
    for value in tree.tree_leaves(values):
        if isinstance(value, Tensor) and not isinstance(value, NpuTensor) and value.dim():
            raise RuntimeError(f"{func}: a tensor of the CPU among those of npu:0")


class Operators(FusedOperatorsV2):
    """The stand-in, taking and giving tensors of the device, and counting calls."""

    calls: list[str]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("npu_"):
            return found

        def on_device(*args: Any, **keywords: Any) -> Any:
            CALLS.append(name)
            _same_device(name, (args, keywords))
            result = found(*tree.tree_map(_held, args), **tree.tree_map(_held, keywords))
            return tree.tree_map(_wrapped, result)

        return on_device


CALLS: list[str] = []


def install() -> None:
    """Name the device, make tensors for it, and put the stand-in in torch-npu's place."""

    class Module(backend_registration._DummyBackendModule):  # type: ignore[misc,name-defined]
        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def device_count() -> int:
            return 1

        @staticmethod
        def current_device() -> int:
            return 0

        @staticmethod
        def get_device_name(index: int = 0) -> str:
            return "Ascend910B2"

        @staticmethod
        def get_device_properties(index: int = 0) -> Any:
            return SimpleNamespace(total_memory=64 * 2**30)

    backend_registration._setup_privateuseone_for_python_backend("npu", backend_module=Module())
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")

    def empty(size: Any, **options: Any) -> Tensor:
        return NpuTensor(torch.empty(size, dtype=options.get("dtype")))

    def empty_strided(size: Any, stride: Any, **options: Any) -> Tensor:
        return NpuTensor(torch.empty_strided(size, stride, dtype=options.get("dtype")))

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        _held(target).copy_(_held(source))
        return target

    library.impl("empty.memory_format", empty)
    library.impl("empty_strided", empty_strided)
    library.impl("_copy_from", copy_from)
    KEPT.append(library)
    operators = Operators()
    ascend._library = lambda: operators  # type: ignore[assignment]
    constraints.environment_reasons = lambda: ()  # type: ignore[assignment]


KEPT: list[Any] = []


def check(name: str, call: Any, *tensors: Tensor) -> dict[str, Any]:
    """The same call on the CPU and on the device: the differences, and the operators it took."""
    here = [t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
    there = [t.detach().to("npu").requires_grad_(t.is_floating_point()) for t in tensors]
    CALLS.clear()
    right, found = call(*here), call(*there)
    assert found.device == DEVICE, found.device
    worst = float((found.detach().cpu().double() - right.detach().double()).abs().max())
    facts: dict[str, Any] = {"name": name, "error": worst}
    if "cache" not in name:
        right.backward(torch.ones_like(right))
        found.backward(torch.ones_like(found))
        facts["gradient_error"] = max(
            float((there[i].grad.cpu().double() - here[i].grad.double()).abs().max())
            for i in range(3)
        )
    return {**facts, "calls": list(CALLS)}


def main() -> None:
    install()
    torch.manual_seed(0)
    q = torch.randn(2, 100, 8, 64, dtype=torch.float16)
    k, v = torch.randn(2, 2, 130, 2, 64, dtype=torch.float16)
    ends_q = torch.tensor([0, 40, 100], dtype=torch.int32)
    ends_k = torch.tensor([0, 70, 130], dtype=torch.int32)

    def varlen(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return portattn.attention_varlen(q, k, v, a, b, 60, 70, causal=True)

    def cache(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        held = portattn.ContiguousKVCache(2, 160, 2, 64, dtype=q.dtype, device=q.device)
        with torch.no_grad():
            return portattn.attention_with_kvcache(q, held, k, v, causal=True)

    for facts in (
        check("dense", lambda q, k, v: portattn.attention(q, k, v, causal=True), q, k, v),
        check("varlen", varlen, q[0], k[0], v[0], ends_q, ends_k),
        check("cache", cache, q[:, :1], k, v),
    ):
        print(json.dumps(facts), flush=True)
    try:
        portattn.attention(q.to("npu"), k.to("npu"), v)
    except Exception as error:
        print(json.dumps({"name": "mixed", "refused": str(error)}))


if __name__ == "__main__":
    main()
