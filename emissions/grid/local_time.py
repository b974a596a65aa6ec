"""Hours of the day in a zone's own time, from means by UTC hour."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import numpy as np


@cache
def local_hour_weights(timezone: str, year: int) -> np.ndarray:
    """How much of each local hour lies in each UTC hour, (12, 24 local, 24 UTC) by month; each local hour adds up to 1,
    and so does each UTC hour.

    The offset is taken for each day of the month at its noon in UTC, so that a month in which the clock changes mixes
    both by their days; where it is not whole hours, a local hour is split.

    Raises zoneinfo.ZoneInfoNotFoundError for an unknown IANA name.
    """
    zone = ZoneInfo(timezone)
    weights = np.zeros((12, 24, 24))
    for month in range(1, 13):
        days = monthrange(year, month)[1]
        for day in range(1, days + 1):
            offset = datetime(year, month, day, 12, tzinfo=UTC).astimezone(zone).utcoffset() or timedelta()
            shift_h = offset.total_seconds() / 3600
            for local in range(24):
                begins_h = (local - shift_h) % 24
                first, part = int(begins_h), begins_h % 1
                weights[month - 1, local, first] += 1 - part
                weights[month - 1, local, (first + 1) % 24] += part
        weights[month - 1] /= days
    weights.setflags(write=False)  # shared by all callers
    return weights


def by_local_hour(table_g_per_kwh: np.ndarray, timezone: str, year: int) -> np.ndarray:
    """A typical year by month and UTC hour, (12, 24), as means by month and local hour, (12, 24)."""
    return np.einsum("mlu,mu->ml", local_hour_weights(timezone, year), table_g_per_kwh)
