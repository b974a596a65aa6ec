"""What the meters of GPUs share: an energy counter and sampled power, kept beside each other.

The counter is the figure: it misses nothing between readings. Sampled power, integrated by trapezoids, is the check,
the bridge where the counter fails, and the figure where there is no counter. Some GPUs measure power only part of the
time (A100, H100: 25 ms of each 100 ms; Yang et al., "Part-time Power Measurements", arXiv 2312.02741), so the two may
honestly differ; both are kept and a difference is named.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

# Our choice: NVIDIA states +-5 % of the power reading for Fermi and Kepler (NVML reference,
# nvmlDeviceGetPowerUsage) and nothing for newer GPUs or for the energy counter; AMD states nothing.
RELATIVE_ERROR = 0.05
# Counters advance every 20 to 100 ms; a window's two edges each miss or gain up to one step.
COUNTER_UPDATE_S = 0.1
DIVERGENCE = 0.05
DIVERGENCE_EDGE_S = 0.2


class UnreadableError(Exception):
    """A reading failed this time."""


class UnsupportedError(UnreadableError):
    """The GPU never offers this reading."""


class LostError(UnreadableError):
    """The GPU is no longer there."""


class CountedGpu(ABC):
    """One whole device, whatever uses it. Vendors supply the four `_ask_` methods, which raise `UnreadableError`."""

    vendor: ClassVar[str]
    longest_gap_s = float("inf")  # counters are 64 bits wide

    def __init__(self, index: int, uuid: str, device: str, idle_w: float | None) -> None:
        self.index = index
        self.uuid = uuid
        self.device = device
        self.idle_w = idle_w
        self.warnings: list[str] = []
        self.integral_j: float | None = 0.0
        self.utilisation_percent: float | None = None
        self.memory_gb: float | None = None
        self._lost = False
        self._unsupported: set[str] = set()
        self._energy_j = 0.0
        self._counted_j = 0.0
        self._last_counter_j: float | None = None
        self._integral_at_count_j = 0.0  # the integral when the counter was last read
        self._last_power: tuple[float, float] | None = None  # monotonic seconds, watts
        if self.read_j() is None:
            self._warn("offers neither energy counter nor power: its energy is unknown")

    @abstractmethod
    def _ask_counter_j(self) -> float:
        """The energy counter."""

    @abstractmethod
    def _ask_power_w(self) -> float:
        """Power at present, or its latest average."""

    @abstractmethod
    def _ask_utilisation_percent(self) -> float:
        """Share of the last sampling period in which a kernel ran."""

    @abstractmethod
    def _ask_memory_gb(self) -> float:
        """Memory in use, in 10^9 bytes."""

    @abstractmethod
    def close(self) -> None:
        """Release the driver's library."""

    @property
    def method(self) -> str:
        if "energy counter" not in self._unsupported:
            return f"{self.vendor}:energy-counter"
        return "none" if self.integral_j is None else f"{self.vendor}:power-integral"

    def read_j(self) -> float | None:
        if not self._lost:
            self._integrate()
            self._count()
            self.utilisation_percent = self._asked("utilisation", self._ask_utilisation_percent)
            self.memory_gb = self._asked("memory", self._ask_memory_gb)
        if self.method == "none":
            return None
        # Where sampled power bridged a gap of the counter by too much, the figure waits for the counter.
        self._energy_j = max(self._energy_j, self._counted_j + (self.integral_j or 0.0) - self._integral_at_count_j)
        return self._energy_j

    def interval_j(self, energy_j: float, duration_s: float) -> tuple[float, float]:
        """+-5 % gain and, added to it, one counter step of 0.1 s of mean power at each edge of the window."""
        edges_j = min(energy_j, 2 * COUNTER_UPDATE_S * energy_j / duration_s) if duration_s > 0 else energy_j
        return max(energy_j * (1 - RELATIVE_ERROR) - edges_j, 0.0), energy_j * (1 + RELATIVE_ERROR) + edges_j

    def divergence(self, energy_j: float, integral_j: float | None, duration_s: float) -> str:
        """Named beyond 5 % of the larger and beyond 0.2 s of its mean power."""
        if integral_j is None or duration_s <= 0:
            return ""
        larger_j = max(energy_j, integral_j)
        if abs(energy_j - integral_j) <= max(DIVERGENCE * larger_j, DIVERGENCE_EDGE_S * larger_j / duration_s):
            return ""
        return self._named(f"energy counter {energy_j:.1f} J and integrated power {integral_j:.1f} J disagree")

    def _integrate(self) -> None:
        power_w = self._asked("power", self._ask_power_w)
        if "power" in self._unsupported:
            self.integral_j = None
        if power_w is None or self.integral_j is None:
            return
        now_s = time.monotonic()
        if self._last_power is not None:
            self.integral_j += (now_s - self._last_power[0]) * (power_w + self._last_power[1]) / 2
        self._last_power = now_s, power_w

    def _count(self) -> None:
        now_j = self._asked("energy counter", self._ask_counter_j)
        if now_j is None:
            return
        integral_j = self.integral_j or 0.0
        if self._last_counter_j is not None and now_j >= self._last_counter_j:
            self._counted_j += now_j - self._last_counter_j
        else:
            self._counted_j += integral_j - self._integral_at_count_j
            if self._last_counter_j is not None:
                self._warn("energy counter went backwards; sampled power was used for that interval")
        self._last_counter_j = now_j
        self._integral_at_count_j = integral_j

    def _asked(self, what: str, ask: Callable[[], float]) -> float | None:
        """A reading, or None: what is never offered is not asked for again, and what fails now and then is named."""
        if self._lost or what in self._unsupported:
            return None
        try:
            return ask()
        except LostError:
            self._lost = True
            self._warn("disappeared while it was metered; its energy ends at the last reading")
        except UnsupportedError as error:
            if what == "energy counter" and self._last_counter_j is not None:
                self._warn(f"{what} could not be read at times ({error})")
            else:
                self._unsupported.add(what)
        except UnreadableError as error:
            if what in ("energy counter", "power"):
                self._warn(f"{what} could not be read at times ({error})")
        return None

    def _warn(self, text: str) -> None:
        text = self._named(text)
        if text not in self.warnings:
            self.warnings.append(text)

    def _named(self, text: str) -> str:
        return f"GPU {self.index} ({self.uuid}) {text}"
