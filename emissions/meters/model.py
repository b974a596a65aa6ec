"""CPU energy where no sensor can be read: load x thermal design power. An estimate, and named so."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import psutil

IDLE_SHARE = 0.1  # of the TDP, CodeCarbon's floor of its own load model


class ModelCpuMeter:
    """P = TDP x (0.1 + 0.9 x load), with load the machine's busy CPU time over (logical CPUs x wall time).

    The floor of 10 % of the TDP is CodeCarbon's; its model is 0.1 + 0.9 x load^3. The linear form is additive
    in time: the energy depends on the two ends of the window only, however often it is read, so sampling
    cannot lose any. Time stolen by the hypervisor and waiting for input is not busy. The interval is idle (10
    % of TDP) to full TDP
    throughout: nothing is known about the CPU's real power.
    """

    method = "model:load x TDP"
    longest_gap_s = float("inf")

    def __init__(self, tdp_w: float, warnings: list[str] | None = None) -> None:
        self.tdp_w = tdp_w
        self.devices = (cpu_model_name(),)
        self.warnings = list(warnings or [])
        self._cpus = psutil.cpu_count() or 1
        self.start()

    def start(self) -> None:
        self._start_s, self._start_busy_s = time.monotonic(), _busy_s()
        self._elapsed_s = 0.0
        self._busy_s = 0.0

    def read_j(self) -> float:
        self._elapsed_s = time.monotonic() - self._start_s
        self._busy_s = min(max(_busy_s() - self._start_busy_s, self._busy_s), self._elapsed_s * self._cpus)
        return self.tdp_w * (IDLE_SHARE * self._elapsed_s + (1 - IDLE_SHARE) * self._busy_s / self._cpus)

    def interval_j(self) -> tuple[float, float]:
        return self.idle_j(), self.tdp_w * self._elapsed_s

    def idle_j(self) -> float:
        return self.tdp_w * IDLE_SHARE * self._elapsed_s

    def close(self) -> None:
        pass


def _busy_s() -> float:
    """Busy CPU seconds of the whole machine since boot, over all logical CPUs (guests are inside user and
    nice)."""
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))


def cpu_model_name() -> str:
    """The processor's name as the kernel gives it, or the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
