"""What `portattn doctor` says of an NPU's software, from the files that the vendor's installers
leave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from portattn.backends.ascend import constraints, installation


@pytest.fixture(autouse=True)
def _fresh() -> None:
    constraints.triton_reasons.cache_clear()


def _packages(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    known = {name.replace("_", "-"): version for name, version in versions.items()}

    def version(name: str) -> str:
        if name not in known:
            raise installation.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(installation.metadata, "version", version)


def test_nothing_installed_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _packages(monkeypatch)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    found, advice = installation.software(tmp_path / "driver", tmp_path)
    assert found == "driver not found, CANN not found, torch-npu not found, triton-ascend not found"
    assert "CANN 8.5.0 or newer for torch 2.9" in advice and "torch-npu==2.9.*" in advice
    assert "driver and firmware" in advice and "triton-ascend is not installed" in advice


def test_a_complete_installation_leaves_no_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    _packages(monkeypatch, torch_npu="2.13.0", triton_ascend="3.2.0")
    driver = tmp_path / "version.info"
    driver.write_text("Version=25.2.0\nascendhal_version=7.35.23\n")
    (tmp_path / "x86_64-linux").mkdir()
    info = tmp_path / "x86_64-linux" / "ascend_toolkit_install.info"
    info.write_text("package_name=Ascend-cann-toolkit\nversion=9.0.0\n")
    found, advice = installation.software(driver, tmp_path)
    assert found == "driver 25.2.0, CANN 9.0.0, torch-npu 2.13.0, triton-ascend 3.2.0"
    assert advice == ""


def test_both_tritons_and_a_torch_npu_of_another_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    _packages(monkeypatch, torch_npu="2.9.0", triton_ascend="3.2.0", triton="3.6.0")
    found, advice = installation.software(tmp_path / "none", tmp_path)
    assert found.endswith("triton besides")
    assert "torch-npu==2.13.*" in advice
    assert "the CANN that torch-npu's version table names" in advice
    assert "overwrite each other: uninstall both" in advice
