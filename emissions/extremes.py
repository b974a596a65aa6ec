"""How far apart places and months lie, each ratio with its basis, beside what was published.

The Latent Pollution Model study (arXiv 2407.14892) found up to 94 times between places, and up to 50 % between times of
the year; it does not say on which basis. These are claims that the tables are held against, never inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emissions.grid.intensity import TypicalYearIntensity, annual_intensity_of, typical_intensity_of
from emissions.grid.zones import all_zones, data_table, find_zone

PUBLISHED_PLACE_RATIO = 94.0
PUBLISHED_SEASON_PERCENT = 50.0


@dataclass(frozen=True)
class Extremes:
    """The cleanest and dirtiest on one basis. ratio: dirtiest over cleanest. reaches: the published figure."""

    basis: str
    cleanest: str
    dirtiest: str
    cleanest_g_per_kwh: float
    dirtiest_g_per_kwh: float
    published: str
    reaches: bool

    @property
    def ratio(self) -> float:
        return self.dirtiest_g_per_kwh / self.cleanest_g_per_kwh

    def sentence(self) -> str:
        """The finding in one line."""
        verdict = "reaches" if self.reaches else "does not reach"
        return (
            f"{self.basis}: {self.dirtiest} ({self.dirtiest_g_per_kwh:.0f} g/kWh) is {self.ratio:.3g} times "
            f"{self.cleanest} ({self.cleanest_g_per_kwh:.0f}); {verdict} the published {self.published}"
        )


def between_places(year: int) -> list[Extremes]:
    """Between zones of the tables, average lifecycle: annual means, means of months, typical hours of months."""
    annual = {
        str(zone): annual_intensity_of(str(zone), year).value_g_per_kwh
        for zone in data_table("annual_intensity.csv")["zone"]
    }
    typical = [signal for zone in all_zones().values() if (signal := typical_intensity_of(zone)) is not None]
    months = {f"{t.zone.zone} in month {m}": g for t in typical for m, g in enumerate(t.month_means(), start=1)}
    hours = {
        f"{t.zone.zone} in month {m + 1} at {h}:00 UTC": float(t.table_g_per_kwh[m, h])
        for t in typical
        for m, h in np.ndindex(12, 24)
    }
    return [
        _place(f"annual means {year}, {len(annual)} zones", annual),
        _place(f"means of months of a typical year, {len(typical)} zones", months),
        _place(f"hours of the day of such months, {len(typical)} zones", hours),
    ]


def _place(basis: str, values: dict[str, float]) -> Extremes:
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    return Extremes(
        basis=basis,
        cleanest=low,
        dirtiest=high,
        cleanest_g_per_kwh=values[low],
        dirtiest_g_per_kwh=values[high],
        published=f"up to {PUBLISHED_PLACE_RATIO:g} times",
        reaches=values[high] / values[low] >= PUBLISHED_PLACE_RATIO,
    )


def between_months(zone: str) -> Extremes | None:
    """Between the months of one zone's typical year; None for a zone that has none. Raises ValueError for an unknown
    zone."""
    typical = typical_intensity_of(find_zone(zone))
    if not isinstance(typical, TypicalYearIntensity):
        return None
    means = typical.month_means()
    return Extremes(
        basis=f"months of a typical year in {typical.zone.zone} ({typical.basis}, which flattens single years)",
        cleanest=f"month {means.argmin() + 1}",
        dirtiest=f"month {means.argmax() + 1}",
        cleanest_g_per_kwh=float(means.min()),
        dirtiest_g_per_kwh=float(means.max()),
        published=f"up to {PUBLISHED_SEASON_PERCENT:g} %",
        reaches=bool(means.max() / means.min() >= 1 + PUBLISHED_SEASON_PERCENT / 100),
    )
