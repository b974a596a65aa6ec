"""Reads a machine's meters from the opening of a window to its end, and keeps the power trace.

Energies are differences of cumulative joules read at the two edges; the readings between them make the trace,
catch every counter wrap and integrate sampled power. Durations come from the monotonic clock, so a clock that
is set meanwhile changes nothing but a warning.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from emissions.files import atomic_path
from emissions.meters import Meters
from emissions.meters.base import J_PER_KWH, Meter

logger = logging.getLogger(__name__)

CLOCK_JUMP_S = 2.0
JOIN_TIMEOUT_S = 5.0

_Joules = tuple[float | None, float | None, float | None]  # cpu, gpu, ram


@dataclass(frozen=True)
class Component:
    """One component over the window, in kWh; None where unknown."""

    method: str
    energy_kwh: float | None
    low_kwh: float
    high_kwh: float
    idle_kwh: float | None
    devices: tuple[str, ...]


@dataclass(frozen=True)
class TraceRow:
    """Mean power in watts since the previous row; `time` is the end of the interval. None where unknown."""

    time: datetime
    cpu_w: float | None
    gpu_w: float | None
    ram_w: float | None


@dataclass(frozen=True)
class Recording:
    """What was metered in one window. Totals are sums over the components whose energy is known."""

    started_at: datetime
    duration_s: float
    cpu: Component
    gpu: Component
    ram: Component
    trace: tuple[TraceRow, ...]
    warnings: tuple[str, ...]

    @property
    def ended_at(self) -> datetime:
        return self.started_at + timedelta(seconds=self.duration_s)

    @property
    def components(self) -> tuple[Component, Component, Component]:
        return self.cpu, self.gpu, self.ram

    @property
    def energy_kwh(self) -> float:
        return sum(part.energy_kwh or 0.0 for part in self.components)

    @property
    def energy_low_kwh(self) -> float:
        """The sum of the lowest energies: errors of a model or a sensor are systematic and do not average
        out."""
        return sum(part.low_kwh for part in self.components)

    @property
    def energy_high_kwh(self) -> float:
        return sum(part.high_kwh for part in self.components)

    @property
    def idle_kwh(self) -> float | None:
        """What an idle machine would have used; None as soon as one component's is unknown."""
        known = [part.idle_kwh for part in self.components if part.idle_kwh is not None]
        return sum(known) if len(known) == len(self.components) else None


class Recorder:
    """Samples the meters in a daemon thread. `start()` opens the window, `stop()` ends it and gives the
    `Recording`.

    It needs nothing of the job but its meters, so that it can also run in a process of its own. No failure of
    a meter leaves it: each becomes a line in `Recording.warnings`.
    """

    def __init__(self, meters: Meters, interval_s: float) -> None:
        self._meters = meters
        self._interval_s = interval_s
        self._warnings: list[str] = []
        self._rows: list[tuple[float, _Joules]] = []  # seconds since the start, cumulative joules
        self._last: list[float | None] = [0.0] * len(meters)
        self._last_read_s = 0.0
        self._gap_s = min(meter.longest_gap_s for meter in meters)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="recorder", daemon=True)

    def start(self) -> None:
        """Open the window: every meter counts from here."""
        for meter in self._meters:
            self._guarded(meter, meter.start)
        self._started_at = datetime.now(UTC)
        self._start_s = self._last_read_s = time.monotonic()
        self._thread.start()

    def stop(self) -> Recording:
        """End the window with a last reading, release the meters and add everything up."""
        self._stopping.set()
        self._thread.join(JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            self._warnings.append(
                "a meter did not answer at the end of the window; energy since the last reading is missing"
            )
        else:
            self._rows.append(self._read())
        duration_s = time.monotonic() - self._start_s
        jump_s = (datetime.now(UTC) - self._started_at).total_seconds() - duration_s
        if abs(jump_s) > CLOCK_JUMP_S:
            self._warnings.append(f"the system clock was set by {jump_s:+.0f} s in the window; times follow its start")
        for meter in self._meters:
            self._guarded(meter, meter.close)
        cpu, gpu, ram = (self._component(meter, joules) for meter, joules in zip(self._meters, self._last, strict=True))
        meter_warnings = [text for meter in self._meters for text in meter.warnings]
        return Recording(
            self._started_at,
            duration_s,
            cpu,
            gpu,
            ram,
            self._trace(),
            tuple(dict.fromkeys(meter_warnings + self._warnings)),
        )

    def _sample(self) -> None:
        due_s = self._interval_s
        while not self._stopping.wait(max(min(due_s - (time.monotonic() - self._start_s), self._gap_s), 0.0)):
            row = self._read()
            if row[0] >= due_s:
                self._rows.append(row)
                due_s += self._interval_s * (1 + (row[0] - due_s) // self._interval_s)

    def _read(self) -> tuple[float, _Joules]:
        now_s = time.monotonic()
        if now_s - self._last_read_s > 2 * self._gap_s:
            self._warn(f"counters were not read for {now_s - self._last_read_s:.1f} s; a wrap may be missing")
        self._last_read_s = now_s
        for index, meter in enumerate(self._meters):
            self._guarded(meter, lambda index=index, meter=meter: self._keep(index, meter))
        cpu_j, gpu_j, ram_j = self._last
        return now_s - self._start_s, (cpu_j, gpu_j, ram_j)

    def _keep(self, index: int, meter: Meter) -> None:
        self._last[index] = meter.read_j()

    def _guarded(self, meter: Meter, act: object) -> None:
        try:
            act()  # type: ignore[operator]
        except Exception as error:  # a meter may fail in any way; the job must not
            logger.info("%s failed", type(meter).__name__, exc_info=True)
            self._warn(f"{type(meter).__name__} failed ({type(error).__name__}: {error}); its last reading stands")

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    @staticmethod
    def _component(meter: Meter, joules: float | None) -> Component:
        if joules is None:
            return Component(meter.method, None, 0.0, 0.0, None, meter.devices)
        low_j, high_j = meter.interval_j()
        idle_j = meter.idle_j()
        return Component(
            meter.method,
            joules / J_PER_KWH,
            min(low_j, joules) / J_PER_KWH,
            max(high_j, joules) / J_PER_KWH,
            None if idle_j is None else idle_j / J_PER_KWH,
            meter.devices,
        )

    def _trace(self) -> tuple[TraceRow, ...]:
        """Power between readings. A last interval under half the sampling interval is joined to the one
        before it: a counter that advances every 100 ms makes no sense over a few milliseconds."""
        rows = list(self._rows)
        if len(rows) > 1 and rows[-1][0] - rows[-2][0] < self._interval_s / 2:
            del rows[-2]
        trace: list[TraceRow] = []
        before_s, before_j = 0.0, (0.0, 0.0, 0.0)  # type: tuple[float, _Joules]
        for at_s, joules in rows:
            if at_s <= before_s:
                continue
            cpu_w, gpu_w, ram_w = (_power_w(a, b, at_s - before_s) for a, b in zip(before_j, joules, strict=True))
            trace.append(TraceRow(self._started_at + timedelta(seconds=at_s), cpu_w, gpu_w, ram_w))
            before_s, before_j = at_s, joules
        return tuple(trace)


def _power_w(before_j: float | None, after_j: float | None, seconds: float) -> float | None:
    if before_j is None or after_j is None:
        return None
    return max(after_j - before_j, 0.0) / seconds


def write_trace(path: str | Path, trace: tuple[TraceRow, ...]) -> None:
    """Write the trace as Parquet, atomically: `time` (UTC, microseconds), `cpu_w, gpu_w, ram_w` (float64,
    nullable)."""
    import pyarrow as pa  # here, since a job that fails needs no 0.1 s of import
    import pyarrow.parquet as pq

    columns = {"time": pa.array([row.time for row in trace], pa.timestamp("us", tz="UTC"))}
    for name in ("cpu_w", "gpu_w", "ram_w"):
        columns[name] = pa.array([getattr(row, name) for row in trace], pa.float64())
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
