"""U.S. Energy Information Administration, API v2: hourly generation by fuel of each balancing authority (EIA-930)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from emissions.grid.intensity import HOUR
from emissions.grid.live.factors import BASIS, STORAGE, by_fuel, mix_intensity, unknown_text
from emissions.grid.live.http import Connection
from emissions.grid.live.source import Answer, Source, field, numbers_of, rows_of, same, times_of
from emissions.grid.zones import Zone

PAGE = 5000  # rows, the most that it gives
UNIT = "megawatthours"
FUELS = {
    "COL": "coal", "NG": "gas", "OIL": "oil", "NUC": "nuclear", "WAT": "hydro", "SUN": "solar", "WND": "wind",
    "GEO": "geothermal", "BIO": "biomass", "SNB": "solar", "WNB": "wind",  # SNB, WNB: with a battery of their own
    "PS": STORAGE, "BAT": STORAGE, "UES": STORAGE, "OES": STORAGE,
}  # fmt: skip
TITLE = "EIA v2"


def _history(connection: Connection, zone: Zone, start: pd.Timestamp, end: pd.Timestamp) -> Answer:
    respondent = _respondent(connection, zone)
    # An hour is named by its end in UTC: 01 is midnight to one o'clock.
    rows = _pages(connection, respondent, start + HOUR, end)
    same(connection, "balancing authority", respondent, (row.get("respondent") for row in rows))
    same(connection, "unit", UNIT, (row.get("value-units") for row in rows))
    if not rows:
        return _answer(pd.DatetimeIndex([], tz="UTC"), np.array([]), respondent, 0.0)
    table = pd.DataFrame(
        {
            "time": times_of(connection, (field(connection, row, "period") for row in rows), "%Y-%m-%dT%H") - HOUR,
            "fuel": [str(field(connection, row, "fueltype")) for row in rows],
            "mwh": numbers_of(connection, (field(connection, row, "value") for row in rows)),
        }
    ).drop_duplicates()
    if table.duplicated(["time", "fuel"]).any():
        raise connection.failure("the answer has two values for one hour and fuel")
    generation = by_fuel(table.pivot(index="time", columns="fuel", values="mwh"), FUELS)
    values, unknown = mix_intensity(generation)
    return _answer(pd.DatetimeIndex(generation.index), values, respondent, unknown)


def _answer(times: pd.DatetimeIndex, values: np.ndarray, respondent: str, unknown: float) -> Answer:
    source = f"{TITLE}, generation by fuel of {respondent}{unknown_text(unknown)}"
    return Answer(times=times, values_g_per_kwh=values, kind=SOURCE.kind, source=source, basis=BASIS)


def _pages(connection: Connection, respondent: str, first: pd.Timestamp, last: pd.Timestamp) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    total = 1
    while len(rows) < total:
        body = connection.json(
            "/v2/electricity/rto/fuel-type-data/data/",
            {
                "api_key": connection.secrets[0],
                "frequency": "hourly",
                "data[0]": "value",
                "facets[respondent][]": respondent,
                "start": f"{first:%Y-%m-%dT%H}",
                "end": f"{last:%Y-%m-%dT%H}",
                "sort[0][column]": "period",
                "sort[0][direction]": "asc",
                "sort[1][column]": "fueltype",  # else rows of one hour change places between pages
                "sort[1][direction]": "asc",
                "offset": len(rows),
                "length": PAGE,
            },
        )
        page = rows_of(connection, body, "response", "data")
        same(connection, "frequency", "hourly", [body["response"].get("frequency")])
        total = int(numbers_of(connection, [field(connection, body["response"], "total")])[0])
        rows += page
        if not page and len(rows) < total:
            raise connection.failure(f"the answer ended after {len(rows)} of {total} rows")
    return rows


def _respondent(connection: Connection, zone: Zone) -> str:
    """The balancing authority: the last part of the zone's id."""
    if zone.zone == "US":
        return "US48"
    parts = zone.zone.split("-")
    if parts[0] != "US" or len(parts) != 3 or parts[1] in ("AK", "HI"):
        raise connection.failure("this source has the balancing authorities of the contiguous United States only")
    return parts[2]


SOURCE = Source(
    name="eia",
    title=TITLE,
    url="https://api.eia.gov",
    credit="U.S. Energy Information Administration (Form EIA-930)",
    history=_history,
)
