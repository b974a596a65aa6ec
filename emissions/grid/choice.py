"""Which carbon intensity a study is priced at: the config's `carbon` section, and nothing else, decides."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from emissions.grid.intensity import KIND, CarbonIntensity, intensity_of, with_fallback
from emissions.grid.series import read_intensity_csv
from emissions.grid.zones import find_zone

logger = logging.getLogger(__name__)

TABLES, FILE = "tables", "file"  # every other value of `carbon.intensity` names a live source


def chosen_intensity(carbon: Mapping[str, Any], path: str | Path | None = None) -> CarbonIntensity:
    """The study's signal: the tables, or the file at `path` with the tables in its gaps where `fallback` allows.

    carbon: `zone`, `year`, and where not the tables are used `intensity`, `fallback` and `file`.

    Raises ValueError for an unknown zone, a file that is no signal, or one of another kind than the tables which
    they would have to stand in for; OSError for a file that cannot be read.
    """
    zone = find_zone(carbon["zone"])
    if path is None:
        return intensity_of(zone, carbon["year"])
    named = carbon["file"] if carbon["intensity"] == FILE else {}
    series = read_intensity_csv(
        path,
        zone=zone,
        time_column=named.get("time"),
        value_column=named.get("value"),
        kind=named.get("kind"),
    )
    return with_fallback(series, intensity_of(zone, carbon["year"])) if may_fall_back(carbon, series.kind) else series


def intensity_ahead(carbon: Mapping[str, Any], now: datetime) -> CarbonIntensity:
    """The study's signal from `now` on: what starts, pauses and plans go by.

    The tables; the file, with the tables after its end; or the live source's forecast, with the tables after its
    horizon, and in its place where it fails or has none. Asks a live source, unless its answer is in the cache.

    Raises ValueError for a source that fails or has no forecast, where nothing may stand in.
    """
    zone = find_zone(carbon["zone"])
    if carbon["intensity"] == TABLES:
        return intensity_of(zone, carbon["year"])
    if carbon["intensity"] == FILE:
        return chosen_intensity(carbon, carbon["file"]["path"])
    from emissions.grid.live import SOURCES, LiveSettings, SourceError, forecast  # httpx, which the tables do not need

    tables = intensity_of(zone, carbon["year"])
    try:
        ahead = forecast(carbon["intensity"], zone, LiveSettings.from_config(carbon["live"]), now)
    except ValueError as error:
        source = SOURCES[carbon["intensity"]]
        silent = isinstance(error, SourceError) or source.forecast is None
        if not silent or not may_fall_back(carbon, source.kind):
            raise
        logger.warning("%s; %s stands in", error, tables.source)
        return tables
    return with_fallback(ahead, tables) if may_fall_back(carbon, ahead.kind) else ahead


def intensity_behind(carbon: Mapping[str, Any], start: datetime, end: datetime) -> CarbonIntensity:
    """The study's signal over hours that have passed, which a live source may not tell all of.

    Raises ValueError as `chosen_intensity` and `live.history_or_tables`.
    """
    if carbon["intensity"] in (TABLES, FILE):
        return chosen_intensity(carbon, carbon["file"]["path"] if carbon["intensity"] == FILE else None)
    from emissions.grid.live import LiveSettings, history_or_tables

    settings = LiveSettings.from_config(carbon["live"])
    zone = find_zone(carbon["zone"])
    return history_or_tables(carbon["intensity"], zone, start, end, settings, carbon["year"], carbon["fallback"])


def may_fall_back(carbon: Mapping[str, Any], kind: str) -> bool:
    """Whether the tables may stand in: allowed by the config, and of the same kind as they are."""
    return bool(carbon["fallback"]) and kind == KIND


def check_carbon(carbon: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first key of the config's `carbon` whose zone is unknown or whose file is not named.

    Raises FileNotFoundError for a file that is named and is not there.
    """
    for key, zone in (("zone", carbon["zone"]), *(("pue_by_zone", zone) for zone in carbon["pue_by_zone"])):
        try:
            find_zone(zone)
        except ValueError as error:
            raise ValueError(f"config: `carbon.{key}`: {error}") from None
    if carbon["intensity"] == FILE:
        path = carbon["file"]["path"]
        if path is None:
            raise ValueError("config: `carbon.file.path`: name the CSV, since `carbon.intensity` is file")
        if not Path(path).is_file():
            raise FileNotFoundError(f"config: `carbon.file.path`: {path}: no such file")
