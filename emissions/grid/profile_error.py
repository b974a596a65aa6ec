"""How far a typical value may lie from the truth of a year that is not in it: 90 % of cases, as ratios to the value.

`emissions/data/profile_error.csv` was made by `tools/profile_error.py`: a row for each zone of several years, and two
pooled rows, for zones with one year and with annual values only.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from emissions.grid.intensity import AnnualIntensity, CarbonIntensity, TypicalYearIntensity
from emissions.grid.zones import data_table

ONE_YEAR, ANNUAL = "one year", "annual"


class ProfileError(NamedTuple):
    """Bounds of the true value over the typical one, of a month's mean and of a single hour."""

    month_low: float
    month_high: float
    hour_low: float
    hour_high: float


def profile_error(intensity: CarbonIntensity) -> ProfileError | None:
    """The error of a zone's table; None for a signal that was measured, which has no typical value."""
    if isinstance(intensity, AnnualIntensity):
        return _errors()[ANNUAL]
    if isinstance(intensity, TypicalYearIntensity):
        return _errors().get(intensity.zone.zone, _errors()[ONE_YEAR])
    return None


@cache
def _errors() -> dict[str, ProfileError]:
    rows = data_table("profile_error.csv").to_dict("records")
    return {str(row["zone"]): ProfileError(*(float(row[name]) for name in ProfileError._fields)) for row in rows}
