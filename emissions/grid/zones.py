"""Zones: areas of the electricity grid, named as Electricity Maps names them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd
import pycountry

from emissions.tables import read_table

TROPIC_DEG = 23.44  # latitude of the tropics: the tilt of the Earth's axis
SEASONS = ("winter", "spring", "summer", "autumn")  # meteorological, in the north from December on


@dataclass(frozen=True)
class Zone:
    """One grid zone. `country` is ISO 3166-1 alpha-2; the point is near the zone's middle, or its time zone's
    city.
    """

    zone: str
    zone_name: str
    country: str
    timezone: str
    latitude_deg: float
    longitude_deg: float

    @property
    def hemisphere(self) -> str:
        """ "north", "south", or "tropical" between the tropics, where summer and winter mean little."""
        if abs(self.latitude_deg) <= TROPIC_DEG:
            return "tropical"
        return "north" if self.latitude_deg > 0 else "south"

    def season(self, month: int) -> str:
        """The meteorological season of a month, 1 to 12: "winter" to "autumn", or "tropical"."""
        if not 1 <= month <= 12:
            raise ValueError(f"month is {month}; it must be 1 to 12")
        if self.hemisphere == "tropical":
            return "tropical"
        quarter = month % 12 // 3
        return SEASONS[quarter if self.hemisphere == "north" else (quarter + 2) % 4]


@cache
def data_table(name: str) -> pd.DataFrame:
    """A table that ships in emissions/data, by its file name; callers share it and leave it as it is."""
    with resources.as_file(resources.files("emissions") / "data" / name) as path:
        return read_table(path)


@cache
def all_zones() -> dict[str, Zone]:
    """Every zone by its id, sorted: the 352 with annual values, and 3 that have only a typical year."""
    extra = data_table("seasonal_only_zones.csv")
    points = pd.concat([data_table("zone_points.csv"), extra]).set_index("zone")
    cities = _timezone_points()
    zones = []
    for row in pd.concat([data_table("annual_intensity.csv"), extra]).to_dict("records"):
        place = row["zone"], row["zone_name"], row["country"], row["timezone"]
        if row["zone"] in points.index:
            point = points.loc[row["zone"], ["latitude_deg", "longitude_deg"]].astype(float)
        else:
            point = cities[row["timezone"]]
        zones.append(Zone(*place, *point))
    return {zone.zone: zone for zone in sorted(zones, key=lambda zone: zone.zone)}


def find_zone(text: str) -> Zone:
    """The zone named by an Electricity Maps id, by the ISO 3166-1 code (two or three letters) of its country, or by
    the cloud region in it, as in "aws:eu-central-1".

    Raises ValueError with the nearest spellings, or with the zones of a country that has several and none of
    its own.
    """
    if not isinstance(text, str):
        hint = '; write "NO" in quotes, since YAML reads a bare NO as false' if text is False else ""
        raise ValueError(f"zone {text!r} is not text{hint}")
    if ":" in text:
        return _zone_of_region(text.strip().lower())
    zones = all_zones()
    code = text.strip().upper()
    country = _alpha_2(code)
    for candidate in (code, country):
        if candidate in zones:
            return zones[candidate]
    within = [zone for zone in zones.values() if zone.country == country]
    if len(within) == 1:
        return within[0]
    if within:
        raise ValueError(f"zone {text!r} is a country of several grids: choose one of {_listed(within)}")
    named = pycountry.countries.get(alpha_2=country)
    if named is not None:
        raise ValueError(f"zone {text!r}: the tables have no grid of {named.name}: choose the zone that supplies it")
    raise ValueError(f"unknown zone {text!r}: {_nearest(text.strip())}")


@cache
def cloud_regions() -> dict[str, str]:
    """Zone by cloud region, "provider:region" in small letters."""
    table = data_table("cloud_regions.csv")
    return dict(zip(table["provider"] + ":" + table["region"], table["zone"], strict=True))


def _zone_of_region(region: str) -> Zone:
    regions = cloud_regions()
    if region in regions:
        return all_zones()[regions[region]]
    close = difflib.get_close_matches(region, regions, n=4, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "providers are aws, azure and gcp, as in aws:eu-central-1"
    raise ValueError(f"unknown cloud region {region!r}: {hint}")


def _alpha_2(code: str) -> str:
    """The two-letter code of a three-letter one; other text as it is."""
    if code == "XKX":  # Kosovo: in use, and not in ISO 3166-1
        return "XK"
    country = pycountry.countries.get(alpha_3=code) if re.fullmatch("[A-Z]{3}", code) else None
    return country.alpha_2 if country is not None else code


def _nearest(text: str) -> str:
    zones = all_zones()
    spellings = {zone.zone.casefold(): zone for zone in zones.values()}
    spellings |= {zone.zone_name.casefold(): zone for zone in zones.values()}
    begun = [spelling for spelling in spellings if spelling.startswith(text.casefold())] if text else []
    close = begun[:4] or difflib.get_close_matches(text.casefold(), spellings, n=4, cutoff=0.5)
    if not close:
        return "use an Electricity Maps zone id or an ISO country code, such as DE, FR or US-CAL-CISO"
    return f"did you mean {_listed(dict.fromkeys(spellings[spelling] for spelling in close))}?"


def _listed(zones: Iterable[Zone]) -> str:
    return ", ".join(f"{zone.zone} ({zone.zone_name})" for zone in zones)


@cache
def _timezone_points() -> dict[str, tuple[float, float]]:
    """IANA time zone -> latitude and longitude of its city in degrees, from zone.tab of the tz database."""
    table = (resources.files("tzdata") / "zoneinfo" / "zone.tab").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in table.splitlines() if line and not line.startswith("#"))
    return {name: _iso_6709(point) for _, point, name, *_ in rows}


def _iso_6709(point: str) -> tuple[float, float]:
    """Degrees from ISO 6709 text: "+5230+01322" (minutes), "+404251-0740023" (seconds)."""
    match = re.fullmatch(r"([+-])(\d{2})(\d{2})(\d{2})?([+-])(\d{3})(\d{2})(\d{2})?", point)
    if match is None:
        raise ValueError(f"tz database: {point!r} is not a point in ISO 6709")
    signs, parts = match.group(1, 5), (match.group(2, 3, 4), match.group(6, 7, 8))
    degrees = [int(d) + int(m) / 60 + int(s or 0) / 3600 for d, m, s in parts]
    return (float(f"{signs[0]}{degrees[0]}"), float(f"{signs[1]}{degrees[1]}"))
