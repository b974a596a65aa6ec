"""AMD GPUs by AMD SMI's Python package `amdsmi`, which comes with ROCm.

Written against its documented interface (AMD SMI Python API reference, ROCm 5.7 to 7.1, which name some fields
differently) and tested with a stand-in for the package: no AMD GPU was at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emissions.meters.base import AbsentMeter
from emissions.meters.gpu import CountedGpu, UnreadableError, UnsupportedError

KERNEL_DRIVER = Path("/dev/kfd")
STATUS_NOT_SUPPORTED, STATUS_NOT_YET_IMPLEMENTED = 2, 3  # amdsmi_status_t of amdsmi.h
POWER_FIELDS = ("socket_power", "current_socket_power", "average_socket_power")  # the last for MI200 and older


class AmdGpu(CountedGpu):
    """One GPU, by its place in AMD SMI's list.

    A GPU that names no energy (some report the string "N/A", some a counter that stays 0) is metered by its power.
    Of an MI250's two dies the first reports both, and the second nothing.
    """

    vendor = "amdsmi"

    def __init__(self, index: int, handle: Any, close: Callable[[], None], idle_w: float | None = None) -> None:
        import amdsmi

        self._amdsmi: Any = amdsmi
        self._handle = handle
        self._close = close
        name = self._ask("amdsmi_get_gpu_asic_info").get("market_name", "AMD GPU")
        super().__init__(index, str(self._ask("amdsmi_get_gpu_device_uuid")), str(name), idle_w)

    def _ask_counter_j(self) -> float:
        count = self._ask("amdsmi_get_energy_count")
        ticks = _number(count, "energy_accumulator", "power")  # "power" before ROCm 6.2
        microjoules = ticks * _number(count, "counter_resolution")
        if microjoules == 0:
            raise UnsupportedError("the counter stays 0")
        return microjoules * 1e-6

    def _ask_power_w(self) -> float:
        return _number(self._ask("amdsmi_get_power_info"), *POWER_FIELDS)

    def _ask_utilisation_percent(self) -> float:
        return _number(self._ask("amdsmi_get_gpu_activity"), "gfx_activity")

    def _ask_memory_gb(self) -> float:
        return _number(self._ask("amdsmi_get_gpu_vram_usage"), "vram_used") * 2**20 / 1e9  # in MiB

    def _ask(self, name: str) -> Any:
        function = getattr(self._amdsmi, name, None)
        if function is None:
            raise UnsupportedError(f"this version of amdsmi has no {name}")
        try:
            return function(self._handle)
        except self._amdsmi.AmdSmiException as error:
            if getattr(error, "err_code", None) in (STATUS_NOT_SUPPORTED, STATUS_NOT_YET_IMPLEMENTED):
                raise UnsupportedError(str(error)) from error
            raise UnreadableError(str(error)) from error

    def close(self) -> None:
        self._close()


def _number(fields: Mapping[str, Any], *names: str) -> float:
    """The first of these fields that holds a number. Raises `UnsupportedError` without one."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, (int, float)) and value != 0xFFFFFFFF:  # UINT32_MAX: unsupported
            return float(value)
    raise UnsupportedError(f"no {' or '.join(names)}")


def open_gpus(idle_w: float | None = None) -> list[AmdGpu | AbsentMeter]:
    """All AMD GPUs of the machine; [] without the kernel driver.

    Never raises: GPUs that are there and cannot be read are `AbsentMeter`s that say so.
    """
    if not KERNEL_DRIVER.exists():
        return []
    try:
        import amdsmi
    except Exception as error:  # it loads a native library, which may fail in its own ways
        return [
            AbsentMeter(
                f"an AMD GPU is present and amdsmi cannot be imported ({type(error).__name__}: {error}); "
                "install amdsmi, which comes with ROCm, to meter it; its energy is unknown"
            )
        ]
    try:
        amdsmi.amdsmi_init()
        handles = amdsmi.amdsmi_get_processor_handles()
    except amdsmi.AmdSmiException as error:
        return [AbsentMeter(f"AMD SMI cannot read this machine's GPUs ({error}); their energy is unknown")]
    closing = _CloseOnce(len(handles), amdsmi)
    return [_open_gpu(index, handle, closing, idle_w) for index, handle in enumerate(handles)]


def _open_gpu(index: int, handle: Any, close: Callable[[], None], idle_w: float | None) -> AmdGpu | AbsentMeter:
    try:
        return AmdGpu(index, handle, close, idle_w)
    except UnreadableError as error:
        close()
        return AbsentMeter(f"AMD GPU {index} cannot be read ({error}); its energy is unknown")


class _CloseOnce:
    """Shuts AMD SMI down when the last of its GPUs is closed."""

    def __init__(self, gpus: int, amdsmi: Any) -> None:
        self._open = gpus
        self._amdsmi = amdsmi

    def __call__(self) -> None:
        self._open -= 1
        if self._open == 0:
            with contextlib.suppress(self._amdsmi.AmdSmiException):  # a driver that is gone has nothing to release
                self._amdsmi.amdsmi_shut_down()
