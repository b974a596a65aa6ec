"""Fixtures of the metering tests: stand-in hardware, and no trace of the real one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from emissions.meters import amd, nvml, rapl
from tests.standins.hardware import RaplTree, build_nvml


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiled NVML stand-in and an `nvidia-smi`."""
    folder = tmp_path_factory.mktemp("nvml")
    build_nvml(folder)
    return folder


@pytest.fixture
def gpus(nvml_folder: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two GPUs of 250 and 260 W in this process; `gpus.setenv("FAKE_NVML_...")` changes them."""
    monkeypatch.setattr(nvml, "_library_is_installed", lambda: True)
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(nvml_folder / "libnvidia-ml.so.1")))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("FAKE_NVML_WATTS", "250,260")
    return monkeypatch


@pytest.fixture
def advanced_on_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[RaplTree], RaplTree]:
    """Bring a tree to the present before each of our readings, however late its own thread is on a busy
    machine."""
    read = rapl._read_uj

    def connect(tree: RaplTree) -> RaplTree:
        def advance_and_read(path: Path) -> int:
            tree.advance()
            return read(path)

        monkeypatch.setattr(rapl, "_read_uj", advance_and_read)
        return tree

    return connect


@pytest.fixture
def no_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPU and without RAPL, whatever this one has, in this process and (RAPL) in its children."""
    monkeypatch.setattr(rapl, "POWERCAP_FOLDER", tmp_path / "no-powercap")
    monkeypatch.setenv("FOOTPRINT_POWERCAP", str(tmp_path / "no-powercap"))
    monkeypatch.setattr(amd, "KERNEL_DRIVER", tmp_path / "no-kfd")
    monkeypatch.setattr(nvml, "_library_is_installed", lambda: False)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", _no_library)


def _no_library(name: str) -> ctypes.CDLL:
    raise OSError(f"{name}: cannot open shared object file")
