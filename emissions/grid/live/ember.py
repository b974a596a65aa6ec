"""Ember, API v1: monthly means by country."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pycountry

from emissions.grid.live.http import Connection
from emissions.grid.live.source import Answer, Source, field, numbers_of, rows_of, same, times_of
from emissions.grid.zones import Zone

VALUE = "emissions_intensity_gco2_per_kwh"  # the name is the unit
MARGIN = pd.Timedelta(days=100)  # months beside those that were asked for are cut off, as hours are elsewhere
TITLE = "Ember v1"
SOURCE_TEXT = f"{TITLE}, monthly mean"


def _history(connection: Connection, zone: Zone, start: pd.Timestamp, end: pd.Timestamp) -> Answer:
    """Each month's mean, at every hour that was asked for."""
    code = _country(connection, zone)
    first, last = _month(start), _month(end - pd.Timedelta(seconds=1))
    body = connection.json(
        "/v1/carbon-intensity/monthly",
        {
            "entity_code": code,
            "start_date": f"{first:%Y-%m}",
            "end_date": f"{last:%Y-%m}",
            "api_key": connection.secrets[0],
        },
    )
    rows = rows_of(connection, body, "data")
    same(connection, "country", code, (row.get("entity_code") for row in rows))
    months = times_of(connection, (field(connection, row, "date") for row in rows))
    values = numbers_of(connection, (field(connection, row, VALUE) for row in rows))
    if months.has_duplicates:
        raise connection.failure(f"the answer has two values for {months[months.duplicated()][0]:%Y-%m}")
    within = (months >= first) & (months <= last)
    odd = (months < first - MARGIN) | (months > last + MARGIN) | (months != months.normalize()) | (months.day != 1)
    if len(months) and (odd.any() or not within.any()):
        raise connection.failure(
            f"asked for {first:%Y-%m} to {last:%Y-%m}, and the answer has {months[odd | ~within][0]:%Y-%m-%d}, "
            "which was not asked for"
        )
    hours = pd.date_range(start, end, freq="h", inclusive="left")
    by_hour = pd.Series(values, index=months).reindex([_month(hour) for hour in hours])
    told = ~np.isnan(by_hour.to_numpy(dtype=float))
    return Answer(
        times=hours[told],
        values_g_per_kwh=by_hour.to_numpy(dtype=float)[told],
        kind=SOURCE.kind,
        source=SOURCE_TEXT,
        basis="production mix, monthly mean: says nothing about hours",
    )


def _month(time: pd.Timestamp) -> pd.Timestamp:
    return time.normalize().replace(day=1)


def _country(connection: Connection, zone: Zone) -> str:
    """The three-letter code of a zone that is a whole country."""
    if zone.zone != zone.country:
        raise connection.failure(f"this source has whole countries only, such as {zone.country}")
    if zone.country == "XK":
        return "XKX"
    country = pycountry.countries.get(alpha_2=zone.country)
    if country is None:
        raise connection.failure("this zone is not a country")
    return str(country.alpha_3)


SOURCE = Source(
    name="ember",
    title=TITLE,
    url="https://api.ember-energy.org",
    credit="Contains data from Ember, CC BY 4.0",
    history=_history,
)
