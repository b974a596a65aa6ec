"""RAM energy where the DRAM domain of RAPL cannot be read: a constant power per memory module. An estimate."""

from __future__ import annotations

import math
import os
import platform
import time

RELATIVE_ERROR = 0.5

X86_W_PER_DIMM, X86_LEAST_W = 5.0, 10.0
ARM_W_PER_DIMM, ARM_LEAST_W = 1.5, 3.0


class ModelRamMeter:
    """Constant power: `ram_w` of the config, or CodeCarbon's heuristic (`default_ram_w`).

    The heuristic guesses the number of modules from the memory's size, and modules draw between about half and one
    and a half times that with type and load, hence an interval of +-50 %, our choice. All of it counts as idle: the
    model does not depend on what a job does.
    """

    method = "model:W per DIMM"
    longest_gap_s = float("inf")
    device = "RAM"

    def __init__(self, ram_w: float | None = None) -> None:
        self.power_w = default_ram_w() if ram_w is None else ram_w
        self.idle_w: float | None = self.power_w
        self.warnings: list[str] = []
        self._start_s = time.monotonic()

    def read_j(self) -> float:
        return self.power_w * (time.monotonic() - self._start_s)

    def interval_j(self, energy_j: float, duration_s: float) -> tuple[float, float]:
        return energy_j * (1 - RELATIVE_ERROR), energy_j * (1 + RELATIVE_ERROR)

    def close(self) -> None:
        pass


def default_ram_w() -> float:
    """Watts of this machine's memory (a virtual machine's: its own) by CodeCarbon's heuristic.

    That is `codecarbon/external/ram.py` of CodeCarbon 3.3.2, written again because importing it costs 0.1 s: 5 W per
    assumed module on x86 and 1.5 W on ARM, less for modules beyond the fourth.
    """
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    is_arm = any(name in platform.machine().lower() for name in ("arm", "aarch"))
    return heuristic_w(memory_gib, is_arm)


def heuristic_w(memory_gib: float, is_arm: bool) -> float:
    """CodeCarbon's watts of a memory of this size."""
    dimm_w, least_w = (ARM_W_PER_DIMM, ARM_LEAST_W) if is_arm else (X86_W_PER_DIMM, X86_LEAST_W)
    dimms = _dimms(memory_gib)
    # the first 4 modules count in full, then 4 by 0.9, 8 by 0.8 and all others by 0.7
    weights = (
        min(dimms, 4) + 0.9 * min(max(dimms - 4, 0), 4) + 0.8 * min(max(dimms - 8, 0), 8) + 0.7 * max(dimms - 16, 0)
    )
    return max(least_w, dimm_w * weights)


def _dimms(memory_gib: float) -> int:
    for largest_gib, dimms in ((2, 1), (16, 2), (64, 4), (128, 8)):
        if memory_gib <= largest_gib:
            return dimms
    dimm_gib = next(size for size in (128, 64, 32, 16) if size <= memory_gib / 8)
    return min(math.ceil(memory_gib / dimm_gib), 32)
