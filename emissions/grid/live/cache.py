"""Answers of live sources on disk: the project's intensity CSV, and a JSON beside it that says when it was fetched.

An answer about a span that ended 48 h before it was fetched, and without gaps, is final. Others are fresh for
`max_age_h`, and may stand in, however old, for a source that fails.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from emissions.files import atomic_path
from emissions.grid.intensity import SeriesIntensity, digest, slots_of
from emissions.grid.series import SERIES_COLUMNS, series_intensity, write_intensity
from emissions.grid.zones import Zone
from emissions.tables import read_table

FINAL_AFTER = pd.Timedelta(hours=48)  # by then services have replaced their estimates
HISTORY, FORECAST = "history", "forecast"


@dataclass(frozen=True)
class Place:
    """Where the answers to one kind of question are. url: the base URL, which holds no secret."""

    folder: Path
    source: str
    zone: Zone
    question: str
    url: str

    def stem(self, start: pd.Timestamp, end: pd.Timestamp) -> str:
        """Name of an answer's files; there is one forecast only, the newest."""
        span = f"{start.isoformat()} {end.isoformat()}" if self.question == HISTORY else ""
        return f"{self._begin()}{digest(self.url, span)}"

    def entries(self, start: pd.Timestamp, end: pd.Timestamp) -> list[Entry]:
        """The answers that cover [start, end) and can be read, the newest first."""
        found = [_entry(self, path, start, end) for path in self.folder.glob(f"{self._begin()}*.json")]
        return sorted((entry for entry in found if entry), key=lambda entry: entry.fetched_at, reverse=True)

    def _begin(self) -> str:
        return f"{self.source}-{self.zone.zone}-{self.question}-"


@dataclass(frozen=True)
class Entry:
    """An answer, and when it was fetched."""

    series: SeriesIntensity
    start: pd.Timestamp
    end: pd.Timestamp
    fetched_at: pd.Timestamp

    def age_h(self, now: pd.Timestamp) -> float:
        return (now - self.fetched_at) / pd.Timedelta(hours=1)

    def is_fresh(self, now: pd.Timestamp, max_age_h: float) -> bool:
        final = self.end <= self.fetched_at - FINAL_AFTER and not self.series.values_g_per_kwh.isna().any()
        return final or 0 <= self.age_h(now) <= max_age_h

    def part(self, start: pd.Timestamp, end: pd.Timestamp) -> SeriesIntensity:
        """The signal over the slots that [start, end) touches."""
        slots = slots_of(start, end, self.series.step)
        told = self.series.sources
        return replace(
            self.series,
            values_g_per_kwh=self.series.values_g_per_kwh.reindex(slots),
            sources=None if told is None else told.reindex(slots),
        )


@dataclass(frozen=True)
class _Beside:
    """What the JSON holds."""

    url: str
    start: str
    end: str
    fetched_at: str
    source: str
    step_s: float
    data_hash: str


def keep(
    place: Place, start: pd.Timestamp, end: pd.Timestamp, fetched_at: pd.Timestamp, series: SeriesIntensity
) -> None:
    """Write an answer, whole or not at all. Raises OSError."""
    stem = place.stem(start, end)
    write_intensity(series, pd.DatetimeIndex(series.values_g_per_kwh.index), place.folder / f"{stem}.csv")
    beside = _Beside(
        url=place.url,
        start=start.isoformat(),
        end=end.isoformat(),
        fetched_at=fetched_at.isoformat(),
        source=series.source,
        step_s=series.step.total_seconds(),
        data_hash=series.data_hash,
    )
    with atomic_path(place.folder / f"{stem}.json") as temporary:
        temporary.write_text(json.dumps(asdict(beside), indent=2) + "\n", encoding="utf-8")


def _entry(place: Place, path: Path, start: pd.Timestamp, end: pd.Timestamp) -> Entry | None:
    """An answer; None for one of another server or span, and for two files that are damaged or no pair."""
    try:
        beside = _Beside(**json.loads(path.read_text(encoding="utf-8")))
        times = [pd.Timestamp(text) for text in (beside.start, beside.end, beside.fetched_at)]
        if beside.url != place.url or start < times[0] or times[1] < end:
            return None
        table = read_table(path.with_suffix(".csv"), SERIES_COLUMNS)
        kinds = list(table["intensity_kind"].unique())
        told = list(table["intensity_source"].astype(str))
        series = series_intensity(
            pd.to_datetime(table["time"], utc=True, format="ISO8601"),
            table["carbon_intensity_g_per_kwh"].to_numpy(dtype=float),
            zone=place.zone,
            source=beside.source,
            kind=str(kinds[0]),
            basis=str(table["basis"].iloc[0]),
            sources=told if set(told) != {beside.source} else None,
            step=pd.Timedelta(seconds=beside.step_s),
        )
        whole = len(kinds) == 1 and set(table["zone"]) == {place.zone.zone} and series.data_hash == beside.data_hash
        return Entry(series, *times) if whole else None
    except (ValueError, TypeError, LookupError, OSError):
        return None  # it is fetched anew, and then replaced
