"""RAM energy where the DRAM domain of RAPL cannot be read: a constant power per memory module.

An estimate.
"""

from __future__ import annotations

import time

RELATIVE_ERROR = 0.5


class ModelRamMeter:
    """Constant power: `ram_w` of the config, or CodeCarbon's heuristic (5 W per assumed DIMM on x86, 1.5 W on
    ARM).

    The heuristic guesses the number of modules from the memory's size, and modules draw between about half
    and one and a half times that with type and load, hence an interval of +-50 %, our choice. All of it
    counts as idle: the model does not depend on what a job does.
    """

    method = "model:W per DIMM"
    longest_gap_s = float("inf")

    def __init__(self, power_w: float, warnings: list[str] | None = None) -> None:
        self.power_w = power_w
        self.devices = ("RAM",)
        self.warnings = list(warnings or [])
        self.start()

    def start(self) -> None:
        self._start_s = time.monotonic()
        self._energy_j = 0.0

    def read_j(self) -> float:
        self._energy_j = self.power_w * (time.monotonic() - self._start_s)
        return self._energy_j

    def interval_j(self) -> tuple[float, float]:
        return self._energy_j * (1 - RELATIVE_ERROR), self._energy_j * (1 + RELATIVE_ERROR)

    def idle_j(self) -> float:
        return self._energy_j

    def close(self) -> None:
        pass
