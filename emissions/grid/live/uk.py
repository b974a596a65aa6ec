"""The Carbon Intensity API of Great Britain's system operator: half-hours, direct emissions, without a token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from emissions.grid.intensity import KINDS
from emissions.grid.live.http import Connection
from emissions.grid.live.source import Answer, Source, field, numbers_of, rows_of, spans, times_of
from emissions.grid.zones import Zone

HALF_HOUR = pd.Timedelta(minutes=30)
LONGEST = pd.Timedelta(days=14)  # of one request
LOWEST_G_PER_KWH = 5.0  # the whole of Great Britain has not been as low: below is another unit
TITLE = "UK Carbon Intensity API"


def _history(connection: Connection, zone: Zone, start: pd.Timestamp, end: pd.Timestamp) -> Answer:
    _check_zone(connection, zone)
    rows = []
    for first, last in spans(start, end, LONGEST):
        rows += rows_of(connection, connection.json(f"/intensity/{_text(first)}/{_text(last)}"), "data")
    return _answer(connection, rows, "actual", TITLE)


def _forecast(connection: Connection, zone: Zone, now: pd.Timestamp) -> Answer:
    _check_zone(connection, zone)
    rows = rows_of(connection, connection.json(f"/intensity/{_text(now.floor(HALF_HOUR))}/fw48h"), "data")
    return _answer(connection, rows, "forecast", f"{TITLE}, forecast")


def _check_zone(connection: Connection, zone: Zone) -> None:
    if zone.zone != "GB":
        raise connection.failure("this source has zone GB only")


def _answer(connection: Connection, rows: list[dict[str, Any]], which: str, source: str) -> Answer:
    """which: `actual`, null until it is known, or `forecast`."""
    held = [field(connection, row, "intensity") for row in rows]
    if not all(isinstance(intensity, dict) for intensity in held):
        raise connection.failure("the answer has no `intensity.actual`")
    values = numbers_of(connection, (field(connection, intensity, which) for intensity in held))
    known = values[~np.isnan(values)]
    odd = known[known != np.round(known)] if known.size and known.max() >= LOWEST_G_PER_KWH else known
    if odd.size:
        raise connection.failure(f"the answer has {odd[0]:g}, and the API gives whole gCO2/kWh: another unit?")
    starts = times_of(connection, (field(connection, row, "from") for row in rows))
    ends = times_of(connection, (field(connection, row, "to") for row in rows))
    if (ends - starts != HALF_HOUR).any():
        raise connection.failure("the answer is not of half-hours")
    return Answer(
        times=starts,
        values_g_per_kwh=values,
        kind=SOURCE.kind,
        source=source,
        basis=f"consumption mix, {which}",
        step=HALF_HOUR,
    )


def _text(time: pd.Timestamp) -> str:
    return f"{time:%Y-%m-%dT%H:%MZ}"


SOURCE = Source(
    name="uk",
    title=TITLE,
    url="https://api.carbonintensity.org.uk",
    credit="National Energy System Operator, Carbon Intensity API, CC BY 4.0",
    kind=KINDS[1],
    secrets=(),
    history=_history,
    forecast=_forecast,
)
