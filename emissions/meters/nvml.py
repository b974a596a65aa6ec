"""NVIDIA GPUs by NVML. The energy counter comes with Volta; older GPUs offer sampled power alone."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emissions.meters.base import AbsentMeter
from emissions.meters.gpu import CountedGpu, LostError, UnreadableError, UnsupportedError

LIBRARY = "libnvidia-ml.so.1"
KERNEL_DRIVER = Path("/dev/nvidiactl")
# What leaves GPUs to a process; the first that is set is the one to heed. HIP, for AMD GPUs, heeds CUDA's too.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class NvmlGpu(CountedGpu):
    """One GPU, by the index that NVML gives it (the order of the PCI bus)."""

    vendor = "nvml"

    def __init__(self, index: int, idle_w: float | None = None) -> None:
        """Raises NVMLError where the GPU cannot be opened."""
        import pynvml

        self._nvml: Any = pynvml
        self._nvml.nvmlInit()  # NVML counts these; each GPU's close() undoes one
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = pynvml.nvmlDeviceGetUUID(self._handle), pynvml.nvmlDeviceGetName(self._handle)
            super().__init__(index, _text(uuid), _text(name), idle_w)
        except pynvml.NVMLError:
            self.close()
            raise
        if self._is_sliced():
            self._warn(
                "is in MIG mode: the energy of one MIG slice cannot be told from the whole GPU's, which is counted"
            )

    def _is_sliced(self) -> bool:
        try:
            current, _ = self._nvml.nvmlDeviceGetMigMode(self._handle)
        except self._nvml.NVMLError:  # GPUs before Ampere know no MIG
            return False
        return bool(current == self._nvml.NVML_DEVICE_MIG_ENABLE)

    def _ask_counter_j(self) -> float:
        with self._errors():
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000

    def _ask_power_w(self) -> float:
        with self._errors():
            return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000

    def _ask_utilisation_percent(self) -> float:
        with self._errors():
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)

    def _ask_memory_gb(self) -> float:
        with self._errors():
            return float(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used) / 1e9

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        nvml = self._nvml
        try:
            yield
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_Uninitialized) as error:
            raise LostError(str(error)) from error
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound) as error:
            raise UnsupportedError(str(error)) from error
        except nvml.NVMLError as error:
            raise UnreadableError(str(error)) from error

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):  # a driver that is gone has nothing to release
            self._nvml.nvmlShutdown()


def open_gpus(idle_w: float | None = None) -> list[NvmlGpu | AbsentMeter]:
    """All NVIDIA GPUs of the machine, whatever CUDA_VISIBLE_DEVICES says; [] without a driver.

    Never raises: GPUs that are there and cannot be read are `AbsentMeter`s that say so.
    """
    if not _library_is_installed():
        if not KERNEL_DRIVER.exists():
            return []
        return [
            AbsentMeter(
                f"an NVIDIA driver is there and {LIBRARY} is not (in a container: NVIDIA_DRIVER_CAPABILITIES=utility); "
                "the GPUs' energy is unknown"
            )
        ]
    try:
        import pynvml  # here: 20 ms that a machine without GPU need not spend
    except ImportError as error:
        return [AbsentMeter(f"GPUs are not metered ({error}); install nvidia-ml-py. Their energy is unknown")]

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        return [AbsentMeter(f"NVML cannot read this machine's GPUs ({error}); their energy is unknown")]
    try:
        return [_open_gpu(index, idle_w) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [AbsentMeter(f"NVML cannot list this machine's GPUs ({error}); their energy is unknown")]
    finally:
        pynvml.nvmlShutdown()


def _library_is_installed() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def _open_gpu(index: int, idle_w: float | None) -> NvmlGpu | AbsentMeter:
    import pynvml

    try:
        return NvmlGpu(index, idle_w)
    except pynvml.NVMLError as error:
        return AbsentMeter(f"GPU {index} cannot be read ({error}); its energy is unknown")


def visible_gpus(visible: str | None, gpus: Sequence[tuple[int, str]]) -> tuple[list[str], list[str]]:
    """UUIDs of the GPUs that a value of CUDA_VISIBLE_DEVICES leaves to a process, and warnings.

    Entries are indices or beginnings of UUIDs; as in CUDA, the first invalid entry ends the list. Indices are taken
    as NVML's, that is with CUDA_DEVICE_ORDER=PCI_BUS_ID; CUDA's own order differs where GPUs of several models are
    mixed.

    Args:
        visible: the value; None, where the variable is not set, means all.
        gpus: index and UUID of every GPU of the machine.
    """
    if visible is None:
        return [uuid for _, uuid in gpus], []
    uuids: list[str] = []
    warnings: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("MIG-"):
            warnings.append(f"{entry}: the energy of a MIG slice cannot be told from its GPU's and is not counted")
            continue
        matches = [
            uuid for index, uuid in gpus if (int(entry) == index if entry.isdecimal() else uuid.startswith(entry))
        ]
        if not entry or len(matches) != 1:
            break
        uuids += matches
    return list(dict.fromkeys(uuids)), warnings


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
