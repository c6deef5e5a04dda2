"""The build step: compiles the CPU kernels into the wheel, or leaves it pure without a compiler."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CpuKernels(BuildHookInterface[Any]):
    """Adds the library to a wheel; an editable install gets it beside its sources."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; `version` is "standard" or "editable"."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "portattn" / "backends" / "cpu"
        builder = _load(folder / "build.py")
        if version == "editable":
            target = folder.resolve()
        else:
            self._made = tempfile.TemporaryDirectory(prefix="portattn-build-")
            target = Path(self._made.name)
        try:
            builder.build(target)
        except builder.BuildError as error:
            self.app.display_warning(f"no compiled CPU kernels in this build: {error}")
            return
        if version == "editable":
            return
        for name in (builder.LIBRARY, builder.RECORD):
            build_data["force_include"][str(target / name)] = f"portattn/backends/cpu/{name}"
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{system}"


def _load(file: Path) -> ModuleType:
    """The builder alone: importing its package would need torch."""
    spec = importlib.util.spec_from_file_location("portattn_cpu_build", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
