"""The best of several sites, with the energy of moving the data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emissions.schedule.site import KWH_PER_GB, Site, Transfer, best_sites, extrapolated_kwh_per_gb
from emissions.schedule.slots import Slots

START = pd.Timestamp("2026-11-25T00:00Z")
HOUR_S = 3600.0


def site(name: str, values: list[float], pue: float = 1.0, gpus: int = 1, kind: str = "average lifecycle") -> Site:
    return Site(name, Slots(name, START, HOUR_S, np.array(values, dtype=float), kind, "made up", "0"), pue, gpus)


def at(hours: float) -> pd.Timestamp:
    return START + pd.Timedelta(hours=hours)


def test_sites_are_sorted_by_what_the_job_emits_there() -> None:
    sites = [site("DE", [400, 300, 500]), site("FR", [50, 60, 40], pue=1.5), site("SE", [20, 30, 25], pue=1.1)]
    found = best_sites(sites, HOUR_S, 10.0, at(0), at(3))
    assert [(row.site, row.start) for row in found] == [("SE", at(0)), ("FR", at(2)), ("DE", at(1))]
    assert [row.emissions_g for row in found] == pytest.approx([220, 600, 3000])
    assert [row.saved_g for row in found] == pytest.approx([2780, 2400, 0])
    assert [row.saving_percent for row in found] == pytest.approx([278 / 3, 80, 0])


def test_moving_the_data_is_priced_at_both_ends_when_it_moves() -> None:
    sites = [site("DE", [400, 300]), site("SE", [20, 10])]
    away = next(row for row in best_sites(sites, HOUR_S, 1.0, at(0), at(2), Transfer(100.0)) if row.site == "SE")
    assert away.transfer_kwh == pytest.approx(100 * 0.06)
    assert away.transfer_g == pytest.approx(6 * (400 + 20) / 2)
    assert away.emissions_g == pytest.approx(10 + 1260)
    assert best_sites(sites, HOUR_S, 1.0, at(0), at(2), Transfer(100.0))[0].site == "DE"
    assert best_sites(sites, HOUR_S, 1.0, at(0), at(2), Transfer(10.0))[0].site == "SE"


def test_a_job_starts_after_its_data_have_come() -> None:
    sites = [site("DE", [400, 400, 400]), site("SE", [10, 20, 40])]
    slow = Transfer(gb=90.0, kwh_per_gb=0.01, gb_per_s=90 / 5400)  # 1.5 h: two thirds of it in the first hour
    away = best_sites(sites, HOUR_S, 1.0, at(0), at(3), slow)[0]
    assert (away.site, away.start) == ("SE", at(1.5))
    assert away.transfer_g == pytest.approx(0.9 * ((400 + 400) / 2 + (10 * 1 + 20 * 0.5) / 1.5) / 2)
    assert away.emissions_g == pytest.approx((20 + 40) / 2 + away.transfer_g)


def test_sites_where_it_cannot_run_come_last_and_say_why() -> None:
    sites = [site("DE", [400, 400], gpus=2), site("SE", [10, 10], gpus=1), site("FR", [50, 50], gpus=2)]
    found = best_sites(sites, HOUR_S, 1.0, at(0), at(2), Transfer(7200.0, gb_per_s=1.0), gpus=2)
    assert [row.site for row in found] == ["DE", "SE", "FR"]
    assert found[1].reason == "has 1 GPUs, and the job holds 2"
    assert found[2].reason == "moving 7200 GB takes 7200 s, which leaves 3600 s too little"
    assert found[1].emissions_g is found[1].start is found[2].saved_g is None


def test_without_room_at_home_there_is_no_saving_to_tell() -> None:
    found = best_sites([site("DE", [400], gpus=0), site("SE", [10])], HOUR_S, 1.0, at(0), at(1))
    assert [(row.site, row.saved_g) for row in found] == [("SE", None), ("DE", None)]


@pytest.mark.parametrize(("year", "kwh"), [(2015, 0.06), (2017, 0.03), (2025, 0.06 / 32), (2011, 0.24)])
def test_the_energy_of_moving_a_gb_halves_every_two_years(year: int, kwh: float) -> None:
    """Aslan et al. 2018: 0.06 kWh/GB in 2015, and about half every two years since 2000."""
    assert extrapolated_kwh_per_gb(year) == pytest.approx(kwh)
    assert Transfer(1.0).kwh_per_gb == KWH_PER_GB == 0.06


def test_what_cannot_be_compared_is_said() -> None:
    home = site("DE", [400, 400])
    with pytest.raises(ValueError, match="of DE are average lifecycle and those of SE are marginal direct"):
        best_sites([home, site("SE", [1, 1], kind="marginal direct")], HOUR_S, 1.0, at(0), at(2))
    with pytest.raises(ValueError, match="DE is there twice"):
        best_sites([home, home], HOUR_S, 1.0, at(0), at(2))
    with pytest.raises(ValueError, match="no sites"):
        best_sites([], HOUR_S, 1.0, at(0), at(2))
    with pytest.raises(ValueError, match="too little"):
        best_sites([home], 3 * HOUR_S, 1.0, at(0), at(2))
    with pytest.raises(ValueError, match="pue is"):
        best_sites([site("DE", [400, 400], pue=0.5)], HOUR_S, 1.0, at(0), at(2))


@pytest.mark.parametrize("wrong", [{"gb": -1.0}, {"kwh_per_gb": float("nan")}, {"gb_per_s": 0.0}])
def test_a_transfer_has_an_amount_and_a_speed(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        Transfer(**{"gb": 1.0, **wrong})


def test_the_year_of_a_transfer_is_not_before_its_source() -> None:
    with pytest.raises(ValueError, match="year is 1999"):
        extrapolated_kwh_per_gb(1999)
