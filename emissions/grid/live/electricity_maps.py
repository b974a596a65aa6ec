"""Electricity Maps, API v3: hourly, most of the world, consumption-based average intensity."""

from __future__ import annotations

from typing import Any

import pandas as pd

from emissions.grid.intensity import HOUR, KINDS
from emissions.grid.live.http import Connection
from emissions.grid.live.source import Answer, Source, field, numbers_of, rows_of, same, spans, times_of
from emissions.grid.zones import Zone

LONGEST = pd.Timedelta(days=10)  # of one request for hourly values
DAY = pd.Timedelta(hours=24)
ASKED = "lifecycle"
KIND_BY_FACTORS = {"lifecycle": KINDS[0], "direct": KINDS[1]}
STEPS = {"hourly": HOUR, "15_minutes": pd.Timedelta(minutes=15), "5_minutes": pd.Timedelta(minutes=5)}
TITLE = "Electricity Maps v3"


def _history(connection: Connection, zone: Zone, start: pd.Timestamp, end: pd.Timestamp) -> Answer:
    """`history`, which every plan has, where the last 24 hours are enough; else `past-range`."""
    if start >= pd.Timestamp.now("UTC").ceil("h") - DAY:
        bodies = [(_ask(connection, zone, "history"), "history")]
    else:
        bodies = [
            (_ask(connection, zone, "past-range", start=_text(first), end=_text(last)), "data")
            for first, last in spans(start, end, LONGEST)
        ]
    rows = [row for body, key in bodies for row in rows_of(connection, body, key)]
    same(connection, "zone", zone.zone, (row.get("zone", zone.zone) for row in rows))
    return _answer(connection, rows, [body for body, _ in bodies], "measured")


def _forecast(connection: Connection, zone: Zone, now: pd.Timestamp) -> Answer:
    body = _ask(connection, zone, "forecast")
    return _answer(connection, rows_of(connection, body, "forecast"), [body], "forecast")


def _ask(connection: Connection, zone: Zone, what: str, **more: str) -> Any:
    body = connection.json(
        f"/v3/carbon-intensity/{what}",
        {"zone": zone.zone, "emissionFactorType": ASKED, **more},
        {"auth-token": connection.secrets[0]},
    )
    same(connection, "zone", zone.zone, [body.get("zone") if isinstance(body, dict) else None])
    return body


def _answer(connection: Connection, rows: list[dict[str, Any]], bodies: list[dict[str, Any]], basis: str) -> Answer:
    granularities = {body.get("temporalGranularity", "hourly") for body in bodies}
    granularities |= {row["temporalGranularity"] for row in rows if "temporalGranularity" in row}
    if len(granularities) != 1 or not granularities <= set(STEPS):
        raise connection.failure(f"the answer is {', '.join(map(str, granularities))}, not one of {', '.join(STEPS)}")
    factors = {row.get("emissionFactorType", ASKED) for row in rows} or {ASKED}
    if len(factors) != 1 or not factors <= set(KIND_BY_FACTORS):
        raise connection.failure(f"the answer's emission factors are {' and '.join(sorted(map(str, factors)))}")
    estimated = [bool(row.get("isEstimated")) for row in rows]
    source = TITLE if basis == "measured" else f"{TITLE}, forecast"
    return Answer(
        times=times_of(connection, (field(connection, row, "datetime") for row in rows)),
        values_g_per_kwh=numbers_of(connection, (field(connection, row, "carbonIntensity") for row in rows)),
        kind=KIND_BY_FACTORS[factors.pop()],
        source=source,
        basis=f"consumption mix, {basis}",
        step=STEPS[granularities.pop()],
        told=[f"{source}, estimated" if guess else source for guess in estimated] if any(estimated) else None,
    )


def _text(time: pd.Timestamp) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


SOURCE = Source(
    name="electricity_maps",
    title=TITLE,
    url="https://api.electricitymaps.com",
    credit="Electricity Maps (electricitymaps.com)",
    history=_history,
    forecast=_forecast,
)
