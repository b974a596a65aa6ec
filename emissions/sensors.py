"""All meters of a node, read together: what the node used between two readings."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

from emissions.meters import Meters, MeterSettings, open_meters
from emissions.meters.base import AbsentMeter, GpuMeter, Meter
from emissions.meters.model import busy_s
from emissions.processes import ProcessTree

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Joules of one part of the node, and of it what idling would have used. None: unknown."""

    energy_j: float | None
    idle_j: float | None = None
    integral_j: float | None = None  # of a GPU: sampled power beside the counter


@dataclass(frozen=True)
class Reading:
    """What a node used since the reading before."""

    seconds: float
    cpu: Part
    ram: Part
    psys: Part
    gpus: dict[str, Part]  # by UUID
    busy_s: float  # CPU seconds of all processes
    metering_s: float  # of them, the recorder's and CodeCarbon's
    capacity_s: float  # logical CPUs x seconds

    @property
    def node_j(self) -> float:
        """Joules of all parts that are known; psys holds some of them and is not added."""
        return sum(part.energy_j or 0.0 for part in (self.cpu, self.ram, *self.gpus.values()))

    @property
    def j_per_cpu_s(self) -> float:
        """Joules that a CPU second costs: above idling, or a CPU's part of all where idling is unknown."""
        if self.cpu.energy_j is None:
            return 0.0
        if self.cpu.idle_j is None:
            return self.cpu.energy_j / self.capacity_s
        return max(self.cpu.energy_j - self.cpu.idle_j, 0.0) / self.busy_s if self.busy_s > 0 else 0.0


class Sensors:
    """The meters, guarded: whatever one of them raises becomes a line in `failures`.

    Args:
        settings: of the config.
        meters: in place of those that this machine offers.
        own_process: whether this process does nothing but metering, so that its CPU time is the metering's.
    """

    def __init__(self, settings: MeterSettings, meters: Meters | None = None, *, own_process: bool = True) -> None:
        self.meters = meters or open_meters(settings)
        self.gpus: list[GpuMeter] = [meter for meter in self.meters.gpus if not isinstance(meter, AbsentMeter)]
        self.unread_gpus = [meter for meter in self.meters.gpus if isinstance(meter, AbsentMeter)]
        self.failures: list[str] = []
        self.cpus = os.cpu_count() or 1
        self.longest_gap_s = min(meter.longest_gap_s for meter in self._all())
        self._hasty = [meter for meter in self._all() if meter.longest_gap_s < settings.interval_s]
        # the recorder, and CodeCarbon below it; inside a job only the latter could be told apart
        self.is_own_process = own_process
        self._processes = ProcessTree(os.getpid()) if own_process else None
        self._last_j: dict[int, float | None] = {}
        self._read_s = time.monotonic()
        self._cpu_s = busy_s(), self._metering_s()
        self._joules = self._count()

    def _all(self) -> list[Meter]:
        return [self.meters.cpu, self.meters.ram, self.meters.psys, *self.meters.gpus]

    def touch(self) -> None:
        """Read only the counters that could wrap unseen before the next whole reading."""
        for meter in self._hasty:
            self._joules_of(meter)

    def read(self) -> Reading:
        """Read everything."""
        now_s, joules, cpu_s = time.monotonic(), self._count(), (busy_s(), self._metering_s())
        seconds = now_s - self._read_s
        since = [_difference(before, now) for before, now in zip(self._joules, joules, strict=True)]
        busy, metering = (max(now - before, 0.0) for before, now in zip(self._cpu_s, cpu_s, strict=True))
        self._read_s, self._joules, self._cpu_s = now_s, joules, cpu_s
        parts = [Part(energy, _idle_j(meter, seconds)) for meter, energy in zip(self._all(), since, strict=False)]
        gpus = {}
        for place, gpu in enumerate(self.gpus):
            energy_j, integral_j = since[3 + 2 * place : 5 + 2 * place]
            gpus[gpu.uuid] = Part(energy_j, _idle_j(gpu, seconds), integral_j)
        return Reading(seconds, parts[0], parts[1], parts[2], gpus, busy, metering, self.cpus * seconds)

    def _metering_s(self) -> float:
        return self._processes.cpu_s() if self._processes else 0.0

    def _count(self) -> list[float | None]:
        """Cumulative joules: CPU, RAM, psys, then counter and integral of each GPU."""
        parts = (self.meters.cpu, self.meters.ram, self.meters.psys)
        counted = [self._joules_of(meter) for meter in parts]
        for gpu in self.gpus:
            counted += [self._joules_of(gpu), gpu.integral_j]
        return counted

    def _joules_of(self, meter: Meter) -> float | None:
        try:
            self._last_j[id(meter)] = meter.read_j()
        except Exception as error:  # a meter may fail in any way; the jobs must not
            logger.info("%s failed", type(meter).__name__, exc_info=True)
            text = f"{type(meter).__name__} failed ({type(error).__name__}: {error}); its last reading stands"
            if text not in self.failures:
                self.failures.append(text)
        return self._last_j.get(id(meter))

    def close(self) -> None:
        """Release the hardware."""
        for meter in self._all():
            try:
                meter.close()
            except Exception:  # a driver that is gone has nothing to release
                logger.info("%s did not close", type(meter).__name__, exc_info=True)


def _difference(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else max(now - before, 0.0)


def _idle_j(meter: Meter, seconds: float) -> float | None:
    return None if meter.idle_w is None else meter.idle_w * seconds
