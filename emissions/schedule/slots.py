"""Carbon intensity between two times, cut into slots: what every schedule is reckoned on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pandas as pd

from emissions.grid.intensity import CarbonIntensity, GapError, utc

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, eq=False)
class Slots:
    """Intensities of a zone in T slots that follow each other without a gap; each value holds over its whole slot.

    start: UTC, of the first slot. step_s: length of a slot. values_g_per_kwh: (T,). kind, source, data_hash: as of the
    signal. Seconds are counted from `start` on, in all methods.

    Raises ValueError for no slots, a step that is not above zero or a start without a time zone, GapError for a value
    that is not a number.
    """

    zone: str
    start: pd.Timestamp
    step_s: float
    values_g_per_kwh: np.ndarray
    kind: str
    source: str
    data_hash: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", utc(self.start))
        object.__setattr__(self, "values_g_per_kwh", np.asarray(self.values_g_per_kwh, dtype=float))
        if self.values_g_per_kwh.ndim != 1 or len(self.values_g_per_kwh) == 0:
            raise ValueError(f"zone {self.zone}: slots are a row of at least one value")
        if not 0 < self.step_s < np.inf:
            raise ValueError(f"zone {self.zone}: step_s is {self.step_s}; a slot takes more than 0 s")
        gaps = np.flatnonzero(~np.isfinite(self.values_g_per_kwh))
        if len(gaps):
            time = self.told(self.edges_s[gaps[0]])
            raise GapError(f"zone {self.zone}: {self.source} has no carbon intensity at {time}")

    @classmethod
    def of(cls, intensity: CarbonIntensity, start: datetime, end: datetime) -> Slots:
        """Every slot of a signal that [start, end) touches. Raises GapError; ValueError as `CarbonIntensity.series`."""
        series = intensity.series(start, end)
        return cls(
            intensity.zone.zone,
            series.index[0],
            intensity.step.total_seconds(),
            series.to_numpy(dtype=float),
            intensity.kind,
            intensity.source_at(pd.DatetimeIndex(series.index)),
            intensity.data_hash,
        )

    @property
    def span_s(self) -> float:
        """Seconds from the start of the first slot to the end of the last one."""
        return len(self.values_g_per_kwh) * self.step_s

    @property
    def end(self) -> pd.Timestamp:
        """When the last slot ends."""
        return self.time(self.span_s)

    @cached_property
    def edges_s(self) -> np.ndarray:
        """Where slots begin and end, (T + 1,)."""
        return np.arange(len(self.values_g_per_kwh) + 1) * float(self.step_s)

    @cached_property
    def sums(self) -> np.ndarray:
        """The integral of the intensity from the start to each edge, (T + 1,), in g/kWh x s."""
        return np.concatenate([[0.0], np.cumsum(self.values_g_per_kwh)]) * self.step_s

    def integral(self, begin_s: float | np.ndarray, end_s: float | np.ndarray) -> np.ndarray:
        """The integral of the intensity over [begin_s, end_s), in g/kWh x s, exact; any shape.

        Constant power P emits P / 1000 / 3600 x integral x PUE. Nothing is checked: see `seconds_of`.
        """
        return np.asarray(np.interp(end_s, self.edges_s, self.sums) - np.interp(begin_s, self.edges_s, self.sums))

    def mean_g_per_kwh(self, begin_s: float, end_s: float) -> float:
        """The mean intensity over [begin_s, end_s), or the intensity at begin_s where both are the same."""
        if end_s > begin_s:
            return float(self.integral(begin_s, end_s)) / (end_s - begin_s)
        place = int(np.clip(begin_s // self.step_s, 0, len(self.values_g_per_kwh) - 1))
        return float(self.values_g_per_kwh[place])

    def seconds_of(self, earliest: datetime, deadline: datetime) -> tuple[float, float]:
        """Both times in seconds since the start. Raises ValueError for times that these slots do not cover."""
        first, last = utc(earliest), utc(deadline)
        if first < self.start or last > self.end:
            raise ValueError(
                f"zone {self.zone}: {self.source} covers {self.told(0.0)} to {self.told(self.span_s)}, not all from "
                f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
            )
        return (first - self.start).total_seconds(), (last - self.start).total_seconds()

    def time(self, seconds: float) -> pd.Timestamp:
        """The time so many seconds after the start, to the nanosecond."""
        return self.start + pd.Timedelta(round(float(seconds) * NANOSECONDS), unit="ns")

    def told(self, seconds: float) -> str:
        """That time for a person."""
        return f"{self.time(seconds):%Y-%m-%d %H:%M} UTC"


def room_s(slots: Slots, duration_s: float, earliest: datetime, deadline: datetime) -> tuple[float, float]:
    """The earliest start and the deadline of a job in seconds since the start of the slots.

    Raises ValueError for a duration that is not above zero, a deadline that is too early for it, and times that the
    slots do not cover.
    """
    if not 0 < duration_s < np.inf:
        raise ValueError(f"duration_s is {duration_s}; a job takes more than 0 s")
    first, last = utc(earliest), utc(deadline)
    late_s = (first - last).total_seconds() + duration_s
    if late_s > 1e-6:
        raise ValueError(
            f"a job of {duration_s:g} s that starts at {first:%Y-%m-%d %H:%M} UTC or later cannot end by the deadline "
            f"{last:%Y-%m-%d %H:%M} UTC: {late_s:g} s too little"
        )
    return slots.seconds_of(first, last)
