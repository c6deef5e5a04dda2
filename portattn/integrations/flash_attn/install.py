"""install(): `import flash_attn` resolves here, where flash-attn isn't installed, until undone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType

from portattn.errors import IntegrationError

_HERE = "portattn.integrations.flash_attn"
_FUNCTIONS = (
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
)
_PADDING = ("index_first_axis", "index_put_first_axis", "pad_input", "unpad_input")
# Module of flash-attn: the module here that has its names, and those names.
_MODULES: dict[str, tuple[str, Iterable[str]]] = {
    "flash_attn": (_HERE, _FUNCTIONS),
    "flash_attn.flash_attn_interface": (_HERE, _FUNCTIONS),
    "flash_attn.bert_padding": (f"{_HERE}.bert_padding", _PADDING),
    "flash_attn.layers": (_HERE, ()),
    "flash_attn.layers.rotary": (f"{_HERE}.rotary", ("apply_rotary_emb",)),
}
# The release whose signatures these are; the local part says whose code it is.
_VERSION = "2.8.0+portattn"
_LOCK = threading.Lock()


class Installation:
    """What `install` added to sys.modules; `undo()` or leaving a with block takes it out again."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self._modules = modules
        self._before = {name: sys.modules[name] for name in modules if name in sys.modules}

    def undo(self) -> None:
        """Leave sys.modules as it was before `install`; a second call does nothing.

        A name that something else has taken since stays with it.
        """
        with _LOCK:
            for name, module in self._modules.items():
                if sys.modules.get(name) is not module:
                    continue
                if name in self._before:
                    sys.modules[name] = self._before[name]
                else:
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
    """Make `import flash_attn` give portattn's functions; returns the handle that undoes it.

    Installing again returns the same handle. Package metadata isn't touched: a library that asks
    which distributions are installed, as transformers does before it offers
    attn_implementation="flash_attention_2", is told that flash-attn isn't.

    Raises IntegrationError when a real flash-attn is installed, or any other flash_attn imported.
    """
    with _LOCK:
        present = sys.modules.get("flash_attn")
        live = getattr(present, "_portattn_installation", None)
        if isinstance(live, Installation):
            return live
        if present is not None or importlib.util.find_spec("flash_attn") is not None:
            raise IntegrationError("flash-attn is installed; portattn doesn't replace it")
        modules = {name: _module(name, *source) for name, source in _MODULES.items()}
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(modules[parent], child, module)
        installation = Installation(modules)
        vars(modules["flash_attn"]).update(
            __version__=_VERSION, _portattn_installation=installation
        )
        sys.modules.update(modules)
        return installation


def _module(name: str, source: str, names: Iterable[str]) -> ModuleType:
    module = ModuleType(name, f"{name}, provided by portattn")
    is_package = any(other.startswith(f"{name}.") for other in _MODULES)
    module.__spec__ = ModuleSpec(name, None, is_package=is_package)
    if is_package:
        module.__path__ = []
        module.__package__ = name
    owner = importlib.import_module(source)
    vars(module).update({public: getattr(owner, public) for public in names})
    return module
