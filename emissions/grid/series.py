"""Measured and forecast carbon intensity as files and tables: checked once, on the way in.

The project's own form is a CSV with `SERIES_COLUMNS`, one row a slot, a gap an empty value. Any other CSV is read by
its two columns, of time and of intensity; an export of Electricity Maps names its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emissions.grid.intensity import HOUR, KIND, KINDS, CarbonIntensity, SeriesIntensity
from emissions.grid.zones import Zone, find_zone
from emissions.tables import read_table, write_table

SERIES_COLUMNS = (
    "time", "zone", "carbon_intensity_g_per_kwh", "intensity_kind", "intensity_source", "basis",
)  # fmt: skip
# The dirtiest hour of any grid is below 2,000 gCO2e/kWh, marginal plants included.
HIGHEST_G_PER_KWH = 3000.0
LOWEST_LIFECYCLE_G_PER_KWH = 2.0  # the cleanest plants have 4 to 12 over their life: below is another unit
STEPS = tuple(pd.Timedelta(minutes=minutes) for minutes in (5, 10, 15, 30, 60, 180, 360, 720, 1440))

_EXPORT_TIME = "Datetime (UTC)"
_EXPORT_ZONE = "Zone id"
_EXPORT_INTENSITY = re.compile(
    r"carbon intensity gco.{0,3}eq/kwh \((life ?cycle|lca|direct)\)", re.IGNORECASE
)  # "₂" has been written in several ways


def series_intensity(
    times: Any,
    values_g_per_kwh: Sequence[float] | np.ndarray,
    *,
    zone: Zone,
    source: str,
    kind: str,
    basis: str = "",
    sources: Sequence[str] | None = None,
    step: pd.Timedelta | None = None,
) -> SeriesIntensity:
    """A signal from N times with a time zone (a list, a column, an index) and N values, NaN for a gap.

    A slot between the first and the last that is not there is a gap too.

    step: how long one value holds; None: the distance between most of them, one hour for a single value.

    Raises ValueError naming the first time that is without a zone, twice there or off the step, and the first
    value that cannot be gCO2e/kWh.
    """
    stamps = pd.DatetimeIndex(times)
    if len(stamps) == 0:
        raise ValueError(f"{source}: has no values")
    if stamps.tz is None:
        raise ValueError(f"{source}: time {stamps[0]} has no time zone")
    values = pd.Series(np.asarray(values_g_per_kwh, dtype=float), index=stamps.tz_convert("UTC")).sort_index()
    stamps = pd.DatetimeIndex(values.index)
    twice = stamps[stamps.duplicated()]
    if len(twice):
        raise ValueError(f"{source}: {twice[0]:%Y-%m-%d %H:%M} UTC is there twice")
    _check_values(values, source, kind)
    step = step or _step_of(stamps, source)
    off = stamps[stamps != stamps.floor(step)]
    if len(off):
        raise ValueError(f"{source}: {off[0]:%Y-%m-%d %H:%M} UTC is off the step of {step}")
    slots = pd.date_range(stamps[0], stamps[-1], freq=step)
    told = None
    if sources is not None:
        told = pd.Series(list(sources), index=pd.DatetimeIndex(times).tz_convert("UTC"), dtype="object").reindex(slots)
    years = sorted({slots[0].year, slots[-1].year})
    return SeriesIntensity(
        zone=zone,
        source=source,
        basis=basis or f"{slots[0]:%Y-%m-%d} to {slots[-1]:%Y-%m-%d}",
        year=years[0] if len(years) == 1 else None,
        kind=kind,
        step=step,
        values_g_per_kwh=values.reindex(slots),
        sources=told,
    )


def _step_of(times: pd.DatetimeIndex, source: str) -> pd.Timedelta:
    if len(times) == 1:
        return HOUR
    step = pd.Series(times[1:] - times[:-1]).mode().iloc[0]
    if step not in STEPS:
        raise ValueError(f"{source}: values are {step} apart; expected 5, 10, 15, 30 or 60 minutes, or hours of a day")
    return pd.Timedelta(step)


def _check_values(values: pd.Series, source: str, kind: str) -> None:
    wrong = values[(values < 0) | np.isinf(values) | (values > HIGHEST_G_PER_KWH)]
    if len(wrong):
        raise ValueError(
            f"{source}: {wrong.iloc[0]:g} at {wrong.index[0]:%Y-%m-%d %H:%M} UTC is no carbon intensity in gCO2e/kWh "
            f"(0 to {HIGHEST_G_PER_KWH:g})"
        )
    if kind.endswith("lifecycle") and values.max() < LOWEST_LIFECYCLE_G_PER_KWH:
        raise ValueError(f"{source}: at most {values.max():g}: this is not gCO2e/kWh; is it kg/kWh?")


def read_intensity_csv(
    path: str | Path,
    *,
    zone: Zone | str | None = None,
    time_column: str | None = None,
    value_column: str | None = None,
    kind: str | None = None,
) -> SeriesIntensity:
    """A signal from a CSV: the project's own form, an Electricity Maps export, or any two columns that are named.

    A time without a zone is UTC. `zone` and `kind` are needed where the file does not say them; a file of
    several zones gives the rows of `zone`.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    table = read_table(path)
    place = find_zone(zone) if isinstance(zone, str) else zone
    if set(SERIES_COLUMNS) <= set(table.columns):
        return _own_form(table, Path(path), place)
    columns = _columns(table, Path(path), time_column, value_column)
    kind = kind or _kind_of(columns[1])
    if kind is None:
        raise ValueError(f"{path}: column {columns[1]!r} does not say its kind: name one of {', '.join(KINDS)}")
    table, place = _rows_of_zone(table, Path(path), _EXPORT_ZONE, place)
    return series_intensity(
        _times(table[columns[0]], Path(path)),
        _numbers(table[columns[1]], Path(path)),
        zone=place,
        source=f"{Path(path).name}, column {columns[1]}",
        kind=kind,
    )


def write_intensity(intensity: CarbonIntensity, times: pd.DatetimeIndex, path: str | Path) -> None:
    """A signal at these slots, in the project's own form; what stood in for the source is told row by row."""
    table = pd.DataFrame({"time": times.strftime("%Y-%m-%dT%H:%M:%SZ"), "zone": intensity.zone.zone})
    table["carbon_intensity_g_per_kwh"] = intensity.lookup(times)
    table["intensity_kind"] = intensity.kind
    table["intensity_source"] = [intensity.source_at(times[[place]]) for place in range(len(times))]
    table["basis"] = intensity.basis
    write_table(table, path)


def _own_form(table: pd.DataFrame, path: Path, zone: Zone | None) -> SeriesIntensity:
    table, place = _rows_of_zone(table, path, "zone", zone)
    kinds = list(table["intensity_kind"].unique())
    if len(kinds) != 1:
        raise ValueError(f"{path}: holds several kinds of intensity ({', '.join(map(str, kinds))}): one file, one kind")
    sources = table["intensity_source"].astype(str)
    return series_intensity(
        _times(table["time"], path),
        _numbers(table["carbon_intensity_g_per_kwh"], path),
        zone=place,
        source=str(sources.mode().iloc[0]),
        kind=str(kinds[0]),
        basis=str(table["basis"].iloc[0]),
        sources=None if sources.nunique() == 1 else list(sources),
    )


def _columns(table: pd.DataFrame, path: Path, time: str | None, value: str | None) -> tuple[str, str]:
    found = [column for column in table.columns if _EXPORT_INTENSITY.search(column)]
    lifecycle = [column for column in found if _kind_of(column) == KIND]
    time = time or (_EXPORT_TIME if _EXPORT_TIME in table.columns else None)
    value = value or next(iter([*lifecycle, *found]), None)
    if time is None or value is None:
        raise ValueError(f"{path}: not an Electricity Maps export: name its columns of time and of carbon intensity")
    for column in (time, value):
        if column not in table.columns:
            raise ValueError(f"{path}: has no column {column!r}; it has {', '.join(map(str, table.columns))}")
    return time, value


def _kind_of(column: str) -> str | None:
    match = _EXPORT_INTENSITY.search(column)
    if match is None:
        return None
    return "average direct" if match.group(1).lower() == "direct" else KIND


def _rows_of_zone(table: pd.DataFrame, path: Path, column: str, zone: Zone | None) -> tuple[pd.DataFrame, Zone]:
    """The rows of a zone, and the zone: the only one of the file where none was asked for."""
    if column not in table.columns:
        if zone is None:
            raise ValueError(f"{path}: does not say its zone: name it")
        return table, zone
    held = list(table[column].astype(str).unique())
    if zone is None:
        if len(held) != 1:
            raise ValueError(f"{path}: holds {len(held)} zones: name one of {', '.join(sorted(held)[:8])}")
        return table, find_zone(held[0])
    rows = table[table[column] == zone.zone]
    if rows.empty:
        raise ValueError(f"{path}: has no rows of zone {zone.zone}; it has {', '.join(sorted(held)[:8])}")
    return rows, zone


def _times(column: pd.Series, path: Path) -> pd.DatetimeIndex:
    try:
        return pd.DatetimeIndex(pd.to_datetime(column, utc=True, format="ISO8601"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: column {column.name}: not a time ({str(error).splitlines()[0]})") from error


def _numbers(column: pd.Series, path: Path) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = column[numbers.isna() & column.notna()]
    if len(wrong):
        # the header is the file's first row
        raise ValueError(f"{path}: row {wrong.index[0] + 2}: {wrong.iloc[0]!r} is not a number ({column.name})")
    return numbers.to_numpy(dtype=float)


def csv_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `read_intensity_csv` from the config's `carbon.file`."""
    return {
        "path": settings["path"],
        "time_column": settings.get("time"),
        "value_column": settings.get("value"),
        "kind": settings.get("kind"),
    }
