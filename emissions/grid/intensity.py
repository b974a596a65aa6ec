"""Carbon intensity of a zone over time: one noun, one verb, `intensity.at(time)` in gCO2e per kWh.

Annual values, a typical year, a measured or forecast series, and one that leans on another in its gaps look alike.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property

import numpy as np
import pandas as pd

from emissions.grid.zones import Zone, data_table, find_zone

KINDS = ("average lifecycle", "average direct", "marginal lifecycle", "marginal direct")
KIND = KINDS[0]  # of the tables that ship
CREDIT = (
    "Contains Electricity Maps carbon intensity data 2021-2025, "
    "made available under the Open Database License (ODbL) v1.0"
)
NO_SEASONS = "annual value only: no seasonal data"
HOURS = [f"h{hour:02d}" for hour in range(24)]
HOUR = pd.Timedelta("1h")


class GapError(ValueError):
    """A signal has no value for a time that it was asked for."""


@dataclass(frozen=True, kw_only=True)
class CarbonIntensity(ABC):
    """Grams of CO2e per kWh in one zone, by the start of a UTC slot of `step`.

    kind: one of `KINDS`: average or marginal, with lifecycle or direct (combustion) factors; two kinds are never
        compared silently.
    source: where the numbers come from, in words for a person; says so when another year stood in.
    basis: the hours or the year that the mean was taken over.
    year: the year of the value; None where several years were averaged.
    step: how long one value holds.
    """

    zone: Zone
    source: str
    basis: str
    year: int | None
    kind: str = KIND
    step: pd.Timedelta = HOUR

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(KINDS)}")

    @abstractmethod
    def lookup(self, times: pd.DatetimeIndex) -> np.ndarray:
        """gCO2e/kWh at each of N times in UTC, (N,), NaN where there is no value."""

    @property
    @abstractmethod
    def data_hash(self) -> str:
        """Digest of the data that all values come from, 16 hexadecimal digits: the same data, the same prices."""

    def values_at(self, times: pd.DatetimeIndex) -> np.ndarray:
        """gCO2e/kWh at each of N times in UTC, (N,). Raises GapError naming the first time without a value."""
        values = self.lookup(times)
        missing = np.isnan(values)
        if missing.any():
            raise GapError(
                f"zone {self.zone.zone}: {self.source} has no carbon intensity at "
                f"{times[missing][0]:%Y-%m-%d %H:%M} UTC ({missing.sum()} of {len(times)} values are missing)"
            )
        return values

    def source_at(self, times: pd.DatetimeIndex) -> str:
        """`source`, with what stood in for it at any of these times."""
        return self.source

    def at(self, time: datetime) -> float:
        """gCO2e/kWh at a time with a time zone. Raises ValueError for a time without one, GapError in a gap."""
        return float(self.values_at(pd.DatetimeIndex([utc(time)]))[0])

    def series(self, start: datetime, end: datetime) -> pd.Series:
        """gCO2e/kWh of each UTC slot that [start, end) touches, by the slot's start; one slot when start is end.

        Raises ValueError when end comes before start, or for a time without a time zone; GapError in a gap.
        """
        slots = slots_of(start, end, self.step)
        return pd.Series(self.values_at(slots), index=slots, name="carbon_intensity_g_per_kwh")


@dataclass(frozen=True, kw_only=True)
class AnnualIntensity(CarbonIntensity):
    """The same mean for every hour of the year: says nothing about seasons or hours."""

    value_g_per_kwh: float

    def lookup(self, times: pd.DatetimeIndex) -> np.ndarray:
        return np.full(len(times), self.value_g_per_kwh)

    @property
    def data_hash(self) -> str:
        return digest(self.zone.zone, self.basis, np.array([self.value_g_per_kwh]))


@dataclass(frozen=True, kw_only=True, eq=False)
class TypicalYearIntensity(CarbonIntensity):
    """Means by month and UTC hour over the years in `basis`. table_g_per_kwh: (12, 24), month x hour."""

    table_g_per_kwh: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table_g_per_kwh.shape != (12, 24):
            raise ValueError("a typical year needs a table of 12 months x 24 hours")

    def lookup(self, times: pd.DatetimeIndex) -> np.ndarray:
        return self.table_g_per_kwh[times.month - 1, times.hour]

    @cached_property
    def data_hash(self) -> str:
        return digest(self.zone.zone, self.basis, self.table_g_per_kwh)

    def month_means(self) -> np.ndarray:
        """gCO2e/kWh of each month, all hours alike, (12,)."""
        return self.table_g_per_kwh.mean(axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesIntensity(CarbonIntensity):
    """What was measured or forecast, slot by slot; see `series.series_intensity`, which checks what it is given.

    values_g_per_kwh: by the UTC start of each slot, NaN in gaps; the slots are `step` apart.
    sources: of each slot, where they differ; else all are `source`.
    """

    values_g_per_kwh: pd.Series
    sources: pd.Series | None = field(default=None)

    def lookup(self, times: pd.DatetimeIndex) -> np.ndarray:
        return self.values_g_per_kwh.reindex(times.floor(self.step)).to_numpy(dtype=float)

    def source_at(self, times: pd.DatetimeIndex) -> str:
        if self.sources is None:
            return self.source
        return "; ".join(dict.fromkeys(self.sources.reindex(times.floor(self.step)).dropna())) or self.source

    @cached_property
    def data_hash(self) -> str:
        times = pd.DatetimeIndex(self.values_g_per_kwh.index).as_unit("ns").asi8
        return digest(self.zone.zone, self.kind, times, self.values_g_per_kwh.to_numpy(dtype=float))


@dataclass(frozen=True, kw_only=True, eq=False)
class FallbackIntensity(CarbonIntensity):
    """`first` where it has a value, else `second`, and `source_at` says which. Made by `with_fallback`."""

    first: CarbonIntensity
    second: CarbonIntensity

    def lookup(self, times: pd.DatetimeIndex) -> np.ndarray:
        values = self.first.lookup(times)
        missing = np.isnan(values)
        if missing.any():
            values = np.where(missing, self.second.lookup(times), values)
        return values

    def source_at(self, times: pd.DatetimeIndex) -> str:
        missing = np.isnan(self.first.lookup(times))
        if not missing.any():
            return self.first.source_at(times)
        instead = f"{self.second.source_at(times[missing])}, for want of {self.first.source}"
        if missing.all():
            return instead
        return f"{self.first.source_at(times[~missing])}; {instead}"

    @cached_property
    def data_hash(self) -> str:
        return digest(self.first.data_hash, self.second.data_hash)


def with_fallback(first: CarbonIntensity, second: CarbonIntensity) -> FallbackIntensity:
    """A signal that leans on another where it has no value. Raises ValueError for two kinds or two zones."""
    for name, one, other in (("kind", first.kind, second.kind), ("zone", first.zone.zone, second.zone.zone)):
        if one != other:
            raise ValueError(f"{second.source} ({name} {other}) cannot stand in for {first.source} ({name} {one})")
    return FallbackIntensity(
        zone=first.zone,
        source=first.source,
        basis=first.basis,
        year=first.year,
        kind=first.kind,
        step=min(first.step, second.step),
        first=first,
        second=second,
    )


def slots_of(start: datetime, end: datetime, step: pd.Timedelta = HOUR) -> pd.DatetimeIndex:
    """The starts of the UTC slots that [start, end) touches; one slot when start is end.

    Raises ValueError when end comes before start, or for a time without a time zone.
    """
    first, last = utc(start), utc(end)
    if last < first:
        raise ValueError(f"the end {last} comes before the start {first}")
    return pd.date_range(first.floor(step), max(last.ceil(step), first.floor(step) + step), freq=step, inclusive="left")


def digest(*parts: str | np.ndarray) -> str:
    """16 hexadecimal digits of the SHA-256 of texts and arrays, the same on every machine."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
        else:
            data = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).tobytes()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:16]


def intensity_of(zone: Zone | str, year: int) -> CarbonIntensity:
    """The typical year of a zone where it has one, else its annual value (see `annual_intensity_of`).

    Raises ValueError for an unknown zone.
    """
    return typical_intensity_of(zone) or annual_intensity_of(zone, year)


def typical_intensity_of(zone: Zone | str) -> TypicalYearIntensity | None:
    """The zone's typical year by month and UTC hour, or None when there is no seasonal data."""
    place = find_zone(zone) if isinstance(zone, str) else zone
    rows = _rows_by_zone("typical_year.csv").get(place.zone)
    if rows is None:
        return None
    rows = rows.sort_values("month")
    basis = str(rows["basis"].iloc[0])
    source = f"Electricity Maps, typical year by month and UTC hour ({basis})"
    values = rows[HOURS].to_numpy(dtype=float)  # (12, 24)
    return TypicalYearIntensity(zone=place, source=source, basis=basis, year=None, table_g_per_kwh=values)


def annual_intensity_of(zone: Zone | str, year: int) -> AnnualIntensity:
    """The zone's mean of `year`, or of the nearest year that has one (the later of two): `source` says which.

    Raises ValueError for an unknown zone and for the few that have only a typical year.
    """
    place = find_zone(zone) if isinstance(zone, str) else zone
    rows = _rows_by_zone("annual_intensity.csv").get(place.zone)
    if rows is None:
        raise ValueError(f"zone {place.zone} has a typical year and no annual value: name the zone around it")
    row = rows.filter(like="lifecycle_").iloc[0].dropna()
    values = {int(str(name).removeprefix("lifecycle_")): float(value) for name, value in row.to_dict().items()}
    if not values:
        raise ValueError(f"zone {place.zone} has no annual value in any year: choose another zone")
    found = min(values, key=lambda other: (abs(other - year), -other))
    source = f"Electricity Maps, annual mean {found}"
    if found != year:
        source += f" (no value for {year}: nearest year)"
    return AnnualIntensity(
        zone=place, source=source, basis=f"annual {found}", year=found, value_g_per_kwh=values[found]
    )


@cache
def _rows_by_zone(name: str) -> dict[str, pd.DataFrame]:
    return {str(zone): rows for zone, rows in data_table(name).groupby("zone")}


def utc(time: datetime) -> pd.Timestamp:
    """The time in UTC. Raises ValueError for a time without a time zone."""
    stamp = pd.Timestamp(time)
    if stamp.tzinfo is None:
        raise ValueError(f"time {stamp} has no time zone: give it in UTC")
    return stamp.tz_convert("UTC")
