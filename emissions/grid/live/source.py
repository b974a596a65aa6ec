"""What a live source is, and what its answer must be before it is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from emissions.grid.intensity import HOUR, KIND, SeriesIntensity, slots_of
from emissions.grid.series import series_intensity
from emissions.grid.zones import Zone

if TYPE_CHECKING:
    from emissions.grid.live.http import Connection

# Services give the slot before the first, or whole days, beside what was asked for: that is cut off. More is an answer
# to another question.
MARGIN = pd.Timedelta(days=1)
FURTHEST_FORECAST = pd.Timedelta(days=15)


class SourceError(ValueError):
    """A live source has failed. One line: the source, the zone, what happened; never a token.

    status: of HTTP, where that is what happened.
    """

    def __init__(self, source: str, zone: str, what: str, status: int | None = None):
        super().__init__(f"{source}: {zone}: {what}")
        self.what = what
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a source said, in gCO2e/kWh, not yet checked.

    times: starts of slots, (N,); values_g_per_kwh: (N,), NaN for a gap; told: the source of each slot, where they
    differ.
    """

    times: pd.DatetimeIndex
    values_g_per_kwh: np.ndarray
    kind: str
    source: str
    basis: str
    step: pd.Timedelta = HOUR
    told: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """One service.

    kind: that its answers have, or are asked to have.
    credit: what to print wherever its values are shown.
    secrets: what it must be told beside the question, by the end of the environment variable's name.
    history: the answer about [start, end), whole hours in UTC; forecast: from `now` on.
    """

    name: str
    title: str
    url: str
    credit: str
    history: Callable[[Connection, Zone, pd.Timestamp, pd.Timestamp], Answer]
    forecast: Callable[[Connection, Zone, pd.Timestamp], Answer] | None = None
    kind: str = KIND
    secrets: tuple[str, ...] = ("TOKEN",)


def spans(start: pd.Timestamp, end: pd.Timestamp, longest: pd.Timedelta) -> Iterator[tuple[pd.Timestamp, pd.Timestamp]]:
    """[start, end) in parts of at most `longest`, one request each."""
    while start < end:
        yield start, min(start + longest, end)
        start += longest


def rows_of(connection: Connection, body: Any, *path: str) -> list[dict[str, Any]]:
    """The list of objects at `path` in a JSON answer. Raises SourceError where the documented shape is not there."""
    for key in path:
        body = body.get(key) if isinstance(body, dict) else None
    if not isinstance(body, list) or not all(isinstance(row, dict) for row in body):
        raise connection.failure(f"the answer has no list `{'.'.join(path)}`")
    return body


def field(connection: Connection, row: Mapping[str, Any], name: str) -> Any:
    """A field that the documentation promises. Raises SourceError where it is not there."""
    if name not in row:
        raise connection.failure(f"the answer has no `{name}`: another unit or version of the API?")
    return row[name]


def times_of(connection: Connection, texts: Iterable[Any], form: str = "ISO8601") -> pd.DatetimeIndex:
    """Times in UTC from N texts. Raises SourceError for one that is not a time."""
    try:
        return pd.DatetimeIndex(pd.to_datetime([str(text) for text in texts], utc=True, format=form))
    except ValueError as error:
        raise connection.failure(f"the answer holds a time that is none ({str(error).splitlines()[0]})") from None


def numbers_of(connection: Connection, values: Iterable[Any]) -> np.ndarray:
    """N numbers, NaN for null. Raises SourceError for anything else."""
    held = list(values)
    try:
        return np.array([np.nan if value is None or value == "" else float(value) for value in held], dtype=float)
    except (TypeError, ValueError):
        raise connection.failure("the answer holds a value that is not a number") from None


def same(connection: Connection, what: str, asked: str, answered: Iterable[Any]) -> None:
    """Raise SourceError unless every answer is about what was asked for."""
    other = next((value for value in answered if value != asked), asked)
    if other != asked:
        raise connection.failure(f"asked for {what} {asked}, and the answer has {str(other)[:40]!r}")


def past_series(connection: Connection, answer: Answer, zone: Zone, start: datetime, end: datetime) -> SeriesIntensity:
    """An answer as a signal over [start, end), NaN where it has nothing.

    Raises SourceError for times that were not asked for, and for values that cannot be gCO2e/kWh.
    """
    slots = slots_of(start, end, answer.step)
    return _series(connection, answer, zone, slots, slots[0] - MARGIN, slots[-1] + MARGIN)


def coming_series(connection: Connection, answer: Answer, zone: Zone, now: pd.Timestamp) -> SeriesIntensity:
    """An answer as a signal from the slot of `now` to its last slot. Raises SourceError as `past_series`."""
    first, latest = now.floor(answer.step), now + FURTHEST_FORECAST
    if len(answer.times) == 0:
        raise connection.failure("the answer holds no forecast")
    last = min(max(answer.times.max(), first), latest)
    slots = pd.date_range(first, last, freq=answer.step)
    return _series(connection, answer, zone, slots, first - MARGIN, latest)


def _series(
    connection: Connection,
    answer: Answer,
    zone: Zone,
    slots: pd.DatetimeIndex,
    earliest: pd.Timestamp,
    latest: pd.Timestamp,
) -> SeriesIntensity:
    table = pd.DataFrame({"time": answer.times, "value": answer.values_g_per_kwh})
    table["told"] = answer.source if answer.told is None else answer.told
    table = table.drop_duplicates()  # where one page ends and the next begins
    _check_times(connection, pd.DatetimeIndex(table["time"]), slots, answer.step, earliest, latest)
    table = table.set_index("time").reindex(slots)
    try:
        return series_intensity(
            slots,
            table["value"].to_numpy(dtype=float),
            zone=zone,
            source=answer.source,
            kind=answer.kind,
            basis=answer.basis,
            sources=None if answer.told is None else list(table["told"].fillna(answer.source)),
            step=answer.step,
        )
    except ValueError as error:
        raise connection.failure(f"the answer is refused: {error}") from None


def _check_times(
    connection: Connection,
    times: pd.DatetimeIndex,
    slots: pd.DatetimeIndex,
    step: pd.Timedelta,
    earliest: pd.Timestamp,
    latest: pd.Timestamp,
) -> None:
    asked = f"asked for {slots[0]:%Y-%m-%d %H:%M} to {slots[-1] + step:%Y-%m-%d %H:%M} UTC"
    for wrong, why in (
        ((times < earliest) | (times > latest), "which was not asked for"),
        (times.duplicated(), "with two values"),
        (times != times.floor(step), f"which is off the step of {step}"),
    ):
        if wrong.any():
            raise connection.failure(f"{asked}, and the answer has {times[wrong][0]:%Y-%m-%d %H:%M} UTC, {why}")
    if len(times) and not times.isin(slots).any():
        raise connection.failure(f"{asked}, and the answer has {times[0]:%Y-%m-%d %H:%M} UTC and nothing within")
