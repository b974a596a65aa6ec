"""Carbon intensity of a zone over time: one noun, one verb, `intensity.at(time)` in gCO2e per kWh."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import numpy as np
import pandas as pd

from emissions.grid.zones import Zone, data_table, find_zone

KIND = "average lifecycle"
CREDIT = (
    "Contains Electricity Maps carbon intensity data 2021-2025, "
    "made available under the Open Database License (ODbL) v1.0"
)
NO_SEASONS = "annual value only: no seasonal data"
HOURS = [f"h{hour:02d}" for hour in range(24)]


@dataclass(frozen=True, kw_only=True)
class CarbonIntensity(ABC):
    """Grams of CO2e per kWh in one zone, by the start of the UTC hour.

    kind: what is counted ("average lifecycle"); never compared silently with another kind.
    source: where the numbers come from, in words for a person; says so when another year stood in.
    basis: the hours or the year that the mean was taken over.
    year: the year of the value; None where several years were averaged.
    """

    zone: Zone
    source: str
    basis: str
    year: int | None
    kind: str = KIND

    @abstractmethod
    def values_at(self, hours: pd.DatetimeIndex) -> np.ndarray:
        """gCO2e/kWh at each of N times in UTC, (N,)."""

    def at(self, time: datetime) -> float:
        """gCO2e/kWh at a time with a time zone. Raises ValueError for a time without one."""
        return float(self.values_at(pd.DatetimeIndex([_utc(time)]))[0])

    def series(self, start: datetime, end: datetime) -> pd.Series:
        """gCO2e/kWh of each UTC hour that [start, end) touches, by the hour's start; one hour when start is
        end.

        Raises ValueError when end comes before start, or for a time without a time zone.
        """
        first, last = _utc(start), _utc(end)
        if last < first:
            raise ValueError(f"the end {last} comes before the start {first}")
        hours = pd.date_range(first.floor("h"), max(last.ceil("h"), first.floor("h") + pd.Timedelta("1h")), freq="h")[
            :-1
        ]
        return pd.Series(self.values_at(hours), index=hours, name="carbon_intensity_g_per_kwh")


@dataclass(frozen=True, kw_only=True)
class AnnualIntensity(CarbonIntensity):
    """The same mean for every hour of the year: says nothing about seasons or hours."""

    value_g_per_kwh: float

    def values_at(self, hours: pd.DatetimeIndex) -> np.ndarray:
        return np.full(len(hours), self.value_g_per_kwh)


@dataclass(frozen=True, kw_only=True, eq=False)
class TypicalYearIntensity(CarbonIntensity):
    """Means by month and UTC hour over the years in `basis`. table_g_per_kwh: (12, 24), month x hour."""

    table_g_per_kwh: np.ndarray

    def __post_init__(self) -> None:
        if self.table_g_per_kwh.shape != (12, 24):
            raise ValueError("a typical year needs a table of 12 months x 24 hours")

    def values_at(self, hours: pd.DatetimeIndex) -> np.ndarray:
        return self.table_g_per_kwh[hours.month - 1, hours.hour]

    def month_means(self) -> np.ndarray:
        """gCO2e/kWh of each month, all hours alike, (12,)."""
        return self.table_g_per_kwh.mean(axis=1)


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


def _utc(time: datetime) -> pd.Timestamp:
    stamp = pd.Timestamp(time)
    if stamp.tzinfo is None:
        raise ValueError(f"time {stamp} has no time zone: give it in UTC")
    return stamp.tz_convert("UTC")
