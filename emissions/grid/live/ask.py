"""History and forecasts of live sources: from the cache, else the service, else an older answer, else the tables."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from emissions.grid.intensity import KIND, CarbonIntensity, SeriesIntensity, intensity_of, slots_of, utc, with_fallback
from emissions.grid.live import NAMES, eia, electricity_maps, ember, entsoe, uk, watttime
from emissions.grid.live.cache import FORECAST, HISTORY, Entry, Place, keep
from emissions.grid.live.http import Connection
from emissions.grid.live.settings import LiveSettings
from emissions.grid.live.source import Source, SourceError, coming_series, past_series
from emissions.grid.series import series_intensity
from emissions.grid.zones import Zone

__all__ = ["NAMES", "SOURCES", "LiveSettings", "SourceError", "forecast", "history", "history_or_tables"]

logger = logging.getLogger(__name__)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        electricity_maps.SOURCE, uk.SOURCE, entsoe.SOURCE, eia.SOURCE, ember.SOURCE, watttime.SOURCE,
    )
}  # fmt: skip


def history(name: str, zone: Zone, start: datetime, end: datetime, settings: LiveSettings) -> SeriesIntensity:
    """What a source says of the hours that [start, end) touches, in gCO2e/kWh, NaN where it has nothing.

    An answer in the cache is used where it is fresh, or where the source fails: then `source` has its age.

    Raises SourceError naming the source, the zone and what happened; ValueError for an unknown source, a base URL
    that is none, or an end that is not after the start.
    """
    source = _source(name)
    first, last = utc(start).floor("h"), utc(end).ceil("h")
    if last <= first:
        raise ValueError(f"{name}: the end {utc(end)} is not after the start {utc(start)}")
    url = settings.base_url(name, source.url)
    place = Place(settings.cache_folder(), name, zone, HISTORY, url)
    now = pd.Timestamp(datetime.now(UTC))
    held = place.entries(first, last)
    for entry in held:
        if entry.is_fresh(now, settings.max_age_h):
            return entry.part(first, last)
    try:
        with _connection(source, zone, url, settings) as connection:
            answer = source.history(connection, zone, first, last)
            series = past_series(connection, answer, zone, first, last)
    except SourceError as error:
        return _older(error, held, first, last, now)
    _keep(place, first, last, now, series)
    return series


def forecast(name: str, zone: Zone, settings: LiveSettings, now: datetime) -> SeriesIntensity:
    """What a source expects from the slot of `now` on, in gCO2e/kWh; it says itself how far.

    The cache is used as in `history`, with the age of an answer at `now`.

    Raises ValueError for a source without forecasts, and as `history`.
    """
    source = _source(name)
    if source.forecast is None:
        able = ", ".join(other.name for other in SOURCES.values() if other.forecast)
        raise ValueError(f"{name}: has no forecasts; {able} have")
    moment = utc(now)
    url = settings.base_url(name, source.url)
    place = Place(settings.cache_folder(), name, zone, FORECAST, url)
    held = place.entries(moment, moment + pd.Timedelta(seconds=1))
    for entry in held:
        if 0 <= entry.age_h(moment) <= settings.max_age_h:
            return entry.part(moment, entry.end)
    try:
        with _connection(source, zone, url, settings) as connection:
            series = coming_series(connection, source.forecast(connection, zone, moment), zone, moment)
    except SourceError as error:
        older = [entry for entry in held if entry.fetched_at <= moment]
        return _older(error, older, moment, older[0].end if older else moment, moment)
    slots = series.values_g_per_kwh.index
    _keep(place, slots[0], slots[-1] + series.step, moment, series)
    return series


def history_or_tables(
    name: str, zone: Zone, start: datetime, end: datetime, settings: LiveSettings, year: int, fallback: bool
) -> CarbonIntensity:
    """`history`, with the tables of `year` in its gaps, or in its place where the source fails, if `fallback` allows.

    `source_at` says where they stand in, and a warning why. The tables are average lifecycle: they fill no gap of
    another kind, where pricing then raises GapError.

    Raises SourceError where the source fails and nothing may stand in; ValueError as `history`.
    """
    try:
        series = history(name, zone, start, end, settings)
    except SourceError as error:
        if not fallback:
            raise
        source = SOURCES[name]
        if source.kind != KIND:
            raise SourceError(
                name,
                zone.zone,
                f"{error.what}; the tables are {KIND} and cannot stand in for {source.kind}",
                error.status,
            ) from None
        tables = intensity_of(zone, year)
        logger.warning("%s; %s stands in", error, tables.source)
        return with_fallback(_nothing(source, zone, start, end, error), tables)
    missing = int(series.values_g_per_kwh.isna().sum())
    if not missing or not fallback:
        return series
    told = f"{name}: {zone.zone}: {missing} of {len(series.values_g_per_kwh)} slots have no value"
    if series.kind != KIND:
        logger.warning("%s, and the tables, which are %s, cannot stand in for %s", told, KIND, series.kind)
        return series
    tables = intensity_of(zone, year)
    logger.warning("%s; %s stands in there", told, tables.source)
    return with_fallback(series, tables)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"unknown source of carbon intensity {name!r}; there are {', '.join(SOURCES)}")
    return SOURCES[name]


def _connection(source: Source, zone: Zone, url: str, settings: LiveSettings) -> Connection:
    try:
        secrets = settings.secrets(source.name, source.secrets)
    except (ValueError, OSError) as error:
        raise SourceError(source.name, zone.zone, str(error)) from None
    return Connection(source=source.name, zone=zone.zone, url=url, secrets=secrets, timeout_s=settings.timeout_s)


def _older(
    error: SourceError, held: list[Entry], start: pd.Timestamp, end: pd.Timestamp, now: pd.Timestamp
) -> SeriesIntensity:
    """The newest answer that covers the span, with its age in its source; raises `error` where there is none."""
    if not held:
        raise error
    age = f"cached {held[0].age_h(now):.1f} h ago"
    logger.warning("%s; using the answer %s", error, age)
    series = held[0].part(start, end)
    told = None if series.sources is None else series.sources + f", {age}"
    return replace(series, source=f"{series.source}, {age}", sources=told)


def _keep(
    place: Place, start: pd.Timestamp, end: pd.Timestamp, fetched_at: pd.Timestamp, series: SeriesIntensity
) -> None:
    try:
        keep(place, start, end, fetched_at, series)
    except OSError as error:
        logger.warning("%s: the answer is not cached: %s", place.source, error)


def _nothing(source: Source, zone: Zone, start: datetime, end: datetime, error: SourceError) -> SeriesIntensity:
    """A source that has failed, as a signal without a value, whose name says why."""
    slots = slots_of(start, end)
    told = f"{source.title} ({error.what})"
    return series_intensity(slots, np.full(len(slots), np.nan), zone=zone, source=told, kind=source.kind)
