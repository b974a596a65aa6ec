"""ENTSO-E's transparency platform, through entsoe-py: what each type of plant generated in a bidding zone (A75).

entsoe-py builds the questions and reads the answers; our transport carries them, with the token, which entsoe-py
would log. It reads with a parser that takes half a document for a whole one, and cuts off what was not asked for: so a
document is looked at here first.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from emissions.grid.live.factors import BASIS, STORAGE, UNKNOWN, by_fuel, mix_intensity, unknown_text
from emissions.grid.live.http import Connection
from emissions.grid.live.source import MARGIN, Answer, Source, spans
from emissions.grid.zones import Zone

LONGEST = pd.Timedelta(days=31)  # of one request; the platform allows a year, which is a document of 50 MB
UNIT = "MAW"  # megawatts, UN/CEFACT
FUELS = {
    "Biomass": "biomass", "Fossil Brown coal/Lignite": "coal", "Fossil Coal-derived gas": "coal", "Fossil Gas": "gas",
    "Fossil Hard coal": "coal", "Fossil Oil": "oil", "Fossil Oil shale": "coal", "Fossil Peat": "coal",
    "Geothermal": "geothermal", "Hydro Pumped Storage": STORAGE, "Hydro Run-of-river and pondage": "hydro",
    "Hydro Water Reservoir": "hydro", "Marine": "marine", "Nuclear": "nuclear", "Other renewable": UNKNOWN,
    "Solar": "solar", "Waste": UNKNOWN, "Wind Offshore": "wind offshore", "Wind Onshore": "wind",
    "Energy storage": STORAGE,
}  # fmt: skip
_OTHERWISE = {  # zone -> entsoe-py's name of the area, where it is not the zone's own with "_" for "-"
    "DE": "DE_LU", "IE": "IE_SEM", "GB-NIR": "NIE",
    "DK-DK1": "DK_1", "DK-DK2": "DK_2",
    "IT-CNO": "IT_CNOR", "IT-CSO": "IT_CSUD", "IT-NO": "IT_NORD", "IT-SAR": "IT_SARD", "IT-SIC": "IT_SICI",
    "IT-SO": "IT_SUD",
    **{f"NO-NO{number}": f"NO_{number}" for number in range(1, 6)},
    **{f"SE-SE{number}": f"SE_{number}" for number in range(1, 5)},
}  # fmt: skip
_COUNTRIES = (
    "AL", "AT", "BA", "BE", "BG", "CH", "CY", "CZ", "DK", "EE", "ES", "FI", "FR", "GE", "GR", "HR", "HU", "IT", "LT",
    "LU", "LV", "MD", "ME", "MK", "NL", "NO", "PL", "PT", "RO", "RS", "SE", "SI", "SK", "XK",
)  # fmt: skip
TITLE = "ENTSO-E"


class _Session:
    """What entsoe-py takes for a session of `requests`; asks through our transport."""

    def __init__(self, connection: Connection, area: Any):
        self.headers: dict[str, str] = {}
        self._connection, self._area = connection, area

    def get(self, url: str, params: dict[str, Any], **settings: Any) -> _Response:
        """`url` is a constant of entsoe-py: ours is the connection's. Statuses 200 and 400 carry a document."""
        asked = {**params, "securityToken": self._connection.secrets[0]}
        status, text, root = self._connection.text("", asked, _document, accept=(400,))
        if _tag(root) != "Acknowledgement_MarketDocument":
            self._check(root, params)
        elif "No matching data found" not in text:
            raise self._connection.failure(f"refused ({' '.join(_texts(root, 'text'))[:160]})", status)
        return _Response(status, text)

    def _check(self, root: ElementTree.Element, params: dict[str, Any]) -> None:
        """Raise SourceError unless a document is about what was asked for, in megawatts."""
        earliest, latest = (
            pd.to_datetime(params[name], format="%Y%m%d%H%M", utc=True) for name in ("periodStart", "periodEnd")
        )
        for wrong, held, asked in (
            ("unit", _texts(root, "quantity_Measure_Unit.name"), UNIT),
            ("area", _texts(root, "inBiddingZone_Domain.mRID"), self._area.code),
            ("area", _texts(root, "outBiddingZone_Domain.mRID"), self._area.code),
        ):
            other = [text for text in held if text != asked]
            if other:
                raise self._connection.failure(f"asked for {wrong} {asked}, and the answer has {other[0][:40]!r}")
        if not _texts(root, "inBiddingZone_Domain.mRID"):
            raise self._connection.failure("the answer has no generation")
        for series in _children(root, "TimeSeries"):
            if not _texts(series, "quantity_Measure_Unit.name"):
                raise self._connection.failure("the answer has a series without a unit")
            for period in _children(series, "Period"):
                first, last = (pd.Timestamp(_texts(period, name)[0]) for name in ("start", "end"))
                if first < earliest - MARGIN or last > latest + MARGIN:
                    raise self._connection.failure(
                        f"asked for {earliest:%Y-%m-%d %H:%M} to {latest:%Y-%m-%d %H:%M} UTC, and the answer has "
                        f"{first:%Y-%m-%d %H:%M} UTC, which was not asked for"
                    )


class _Response:
    """What entsoe-py uses of an answer."""

    def __init__(self, status: int, text: str):
        self.status_code, self.text = status, text
        self.headers = {"content-type": "text/xml"}

    def raise_for_status(self) -> None:
        """Nothing to raise: `_Session` has dealt with all but "no data", which entsoe-py finds in the text."""


def _history(connection: Connection, zone: Zone, start: pd.Timestamp, end: pd.Timestamp) -> Answer:
    try:
        from entsoe import EntsoePandasClient
        from entsoe.exceptions import NoMatchingDataError
        from entsoe.mappings import lookup_area
    except ImportError:
        raise connection.failure("needs entsoe-py: pip install 'latent-footprint[entsoe]'") from None
    area = lookup_area(_area(connection, zone))
    session: Any = _Session(connection, area)
    client = EntsoePandasClient(api_key="-", session=session, retry_count=1)
    parts = []
    for first, last in spans(start, end, LONGEST):
        try:
            parts.append(_generated(client.query_generation(area, start=first, end=last)))
        except NoMatchingDataError:
            continue
        except (KeyError, AttributeError, TypeError, NotImplementedError) as error:
            raise connection.failure(f"the answer is not in the documented form ({type(error).__name__})") from None
    if not parts:
        return Answer(
            times=pd.DatetimeIndex([], tz="UTC"),
            values_g_per_kwh=np.array([]),
            kind=SOURCE.kind,
            source=TITLE,
            basis=BASIS,
        )
    table = pd.concat(parts)
    table = table[(table.index >= start) & (table.index < end) & ~table.index.duplicated()]
    generation = by_fuel(_hourly(table), FUELS)
    values, unknown = mix_intensity(generation)
    return Answer(
        times=pd.DatetimeIndex(generation.index),
        values_g_per_kwh=values,
        kind=SOURCE.kind,
        source=f"{TITLE}, actual generation per type in {area.name}{unknown_text(unknown)}",
        basis=BASIS,
    )


def _generated(table: pd.DataFrame) -> pd.DataFrame:
    """Megawatts by type in UTC, without what storage and plants took in."""
    if isinstance(table.columns, pd.MultiIndex):
        table = table.loc[:, table.columns.get_level_values(-1) == "Actual Aggregated"].droplevel(-1, axis=1)
    return table.tz_convert("UTC")


def _hourly(table: pd.DataFrame) -> pd.DataFrame:
    """Hourly means, since some types come by quarters and some by hours; NaN unless all parts of the hour are there."""
    hours = table.resample("h")
    counts = hours.count()
    return hours.mean().where(counts == counts.max())


def _area(connection: Connection, zone: Zone) -> str:
    if zone.zone in _OTHERWISE:
        return _OTHERWISE[zone.zone]
    if zone.zone in _COUNTRIES:
        return zone.zone
    raise connection.failure("this source has no generation of this zone")


def _document(status: int, text: str) -> tuple[int, str, ElementTree.Element]:
    """Raises ValueError for half a document."""
    if "<!DOCTYPE" in text[:1000] or "<!ENTITY" in text:
        raise ValueError("a document with entities")
    try:
        return status, text, ElementTree.fromstring(text.encode("utf-8"))
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rsplit("}", 1)[-1]


def _children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in element.iter() if _tag(child) == name]


def _texts(element: ElementTree.Element, name: str) -> list[str]:
    return [(child.text or "").strip() for child in _children(element, name)]


SOURCE = Source(
    name="entsoe",
    title=TITLE,
    url="https://web-api.tp.entsoe.eu/api",
    credit="ENTSO-E Transparency Platform",
    history=_history,
)
