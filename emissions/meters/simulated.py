"""Meters of known, constant power: for tests and for learning how the energy of a node is divided."""

from __future__ import annotations

import time

METHOD = "simulated"


class SimulatedMeter:
    """Draws `power_w` from the moment it is made, exactly."""

    method = METHOD
    longest_gap_s = float("inf")

    def __init__(self, device: str, power_w: float, idle_w: float | None = None) -> None:
        self.device = device
        self.power_w = power_w
        self.idle_w = idle_w
        self.warnings: list[str] = []
        self._start_s = time.monotonic()

    def read_j(self) -> float:
        return self.power_w * (time.monotonic() - self._start_s)

    def interval_j(self, energy_j: float, duration_s: float) -> tuple[float, float]:
        return energy_j, energy_j

    def close(self) -> None:
        pass


class SimulatedGpu(SimulatedMeter):
    """A GPU without sampled power, utilisation and memory."""

    integral_j: float | None = None
    utilisation_percent: float | None = None
    memory_gb: float | None = None

    def __init__(self, index: int, power_w: float, idle_w: float | None = None) -> None:
        super().__init__("simulated GPU", power_w, idle_w)
        self.index = index
        self.uuid = f"SIMULATED-{index}"

    def divergence(self, energy_j: float, integral_j: float | None, duration_s: float) -> str:
        return ""
