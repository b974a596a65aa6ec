"""What the same work would have emitted in other zones, months and hours of the day.

Energy is measured once. A month without an hour is the mean of a typical day of it, whenever the work begins: exact,
since the mean over all 24 starts of a day is the day's mean. With an hour, the work is one timeline that begins at that
hour of the zone's own time on a typical day of the month, and is priced along its energy hour by hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emissions.grid.intensity import (
    NO_SEASONS,
    AnnualIntensity,
    CarbonIntensity,
    SeriesIntensity,
    TypicalYearIntensity,
    intensity_of,
)
from emissions.grid.local_time import by_local_hour
from emissions.grid.profile_error import ProfileError, profile_error
from emissions.grid.zones import Zone, all_zones, find_zone
from emissions.ledger import read_ledger
from emissions.pricing import Key, check_pue, energy_by_slot_kwh, read_traces
from emissions.records import parse_utc
from emissions.tables import write_table

MONTHS = tuple(range(1, 13))
HOURS_OF_DAY = tuple(range(24))
_CHUNK_ROWS = 100_000


def energy_by_hour_kwh(work: pd.DataFrame, traces: Mapping[Key, pd.DataFrame] | None = None) -> np.ndarray:
    """The work's energy by hours since it began, days upon each other, (24,); the sum is that of `energy_kwh`.

    Along the power trace where `traces` has one by (stage, item), else evenly in time.
    """
    started, ended = (pd.to_datetime(work[name], utc=True) for name in ("started_at", "ended_at"))
    begin = started.min()
    profile = np.zeros(24)
    traced = np.zeros(len(work), dtype=bool)
    for place, key in enumerate(zip(work["stage"], work["item"], strict=True) if traces else ()):
        if key in (traces or {}):
            traced[place] = True
            profile += _traced(work.iloc[place], begin, (traces or {})[key])
    first_h, last_h = ((times - begin).dt.total_seconds().to_numpy() / 3600 for times in (started, ended))
    energy_kwh = work["energy_kwh"].to_numpy(dtype=float)
    rest = np.flatnonzero(~traced)
    for chunk in np.array_split(rest, max(1, len(rest) // _CHUNK_ROWS)):
        profile += _even(first_h[chunk], last_h[chunk], energy_kwh[chunk])
    return profile


def _traced(row: pd.Series, begin: pd.Timestamp, trace: pd.DataFrame) -> np.ndarray:
    """One row's energy along its trace, on a clock that shows midnight when the work begins, (24,)."""
    shift = begin - begin.floor("D")
    moved = trace.assign(time=pd.to_datetime(trace["time"], utc=True) - shift)
    started, ended = (parse_utc(row[name]) - shift for name in ("started_at", "ended_at"))
    energy = energy_by_slot_kwh(started, ended, float(row["energy_kwh"]), moved)
    return np.bincount(pd.DatetimeIndex(energy.index).hour, weights=energy.to_numpy(), minlength=24)


def _even(first_h: np.ndarray, last_h: np.ndarray, energy_kwh: np.ndarray) -> np.ndarray:
    """N rows' energy spread evenly from first to last, hours of all days upon each other, (24,)."""
    length_h = np.maximum(last_h - first_h, 1e-9)  # what takes no time falls into the hour it began in
    rate_kwh = energy_kwh / length_h
    days = np.floor(length_h / 24)
    begin_h = first_h % 24
    end_h = begin_h + (length_h - 24 * days)  # at most 48
    edges = np.arange(48)
    inside_h = np.clip(np.minimum(end_h[:, None], edges + 1) - np.maximum(begin_h[:, None], edges), 0, None)  # (N, 48)
    hours_h = inside_h[:, :24] + inside_h[:, 24:] + days[:, None]  # (N, 24)
    return rate_kwh @ hours_h


def whatif(
    work: pd.DataFrame,
    zones: Iterable[Zone | str] | None = None,
    months: Sequence[int] = MONTHS,
    *,
    hours: Sequence[int] | None = None,
    pue: float | Mapping[str, float] = 1.0,
    year: int = 2024,
    intensities: Iterable[SeriesIntensity] = (),
    traces: Mapping[Key, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """A row per zone, month and, with `hours`, local hour at which the work begins; cleanest zone first.

    Args:
        work: `work.read_work`.
        zones: zones, ids, country codes or cloud regions; None: all of the tables.
        months: 1 to 12.
        hours: 0 to 23 of the zone's own time; None: whole months.
        pue: of all sites, or by zone; "" is that of zones that are not named.
        year: of annual values, and of the rules for summer time.
        intensities: more signals, each priced by the means of its own months and hours, in rows of their own kind.
        traces: power traces by (stage, item).

    emissions_low_g and emissions_high_g hold the energy's interval and the typical value's own error (90 %), their
    relative half-widths in quadrature; the error of a signal from a file is unknown and not in them, and
    `intensity_error_known` says so. `ratio_to_smallest` compares rows of one kind.

    Raises ValueError for an unknown zone, a month or hour that is none, a PUE below 1, or work without energy.
    """
    _check(work, months, hours)
    places = (
        list(all_zones().values()) if zones is None else [z if isinstance(z, Zone) else find_zone(z) for z in zones]
    )
    signals: list[CarbonIntensity] = [intensity_of(place, year) for place in dict.fromkeys(places)]
    # a month's mean does not ask when in the day energy is used
    profile_kwh = np.ones(24) if hours is None else energy_by_hour_kwh(work, traces)
    energy = {bound: _total(work, f"energy{bound}_kwh") for bound in ("_low", "", "_high")}
    signals_and_errors = [(signal, profile_error(signal)) for signal in signals]
    signals_and_errors += [(typical_of(series), None) for series in intensities]
    tables = [
        _of_zone(signal, error, months, hours, profile_kwh, energy, _pue_of(signal.zone.zone, pue), year)
        for signal, error in signals_and_errors
    ]
    table = pd.concat(tables, ignore_index=True)
    smallest = table.groupby("intensity_kind")["emissions_g"].transform("min")
    table["ratio_to_smallest"] = table["emissions_g"] / smallest.where(smallest > 0)
    signal = ["intensity_kind", "zone", "intensity_hash"]
    order = table.groupby(signal)["emissions_g"].transform("mean")
    keys = ["intensity_kind", "_order", *signal[1:], "month", *(["hour"] if hours is not None else [])]
    return table.assign(_order=order).sort_values(keys, ignore_index=True).drop(columns="_order")


def typical_of(series: SeriesIntensity) -> TypicalYearIntensity:
    """The means of a series by its months and UTC hours; NaN for hours that it does not have."""
    values = series.values_g_per_kwh.dropna()
    times = pd.DatetimeIndex(values.index)
    table = np.full((12, 24), np.nan)
    means = values.groupby([times.month, times.hour]).mean()
    table[means.index.get_level_values(0) - 1, means.index.get_level_values(1)] = means
    return TypicalYearIntensity(
        zone=series.zone,
        source=series.source,
        basis=f"means by month and UTC hour, {series.basis}",
        year=series.year,
        kind=series.kind,
        table_g_per_kwh=table,
    )


def _check(work: pd.DataFrame, months: Sequence[int], hours: Sequence[int] | None) -> None:
    if work.empty:
        raise ValueError("there is no work to price: the table has no rows")
    if not len(months) or (hours is not None and not len(hours)):
        raise ValueError("there is nothing to price: name months, and hours where they are asked for")
    for name, values, known in (("month", months, MONTHS), ("hour", hours or (), HOURS_OF_DAY)):
        wrong = [value for value in values if value not in known]
        if wrong:
            raise ValueError(f"{name} {wrong[0]} is not one of {known[0]} to {known[-1]}")


def _total(work: pd.DataFrame, column: str) -> float:
    """The sum of a column; NaN as soon as one row is unknown, since a part would pass for the whole."""
    return float(work[column].astype("float64").sum(skipna=False))


def _pue_of(zone: str, pue: float | Mapping[str, float]) -> float:
    if isinstance(pue, Mapping):
        return check_pue(pue.get(zone, pue.get("", 1.0)))
    return check_pue(pue)


def _of_zone(
    signal: CarbonIntensity,
    error: ProfileError | None,
    months: Sequence[int],
    hours: Sequence[int] | None,
    profile_kwh: np.ndarray,
    energy: Mapping[str, float],
    pue: float,
    year: int,
) -> pd.DataFrame:
    """The rows of one signal."""
    if isinstance(signal, TypicalYearIntensity):
        table, basis = by_local_hour(signal.table_g_per_kwh, signal.zone.timezone, year), signal.basis  # (12, 24)
    else:
        assert isinstance(signal, AnnualIntensity)
        table, basis = np.full((12, 24), signal.value_g_per_kwh), f"{signal.basis}: {NO_SEASONS}"
    asked = np.array(months) - 1
    if hours is None:
        means = table[asked].mean(axis=1)  # (M,)
        index: dict[str, Any] = {"month": np.array(months)}
    else:
        # the work begins at local hour h, and its k-th hour meets that of the clock at h + k
        shares = profile_kwh / profile_kwh.sum() if profile_kwh.sum() > 0 else np.full(24, 1 / 24)
        clock = (np.arange(24)[None, :] + np.array(hours)[:, None]) % 24  # (H, 24)
        means = (table[asked][:, clock] @ shares).ravel()  # (M * H,)
        index = {"month": np.repeat(months, len(hours)), "hour": np.tile(hours, len(months))}
    low, high = _relative_interval(error, energy, hours is not None)
    zone = signal.zone
    seasons = {month: zone.season(int(month)) for month in months}
    emissions_g = energy[""] * pue * means
    rows = pd.DataFrame(
        {
            "zone": zone.zone,
            "zone_name": zone.zone_name,
            "country": zone.country,
            **index,
            "season": [seasons[month] for month in index["month"]],
            "energy_kwh": energy[""],
            "pue": pue,
            "carbon_intensity_g_per_kwh": means,
            "emissions_g": emissions_g,
            "emissions_low_g": emissions_g * low,
            "emissions_high_g": emissions_g * high,
            "intensity_kind": signal.kind,
            "intensity_source": signal.source,
            "intensity_hash": signal.data_hash,
            "basis": basis,
            "intensity_error_known": error is not None,
        }
    )
    return rows[~np.isnan(means)]  # months that a file does not have


def _relative_interval(error: ProfileError | None, energy: Mapping[str, float], hourly: bool) -> tuple[float, float]:
    """Low and high over the value: relative half-widths of energy and intensity in quadrature, each side apart."""
    low, high = (1.0, 1.0)
    if error is not None:
        low, high = error.month_low, error.month_high
        if hourly:  # a single hour is no surer than its month, however few years the month's error is from
            low, high = min(low, error.hour_low), max(high, error.hour_high)
    widths = []
    for bound, ratio in (("_low", low), ("_high", high)):
        of_energy = energy[bound] / energy[""] if energy[""] > 0 else 1.0
        # CodeCarbon states no interval of its energy: what is known is the intensity's
        widths.append(np.hypot(0.0 if np.isnan(of_energy) else of_energy - 1, ratio - 1))
    return max(1 - widths[0], 0.0), 1 + widths[1]


def write_whatif(
    ledger_path: str | Path,
    trace_paths: Iterable[str | Path],
    carbon: Mapping[str, Any],
    whatif_path: str | Path,
) -> None:
    """The study's total in every zone and month of the tables, as the config's `carbon` section prices it.

    Raises ValueError or OSError naming what cannot be read.
    """
    ledger = read_ledger(ledger_path)
    pue = {"": carbon["pue"]} | {find_zone(name).zone: value for name, value in carbon["pue_by_zone"].items()}
    table = whatif(ledger, pue=pue, year=carbon["year"], traces=read_traces(ledger, trace_paths))
    write_table(table, whatif_path)
