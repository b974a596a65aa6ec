"""CPU energy where no sensor can be read: load x thermal design power. An estimate, and named so."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from emissions.meters.processor import Tdp, default_tdp, processor_name

STAT = Path("/proc/stat")
IDLE_SHARE = 0.1  # of the TDP, CodeCarbon's floor of its own load model


class ModelCpuMeter:
    """P = TDP x (0.1 + 0.9 x load), with load the machine's busy CPU time over (logical CPUs x wall time).

    The floor of 10 % of the TDP is CodeCarbon's; its model is 0.1 + 0.9 x load^3. The linear form is additive in
    time: the energy depends on the two ends of the window only, however often it is read, so sampling cannot lose
    any, and it can be divided by CPU time. Time stolen by the hypervisor and waiting for input is not busy.
    """

    method = "model:load x TDP"
    longest_gap_s = float("inf")

    def __init__(self, tdp_w: float | None = None, warnings: Sequence[str] = ()) -> None:
        """
        Args:
            tdp_w: watts of the config; None looks the processor up (`processor.default_tdp`).
            warnings: why the CPU is modelled.
        """
        tdp = default_tdp() if tdp_w is None else Tdp(tdp_w, "config metering.cpu_tdp_w")
        self.tdp_w = tdp.watts
        self.basis = tdp.basis
        self.idle_w: float | None = self.tdp_w * IDLE_SHARE
        self.device = processor_name()
        self.warnings = list(warnings)
        self._cpus = os.cpu_count() or 1
        self._start_s, self._start_busy_s = time.monotonic(), busy_s()
        self._busy_s = 0.0

    def read_j(self) -> float:
        elapsed_s = time.monotonic() - self._start_s
        # never falling, though the kernel's sums may, and never beyond all CPUs, though its ticks are 10 ms
        self._busy_s = max(self._busy_s, min(busy_s() - self._start_busy_s, elapsed_s * self._cpus))
        return self.tdp_w * (IDLE_SHARE * elapsed_s + (1 - IDLE_SHARE) * self._busy_s / self._cpus)

    def interval_j(self, energy_j: float, duration_s: float) -> tuple[float, float]:
        """Idle (10 % of TDP) to full TDP throughout: nothing is known about the CPU's real power.

        The energy itself is always inside: a caller's duration and this meter's own differ by what a reading takes.
        """
        return min(energy_j, self.tdp_w * IDLE_SHARE * duration_s), max(energy_j, self.tdp_w * duration_s)

    def close(self) -> None:
        pass


def busy_s() -> float:
    """Busy CPU seconds of the whole machine since boot, over all logical CPUs, in steps of 10 ms.

    user + nice + system + irq + softirq; guests are inside user and nice (proc_stat(5)).
    """
    try:
        with STAT.open("rb") as stream:
            user, nice, system, _idle, _iowait, irq, softirq = stream.readline().split()[1:8]
    except OSError:
        return _busy_s_elsewhere()
    return (int(user) + int(nice) + int(system) + int(irq) + int(softirq)) / os.sysconf("SC_CLK_TCK")


def _busy_s_elsewhere() -> float:
    import psutil

    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")))
