"""WattTime, API v3: marginal intensity (MOER) in steps of 5 minutes; never mixed with averages."""

from __future__ import annotations

from typing import Any

import pandas as pd

from emissions.grid.intensity import KINDS
from emissions.grid.live.http import Connection
from emissions.grid.live.source import Answer, Source, SourceError, field, numbers_of, rows_of, same, spans, times_of
from emissions.grid.zones import Zone

SIGNAL = "co2_moer"
UNIT = "lbs_co2_per_mwh"
KG_PER_LB = 0.45359237  # exactly; kg/MWh is g/kWh
LONGEST = pd.Timedelta(days=32)  # of one request
HORIZON_H = 72
TITLE = "WattTime v3"


class _Login:
    """The token of a session of 30 minutes, fetched when it is needed and once more when it has run out."""

    def __init__(self, connection: Connection):
        self._connection, self._token = connection, ""

    def json(self, path: str, params: dict[str, Any]) -> Any:
        if self._token:
            try:
                return self._ask(path, params)
            except SourceError as error:
                if error.status != 401:
                    raise
        self._renew()
        return self._ask(path, params)

    def _ask(self, path: str, params: dict[str, Any]) -> Any:
        return self._connection.json(path, params, {"authorization": f"Bearer {self._token}"})

    def _renew(self) -> None:
        user, password = self._connection.secrets
        body = self._connection.json("/login", auth=(user, password))
        token = body.get("token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise self._connection.failure("the login has no token")
        self._connection.hide(token)
        self._token = token


def _history(connection: Connection, zone: Zone, start: pd.Timestamp, end: pd.Timestamp) -> Answer:
    login = _Login(connection)
    region = _region(connection, login, zone)
    bodies = [
        login.json(
            "/v3/historical",
            {"region": region, "signal_type": SIGNAL, "start": first.isoformat(), "end": last.isoformat()},
        )
        for first, last in spans(start, end, LONGEST)
    ]
    return _answer(connection, bodies, region, "historical")


def _forecast(connection: Connection, zone: Zone, now: pd.Timestamp) -> Answer:
    login = _Login(connection)
    region = _region(connection, login, zone)
    body = login.json("/v3/forecast", {"region": region, "signal_type": SIGNAL, "horizon_hours": HORIZON_H})
    return _answer(connection, [body], region, "forecast")


def _region(connection: Connection, login: _Login, zone: Zone) -> str:
    """WattTime's region at the zone's point, which may be a part of the zone."""
    point = {"latitude": zone.latitude_deg, "longitude": zone.longitude_deg, "signal_type": SIGNAL}
    body = login.json("/v3/region-from-loc", point)
    region = body.get("region") if isinstance(body, dict) else None
    if not isinstance(region, str) or not region:
        raise connection.failure("no region at the zone's point")
    same(connection, "signal", SIGNAL, [body.get("signal_type", SIGNAL)])
    return region


def _answer(connection: Connection, bodies: list[Any], region: str, which: str) -> Answer:
    rows = [row for body in bodies for row in rows_of(connection, body, "data")]
    metas = [field(connection, body, "meta") for body in bodies]
    if not all(isinstance(meta, dict) for meta in metas):
        raise connection.failure("the answer has no `meta`")
    # asked for one signal, some plans get another: an average, or damage to health, which is not carbon at all
    for what, asked, name in (("signal", SIGNAL, "signal_type"), ("unit", UNIT, "units"), ("region", region, "region")):
        same(connection, what, asked, (meta.get(name) for meta in metas))
    period_s = numbers_of(connection, (field(connection, meta, "data_point_period_seconds") for meta in metas))
    same(connection, "step in seconds", "300", (f"{seconds:g}" for seconds in period_s))
    lbs_per_mwh = numbers_of(connection, (field(connection, row, "value") for row in rows))
    return Answer(
        times=times_of(connection, (field(connection, row, "point_time") for row in rows)),
        values_g_per_kwh=lbs_per_mwh * KG_PER_LB,
        kind=SOURCE.kind,
        source=f"{TITLE} {SIGNAL}, region {region} at the zone's point" + (", forecast" if which == "forecast" else ""),
        basis=f"marginal operating emissions rate, {which}",
        step=pd.Timedelta(minutes=5),
    )


SOURCE = Source(
    name="watttime",
    title=TITLE,
    url="https://api.watttime.org",
    credit="WattTime (watttime.org)",
    kind=KINDS[3],
    secrets=("USER", "PASSWORD"),
    history=_history,
    forecast=_forecast,
)
