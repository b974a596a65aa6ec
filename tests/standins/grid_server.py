"""All live sources of carbon intensity on this machine, in their documented shapes, for any span that is asked for.

    with GridServer() as server:
        server.next("429", "truncated")     # what the next requests for data get; then `server.always`
        os.environ["FOOTPRINT_EIA_URL"] = server.url

Faults: "429", "500", "401", "truncated" (fewer bytes than announced), "half" (half a document, announced as such),
"unit" (another unit than documented), "last_year" (a year before what was asked for), "zone" (another zone), "empty"
(nothing), "drip" (a byte now and then), "redirect", and those of one source: "signal", "mixed", "direct", "short",
"beside", "revoked" (the session's token is over). Logins and questions about regions do not count as requests for data.
"""

from __future__ import annotations

import base64
import calendar
import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TOKEN = "s3cret+token/of=tests"
USER, PASSWORD = "somebody", "pass word&more"
HOUR, HALF_HOUR, FIVE = timedelta(hours=1), timedelta(minutes=30), timedelta(minutes=5)
YEAR = timedelta(days=365)
UK_LONGEST, PAST_RANGE_LONGEST, MOER_LONGEST = timedelta(days=14), timedelta(days=10), timedelta(days=32)

Reply = tuple[int, str, bytes]


def grams(time: datetime) -> int:
    """Intensity of the sources that give one."""
    return 200 + 5 * time.hour + time.minute // 30 + time.day


def lbs(time: datetime) -> float:
    """Marginal rate in lbs/MWh."""
    return 800.0 + time.hour + time.minute / 5


def month_grams(year: int, month: int) -> float:
    """A month's mean."""
    return 300.0 + month + (year - 2025) / 2


def megawatts(time: datetime) -> dict[str, float]:
    """What each fuel generated."""
    return {
        "coal": 1000.0 + 100 * time.hour,
        "gas": 500.0,
        "wind": 2000.0 - 50 * time.hour,
        "nuclear": 800.0,
        "solar": 90.0 * max(0, 6 - abs(12 - time.hour)),
        "unknown": 100.0,
        "storage": 300.0,
    }


class GridServer:
    """`always`: the fault of every request for data; `requests`: path and query of all requests."""

    def __init__(self) -> None:
        self.always = "good"
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.retry_after = ""
        self._next: list[str] = []
        self._logins = 0
        self._lock = threading.Lock()

    def __enter__(self) -> GridServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"grid": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next(self, *faults: str) -> None:
        """Faults of the next requests for data."""
        self._next = list(faults)

    @property
    def data_requests(self) -> list[tuple[str, dict[str, str]]]:
        """Requests that are no login and no question about a region."""
        return [(path, query) for path, query in self.requests if path not in ("/login", "/v3/region-from-loc")]

    def _fault(self) -> str:
        with self._lock:
            return self._next.pop(0) if self._next else self.always

    def session_token(self) -> str:
        return f"session-{self._logins}-of-a-login"

    def revoke(self) -> None:
        with self._lock:
            self._logins += 1


class _Handler(BaseHTTPRequestHandler):
    grid: GridServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.grid.requests.append((parts.path, query))
        if parts.path in ("/login", "/v3/region-from-loc"):
            self._send(self._entrance(parts.path))
            return
        fault = self.grid._fault()
        if fault == "revoked":
            self.grid.revoke()
        self._send(self._answer(parts.path, query, fault), fault)

    def _entrance(self, path: str) -> Reply:
        if path == "/login":
            named = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.headers.get("authorization") != f"Basic {named}":
                return _json({"error": f"wrong password for {USER}: {PASSWORD}"}, 403)
            return _json({"token": self.grid.session_token()})
        if not self._has_session():
            return _json({"error": "Invalid token"}, 401)
        return _json(
            {"signal_type": "co2_moer", "region": "CAISO_NORTH", "region_full_name": "California ISO Northern"}
        )

    def _has_session(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {self.grid.session_token()}"

    def _answer(self, path: str, query: dict[str, str], fault: str) -> Reply:
        for begin, answer in (
            ("/v3/carbon-intensity/", self._electricity_maps),
            ("/intensity/", self._uk),
            ("/api", self._entsoe),
            ("/v2/electricity/rto/fuel-type-data/data", self._eia),
            ("/v1/carbon-intensity/monthly", self._ember),
            ("/v3/", self._watttime),
        ):
            if path.startswith(begin):
                if fault.isdecimal():
                    # a server that repeats what it was told, the key as well
                    return _json({"error": f"fault {fault} of {self.path} {TOKEN}"}, int(fault))
                return answer(path, query, fault)
        return _json({"error": "no such path"}, 404)

    def _electricity_maps(self, path: str, query: dict[str, str], fault: str) -> Reply:
        if self.headers.get("auth-token") != TOKEN:
            return _json({"error": "Invalid auth-token"}, 401)
        what = path.rsplit("/", 1)[-1]
        now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        if what == "past-range":
            first, last = _iso(query["start"]), _iso(query["end"])
            if last - first > PAST_RANGE_LONGEST:
                return _json({"error": "the range is limited to 10 days"}, 400)
        else:
            first, last = (now - 23 * HOUR, now + HOUR) if what == "history" else (now, now + 25 * HOUR)
        zone = "FR" if fault == "zone" else query["zone"]
        rows = []
        for place, time in enumerate(_steps(first, last, HOUR, fault)):
            row: dict[str, object] = {
                "carbonIntensity": grams(time) / 1000 if fault == "unit" else grams(time),
                "datetime": f"{time:%Y-%m-%dT%H:%M:%S}.000Z",
            }
            if what != "forecast":
                direct = fault == "direct" or (fault == "mixed" and place % 2)
                row |= {
                    "zone": zone,
                    "updatedAt": "2026-11-20T12:10:00.000Z",
                    "createdAt": "2026-11-17T12:00:00.000Z",
                    "emissionFactorType": "direct" if direct else "lifecycle",
                    "isEstimated": time.hour >= 20,
                    "estimationMethod": "TIME_SLICER_AVERAGE" if time.hour >= 20 else None,
                    "temporalGranularity": "hourly",
                }
            rows.append(row)
        key = {"past-range": "data", "history": "history", "forecast": "forecast"}[what]
        return _json({"zone": zone, key: rows, "temporalGranularity": "hourly"})

    def _uk(self, path: str, query: dict[str, str], fault: str) -> Reply:
        _, _, start, end = path.split("/")
        first = _iso(start)
        forecast = end == "fw48h"
        last = first + 48 * HOUR if forecast else _iso(end)
        if last - first > UK_LONGEST:
            message = "Please enter a valid date range of up to 14 days"
            return _json({"error": {"code": "400 Bad Request", "message": message}}, 400)
        rows = []
        # the answer begins with the half-hour that ends where the question begins
        for time in _steps(first - HALF_HOUR, last, HALF_HOUR, fault):
            value = grams(time) / 1000 if fault == "unit" else grams(time)
            actual = None if forecast or (time.hour, time.minute) == (3, 30) else value
            intensity = {"forecast": value, "actual": actual, "index": "moderate"}
            rows.append(
                {"from": f"{time:%Y-%m-%dT%H:%MZ}", "to": f"{time + HALF_HOUR:%Y-%m-%dT%H:%MZ}", "intensity": intensity}
            )
        return _json({"data": rows})

    def _entsoe(self, path: str, query: dict[str, str], fault: str) -> Reply:
        if query.get("securityToken") != TOKEN:
            return 401, "text/xml", _acknowledgement("Unauthorized. Missing or invalid security token").encode()
        first, last = (
            datetime.strptime(query[name], "%Y%m%d%H%M").replace(tzinfo=UTC) for name in ("periodStart", "periodEnd")
        )
        if fault == "empty":
            text = "No matching data found for Data item Actual Generation per Production Type [16.1.B&amp;C]"
            return 200, "text/xml", _acknowledgement(text).encode()
        area = "10YFR-RTE------C" if fault == "zone" else query["in_Domain"]
        return 200, "text/xml", _generation(first, last, area, fault).encode()

    def _eia(self, path: str, query: dict[str, str], fault: str) -> Reply:
        if query.get("api_key") != TOKEN:
            return _json({"error": {"code": "API_KEY_INVALID", "message": "An invalid api_key was supplied."}}, 403)
        first, last = (datetime.strptime(query[name], "%Y-%m-%dT%H").replace(tzinfo=UTC) for name in ("start", "end"))
        fuels = {"COL": "coal", "NG": "gas", "WND": "wind", "NUC": "nuclear", "SUN": "solar", "OTH": "unknown"}
        rows = []
        for time in _steps(first, last + HOUR, HOUR, fault):  # the last hour is in the answer
            made = megawatts(time - HOUR)  # named by its end
            for code, value in [*((code, made[fuel]) for code, fuel in fuels.items()), ("BAT", -made["storage"])]:
                rows.append(
                    {
                        "period": f"{time:%Y-%m-%dT%H}",
                        "respondent": "ERCO" if fault == "zone" else query["facets[respondent][]"],
                        "fueltype": code,
                        "value": f"{value:g}",
                        "value-units": "kilowatthours" if fault == "unit" else "megawatthours",
                    }
                )
        total, offset = len(rows), int(query["offset"])
        page = [] if fault == "short" and offset else rows[offset : offset + int(query["length"])]
        response = {"total": str(total), "dateFormat": 'YYYY-MM-DD"T"HH24', "frequency": "hourly", "data": page}
        # the service repeats the question, with the key
        return _json({"response": response, "request": {"params": query}, "apiVersion": "2.1.12"})

    def _ember(self, path: str, query: dict[str, str], fault: str) -> Reply:
        if query.get("api_key") != TOKEN:
            return _json({"detail": "Invalid API key"}, 403)
        first, last = (
            datetime.strptime(query[name], "%Y-%m").replace(tzinfo=UTC) for name in ("start_date", "end_date")
        )
        name = "emissions_intensity_kgco2_per_kwh" if fault == "unit" else "emissions_intensity_gco2_per_kwh"
        rows = []
        if fault == "beside":
            first = (first - timedelta(days=1)).replace(day=1)
        while first <= last:
            year = first.year - (fault == "last_year")
            rows.append(
                {
                    "entity": "Germany",
                    "entity_code": "FRA" if fault == "zone" else query["entity_code"],
                    "is_aggregate_entity": False,
                    "date": f"{year}-{first.month:02d}-01",
                    name: month_grams(year, first.month),
                }
            )
            first += timedelta(days=calendar.monthrange(first.year, first.month)[1])
        return _json({"stats": {"number_of_records": len(rows)}, "data": [] if fault == "empty" else rows})

    def _watttime(self, path: str, query: dict[str, str], fault: str) -> Reply:
        if not self._has_session():
            return _json({"error": "Invalid token"}, 401)
        if path == "/v3/historical":
            first, last = _iso(query["start"]), _iso(query["end"])
            if last - first > MOER_LONGEST:
                return _json({"error": "Time range should not exceed 32 days"}, 400)
        else:
            now = datetime.now(UTC)
            first = now.replace(minute=now.minute // 5 * 5, second=0, microsecond=0)
            last = first + int(query["horizon_hours"]) * HOUR
        meta = {
            "data_point_period_seconds": 300,
            "region": "ERCOT_NORTH" if fault == "zone" else query["region"],
            "warnings": [],
            "signal_type": "health_damage" if fault == "signal" else query["signal_type"],
            "model": {"date": "2026-03-01"},
            "units": "kg_co2_per_mwh" if fault == "unit" else "lbs_co2_per_mwh",
        }
        rows = [{"point_time": time.isoformat(), "value": lbs(time)} for time in _steps(first, last, FIVE, fault)]
        return _json({"data": rows, "meta": meta})

    def _send(self, reply: Reply, fault: str = "good") -> None:
        status, kind, body = reply
        announced = len(body)
        if fault == "half":
            body = body[: len(body) // 2]
            announced = len(body)
        if fault == "redirect":
            status = 302
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(announced))
        if fault == "redirect":
            self.send_header("location", "http://127.0.0.1:9/elsewhere")
        if fault == "429" and self.grid.retry_after:
            self.send_header("retry-after", self.grid.retry_after)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has given up
            if fault == "drip":
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    threading.Event().wait(0.05)
            elif fault == "truncated":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(body)


def _json(body: object, status: int = 200) -> Reply:
    return status, "application/json", json.dumps(body).encode()


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _steps(first: datetime, last: datetime, step: timedelta, fault: str) -> Iterator[datetime]:
    if fault == "last_year":
        first, last = first - YEAR, last - YEAR
    while first < last and fault != "empty":
        yield first
        first += step


def _acknowledgement(text: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Acknowledgement_MarketDocument '
        'xmlns="urn:iec62325.351:tc57wg16:451-1:acknowledgementdocument:7:0"><mRID>0</mRID>'
        f"<Reason><code>999</code><text>{text}</text></Reason></Acknowledgement_MarketDocument>"
    )


def _generation(first: datetime, last: datetime, area: str, fault: str) -> str:
    """A75: quarters for most types, hours for wind; a value that repeats the one before is left out (curve A03)."""
    if fault == "last_year":
        first, last = first - YEAR, last - YEAR
    types = {
        "B02": "coal", "B04": "gas", "B19": "wind", "B14": "nuclear", "B16": "solar", "B20": "unknown",
        "B10": "storage",
    }  # fmt: skip
    series = [_series(first, last, area, code, fuel, "in", fault) for code, fuel in types.items()]
    series.append(_series(first, last, area, "B10", "storage", "out", fault))
    return (
        '<?xml version="1.0" encoding="UTF-8"?><GL_MarketDocument '
        'xmlns="urn:iec62325.351:tc57wg16:451-6:generationloaddocument:3:0"><mRID>0</mRID><type>A75</type>'
        "<process.processType>A16</process.processType>"
        f"{_interval('time_Period.timeInterval', first, last)}{''.join(series)}</GL_MarketDocument>"
    )


def _series(first: datetime, last: datetime, area: str, code: str, fuel: str, side: str, fault: str) -> str:
    step = HOUR if fuel == "wind" else timedelta(minutes=15)
    points, before, time, position = [], None, first, 1
    while time < last:
        value = megawatts(time)[fuel]
        if value != before:
            points.append(f"<Point><position>{position}</position><quantity>{value:g}</quantity></Point>")
        before, time, position = value, time + step, position + 1
    unit = "KWT" if fault == "unit" else "MAW"
    resolution = f"PT{step // timedelta(minutes=1)}M"
    return (
        "<TimeSeries><mRID>1</mRID><businessType>A01</businessType><objectAggregation>A08</objectAggregation>"
        f'<{side}BiddingZone_Domain.mRID codingScheme="A01">{area}</{side}BiddingZone_Domain.mRID>'
        f"<quantity_Measure_Unit.name>{unit}</quantity_Measure_Unit.name><curveType>A03</curveType>"
        f"<MktPSRType><psrType>{code}</psrType></MktPSRType><Period>{_interval('timeInterval', first, last)}"
        f"<resolution>{resolution}</resolution>{''.join(points)}</Period></TimeSeries>"
    )


def _interval(name: str, first: datetime, last: datetime) -> str:
    return f"<{name}><start>{first:%Y-%m-%dT%H:%MZ}</start><end>{last:%Y-%m-%dT%H:%MZ}</end></{name}>"
