"""NVIDIA GPUs by NVML: the energy counter of each, with sampled power integrated beside it.

The counter (Volta and newer) is the figure: it misses nothing between readings. The integral is the check,
and the figure where there is no counter. Some GPUs measure power only part of the time (A100, H100: 25 ms of
each 100 ms; Yang et al., "Part-time Power Measurements", arXiv 2312.02741), so the two may honestly differ;
both are kept and a difference is named.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import pynvml

from emissions.meters.base import AbsentMeter, Meter

COUNTER_METHOD = "nvml:energy-counter"
INTEGRAL_METHOD = "nvml:power-integral"

# Our choice: NVIDIA states +-5 % of the power reading for Fermi and Kepler (NVML reference,
# nvmlDeviceGetPowerUsage) and nothing for newer GPUs or for the energy counter.
RELATIVE_ERROR = 0.05
# Counters advance every 20 to 100 ms; a window's two edges each miss or gain up to one step.
COUNTER_UPDATE_S = 0.1
DIVERGENCE = 0.05
DIVERGENCE_EDGE_S = 0.2


class _Gpu:
    """One device: joules by its counter, by its sampled power, and the best of both."""

    def __init__(self, handle: Any, index: int) -> None:
        self.handle = handle
        self.index = index
        self.uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
        self.name = _text(pynvml.nvmlDeviceGetName(handle))
        self.warnings: list[str] = []
        self.lost = False
        self.has_counter = True
        self.has_power = True
        self.start()

    def start(self) -> None:
        self.integral_j = 0.0
        self.counter_j = 0.0
        self._integral_at_counter_j = 0.0  # the integral when the counter was last read
        self._power: tuple[float, float] | None = None
        self._counter_mj: int | None = None
        self.read()

    @property
    def energy_j(self) -> float:
        """Counter joules, plus the integral over the time since the counter could last be read."""
        return self.counter_j + self.integral_j - self._integral_at_counter_j if self.has_counter else self.integral_j

    def read(self) -> None:
        if self.lost:
            return
        self._read_power()
        self._read_counter()

    def _read_power(self) -> None:
        try:
            power_w = pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1000
        except pynvml.NVMLError as error:
            self._failed("power", error)
            return
        now_s = time.monotonic()
        if self._power is not None:
            self.integral_j += (now_s - self._power[0]) * (power_w + self._power[1]) / 2
        self._power = (now_s, power_w)

    def _read_counter(self) -> None:
        if not self.has_counter or self.lost:
            return
        try:
            now_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)
        except pynvml.NVMLError as error:
            self._failed("energy counter", error)
            return
        if self._counter_mj is not None and now_mj >= self._counter_mj:
            self.counter_j += (now_mj - self._counter_mj) / 1000
        else:
            self.counter_j += self.integral_j - self._integral_at_counter_j
            if self._counter_mj is not None:
                self._warn("energy counter went backwards; sampled power was used for that interval")
        self._counter_mj = now_mj
        self._integral_at_counter_j = self.integral_j

    def _failed(self, what: str, error: pynvml.NVMLError) -> None:
        unsupported = isinstance(error, (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound))
        if isinstance(error, (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_Uninitialized)):
            self.lost = True
            self._warn("disappeared while it was metered; its energy ends at the last reading")
        elif unsupported and what == "power":
            self.has_power = False
        elif unsupported and self._counter_mj is None:
            self.has_counter = False
        else:
            self._warn(f"{what} could not be read at times ({error})")

    def check_divergence(self, elapsed_s: float) -> None:
        """Name a difference of counter and integral of more than 5 % and more than 0.2 s of the GPU's mean
        power."""
        if not (self.has_counter and self.has_power) or elapsed_s <= 0:
            return
        gap_j = abs(self.counter_j - self.integral_j)
        larger_j = max(self.counter_j, self.integral_j)
        if gap_j > DIVERGENCE * larger_j and gap_j > DIVERGENCE_EDGE_S * larger_j / elapsed_s:
            self._warn(f"energy counter {self.counter_j:.1f} J and integrated power {self.integral_j:.1f} J disagree")

    def _warn(self, text: str) -> None:
        text = f"GPU {self.index} ({self.uuid}) {text}"
        if text not in self.warnings:
            self.warnings.append(text)


class NvmlMeter:
    """The sum over the GPUs that CUDA_VISIBLE_DEVICES leaves to this job (all, where it is not set).

    Energy is that of whole devices: what another process does on the same GPU is counted too. The interval is
    +-5 % and one counter step at each edge of the window at mean power.
    """

    longest_gap_s = float("inf")

    def __init__(self, indices: list[int], warnings: list[str] | None = None) -> None:
        self._warnings = list(warnings or [])
        self.gpus = [_Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), index) for index in indices]
        self.devices = tuple(gpu.name for gpu in self.gpus)
        self._start_s = self._last_s = time.monotonic()

    def start(self) -> None:
        for gpu in self.gpus:
            gpu.start()
        self._start_s = self._last_s = time.monotonic()

    @property
    def method(self) -> str:
        return COUNTER_METHOD if all(gpu.has_counter for gpu in self.gpus) else INTEGRAL_METHOD

    @property
    def warnings(self) -> list[str]:
        return self._warnings + [text for gpu in self.gpus for text in gpu.warnings]

    def read_j(self) -> float:
        for gpu in self.gpus:
            gpu.read()
        self._last_s = time.monotonic()
        return sum(gpu.energy_j for gpu in self.gpus)

    def interval_j(self) -> tuple[float, float]:
        energy_j = sum(gpu.energy_j for gpu in self.gpus)
        elapsed_s = self._last_s - self._start_s
        edges_j = energy_j / elapsed_s * 2 * COUNTER_UPDATE_S if elapsed_s > 0 else 0.0
        edges_j = min(edges_j, energy_j)
        return max(energy_j * (1 - RELATIVE_ERROR) - edges_j, 0.0), energy_j * (1 + RELATIVE_ERROR) + edges_j

    def idle_j(self) -> float | None:
        return None

    def close(self) -> None:
        for gpu in self.gpus:
            gpu.check_divergence(self._last_s - self._start_s)
            if not gpu.has_counter and not gpu.has_power:
                self._warnings.append(
                    f"GPU {gpu.index} ({gpu.uuid}) offers neither counter nor power: 0 J are counted for it"
                )
        with contextlib.suppress(pynvml.NVMLError):  # a driver that is gone has nothing to release
            pynvml.nvmlShutdown()


def open_nvml() -> Meter:
    """The meter of the GPUs this job may use; an `AbsentMeter` without driver or visible GPU.

    Never raises NVMLError.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return AbsentMeter()
    try:
        indices, warnings = _visible_indices()
        if indices:
            return NvmlMeter(indices, warnings)
    except pynvml.NVMLError as error:
        indices, warnings = [], [f"NVML cannot read this machine's GPUs ({error}); their energy is unknown"]
    pynvml.nvmlShutdown()
    return AbsentMeter("; ".join(warnings))


def _visible_indices() -> tuple[list[int], list[str]]:
    """NVML indices of the GPUs in CUDA_VISIBLE_DEVICES. As in CUDA, the first invalid entry ends the list."""
    uuids = [
        _text(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        for index in range(pynvml.nvmlDeviceGetCount())
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(len(uuids))), []
    indices: list[int] = []
    warnings: list[str] = []
    for entry in filter(None, (part.strip() for part in visible.split(","))):
        if entry.startswith("MIG-"):
            warnings.append(f"{entry}: the energy of a MIG slice cannot be told from its GPU's and is not counted")
            continue
        matches = [
            i for i, uuid in enumerate(uuids) if (str(i) == entry if entry.isdigit() else uuid.startswith(entry))
        ]
        if len(matches) != 1:
            break
        indices.append(matches[0])
    return list(dict.fromkeys(indices)), warnings


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
