"""install(): `import flash_attn` resolves here, where flash-attn isn't installed, until undone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType

from portattn.errors import IntegrationError

_HERE = "portattn.integrations.flash_attn"
# Module of flash-attn: the module here whose public names it gets.
_MODULES = {
    "flash_attn": _HERE,
    "flash_attn.flash_attn_interface": _HERE,
    "flash_attn.bert_padding": f"{_HERE}.bert_padding",
    "flash_attn.layers": None,
    "flash_attn.layers.rotary": f"{_HERE}.rotary",
}
# The release whose signatures these are; the local part says whose code it is.
_VERSION = "2.8.0+portattn"


class Installation:
    """What `install` added to sys.modules; `undo()` or leaving a with block removes it."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self._modules = modules

    def undo(self) -> None:
        """Remove the modules that are still the installed ones; a second call does nothing."""
        for name, module in self._modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


def install() -> Installation:
    """Make `import flash_attn` give portattn's functions; returns a handle that can undo it.

    Raises IntegrationError when a real flash-attn is installed. Installing twice is one
    installation. Package metadata isn't touched: a library that asks which distribution is
    installed is told that flash-attn isn't.
    """
    present = sys.modules.get("flash_attn")
    if present is not None and getattr(present, "__version__", "") == _VERSION:
        return Installation({name: sys.modules[name] for name in _MODULES if name in sys.modules})
    if present is not None or importlib.util.find_spec("flash_attn") is not None:
        raise IntegrationError("flash-attn is installed; portattn doesn't replace it")
    modules = {name: _module(name, source) for name, source in _MODULES.items()}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    return Installation(modules)


def _module(name: str, source: str | None) -> ModuleType:
    module = ModuleType(name, f"{name}, provided by portattn")
    is_package = any(other.startswith(f"{name}.") for other in _MODULES)
    module.__spec__ = ModuleSpec(name, None, is_package=is_package)
    if is_package:
        module.__path__ = []
    if source is not None:
        functions = vars(importlib.import_module(source))
        public = [n for n, f in functions.items() if callable(f) and _is_ours(f) and n[0] != "_"]
        vars(module).update({n: functions[n] for n in public})
    if name == "flash_attn":
        vars(module)["__version__"] = _VERSION
    return module


def _is_ours(function: object) -> bool:
    owner = getattr(function, "__module__", "")
    return owner.startswith(_HERE) and not owner.endswith(".install")
