"""The best of several sites for a job, with the energy of moving its data there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pandas as pd

from emissions.grid.intensity import utc
from emissions.pricing import check_pue
from emissions.schedule.slots import Slots
from emissions.schedule.start import best_start

# Fixed-line core and access networks in 2015, and how it fell from 2000 on: J. Aslan, K. Mayers, J. G. Koomey and
# C. France, "Electricity Intensity of Internet Data Transmission: Untangling the Estimates", Journal of Industrial
# Ecology 22(4), 785-798, 2018, doi:10.1111/jiec.12630.
KWH_PER_GB = 0.06
KWH_PER_GB_YEAR = 2015
HALVES_IN_YEARS = 2.0


def extrapolated_kwh_per_gb(year: float) -> float:
    """kWh per GB of a fixed line in a year, were it to have halved every two years after 2015 as it did before.

    An extrapolation: the source has data of 2000 to 2015. Raises ValueError before 2000.
    """
    if not year >= 2000:
        raise ValueError(f"year is {year}; the energy of moving data is known from 2000 on")
    return KWH_PER_GB * 0.5 ** ((year - KWH_PER_GB_YEAR) / HALVES_IN_YEARS)


@dataclass(frozen=True)
class Transfer:
    """Data that move from the home site before a job starts elsewhere.

    kwh_per_gb: of the network between; see `KWH_PER_GB` and `extrapolated_kwh_per_gb`. gb_per_s: how fast; None: in no
    time. Raises ValueError below 0, and for a speed of 0.
    """

    gb: float
    kwh_per_gb: float = KWH_PER_GB
    gb_per_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("gb", "kwh_per_gb"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a number of at least 0")
        if self.gb_per_s is not None and not self.gb_per_s > 0:
            raise ValueError(f"gb_per_s is {self.gb_per_s}; it must be above 0")

    @property
    def energy_kwh(self) -> float:
        return self.gb * self.kwh_per_gb

    @property
    def duration_s(self) -> float:
        return 0.0 if self.gb_per_s is None else self.gb / self.gb_per_s


NOTHING = Transfer(0.0)


@dataclass(frozen=True)
class Site:
    """A place to run. gpus: that a job may hold there."""

    name: str
    slots: Slots
    pue: float = 1.0
    gpus: int = 1


@dataclass(frozen=True)
class SiteStart:
    """The best start of a job at a site; start, end and emissions are None where it cannot run, and `reason` says why.

    emissions_g: with transfer_g. saved_g: below the best start at home. local_start: in the zone's own time.
    """

    site: str
    zone: str
    start: pd.Timestamp | None = None
    end: pd.Timestamp | None = None
    emissions_g: float | None = None
    transfer_g: float = 0.0
    transfer_kwh: float = 0.0
    saved_g: float | None = None
    saving_percent: float | None = None
    reason: str = ""


def best_sites(
    sites: Sequence[Site],
    duration_s: float,
    energy_kwh: float,
    earliest: datetime,
    deadline: datetime,
    transfer: Transfer = NOTHING,
    gpus: int = 1,
) -> list[SiteStart]:
    """The best start of a job at each site, the least emissions first, then the sites where it cannot run.

    The first site is home, where the data are. They move at `earliest`, and the job starts after that; moving them
    is priced at the mean of both ends' intensities while they move (at `earliest`, where that takes no time), without
    a PUE, since it is the network's energy. The job takes the same time and energy of IT everywhere.

    Raises ValueError for no sites, one that is there twice, intensities of several kinds, and as `best_start` does
    where the job fits nowhere else either: at a home that has room for it, a deadline too early is an error.
    """
    _check(sites)
    home, found, reasons = sites[0], [], []
    for site in sites:
        moves = transfer if site is not home else NOTHING
        ready = utc(earliest) + pd.Timedelta(seconds=moves.duration_s)
        late_s = (ready - utc(deadline)).total_seconds() + duration_s
        reason = ""
        if site.gpus < gpus:
            reason = f"has {site.gpus} GPUs, and the job holds {gpus}"
        elif site is not home and late_s > 0:
            reason = f"moving {moves.gb:g} GB takes {moves.duration_s:g} s, which leaves {late_s:g} s too little"
        if reason:
            reasons.append(SiteStart(site.name, site.slots.zone, reason=reason))
            continue
        best = best_start(site.slots, duration_s, energy_kwh, ready, deadline, site.pue)
        moved_g = moves.energy_kwh * _mean_of_both(home.slots, site.slots, utc(earliest), ready) if moves.gb else 0.0
        row = SiteStart(
            site=site.name,
            zone=site.slots.zone,
            start=best.start,
            end=best.end,
            emissions_g=best.emissions_g + moved_g,
            transfer_g=moved_g,
            transfer_kwh=moves.energy_kwh,
        )
        found.append(row)
    at_home = next((row.emissions_g for row in found if row.site == home.name), None)
    found = [_beside(row, at_home) for row in found]
    return [*sorted(found, key=lambda row: row.emissions_g or 0.0), *reasons]


def _check(sites: Sequence[Site]) -> None:
    if not sites:
        raise ValueError("no sites to choose from")
    names = [site.name for site in sites]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"site {twice[0]} is there twice")
    for site in sites:
        check_pue(site.pue)
        if site.slots.kind != sites[0].slots.kind:
            raise ValueError(
                f"intensities of {sites[0].name} are {sites[0].slots.kind} and those of {site.name} are "
                f"{site.slots.kind}: they cannot be compared"
            )


def _mean_of_both(home: Slots, away: Slots, begin: pd.Timestamp, end: pd.Timestamp) -> float:
    means = [slots.mean_g_per_kwh(*slots.seconds_of(begin, end)) for slots in (home, away)]
    return sum(means) / 2


def _beside(row: SiteStart, home_g: float | None) -> SiteStart:
    if home_g is None or row.emissions_g is None:
        return row
    saved_g = home_g - row.emissions_g
    return replace(row, saved_g=saved_g, saving_percent=100 * saved_g / home_g if home_g > 0 else 0.0)
