"""The same work elsewhere and at other times, against closed forms."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emissions import cli
from emissions.extremes import between_months, between_places
from emissions.grid.intensity import TypicalYearIntensity, intensity_of, typical_intensity_of
from emissions.grid.local_time import by_local_hour, local_hour_weights
from emissions.grid.profile_error import profile_error
from emissions.grid.series import series_intensity, write_intensity
from emissions.grid.zones import all_zones, find_zone
from emissions.records import utc_text
from emissions.whatif import HOURS_OF_DAY, MONTHS, energy_by_hour_kwh, typical_of, whatif, write_whatif
from tests.emissions.studies import carbon, collect, make_plan, write_study

BEGIN = pd.Timestamp("2028-02-28T10:20:00Z")  # the day before a leap day


def work_of(*rows: tuple[float, float, float]) -> pd.DataFrame:
    """Rows of (hours after BEGIN, hours of duration, kWh)."""
    table = pd.DataFrame(
        {
            "stage": "train_diffusion",
            "item": [f"m{place}" for place in range(len(rows))],
            "started_at": [utc_text(BEGIN + pd.Timedelta(hours=after)) for after, _, _ in rows],
            "ended_at": [utc_text(BEGIN + pd.Timedelta(hours=after + long)) for after, long, _ in rows],
            "energy_kwh": [kwh for _, _, kwh in rows],
        }
    )
    return table.assign(energy_low_kwh=0.9 * table["energy_kwh"], energy_high_kwh=1.4 * table["energy_kwh"])


def test_a_month_is_the_energy_times_the_months_mean():
    table = whatif(work_of((0, 0.5, 2.0)), ["DE"], pue=1.5)
    means = typical_intensity_of("DE").month_means()
    assert list(table["month"]) == list(MONTHS)
    assert list(table["emissions_g"]) == pytest.approx(list(2.0 * 1.5 * means))
    assert table["intensity_hash"].nunique() == 1


@pytest.mark.parametrize("duration_h", [0.25, 1.0, 7.3, 24.0, 60.5])
def test_the_mean_over_the_24_starts_of_a_day_is_the_month(duration_h):
    work = work_of((0, duration_h, 3.0), (5.5, 2.0, 1.0))
    hourly = whatif(work, ["US-CAL-CISO"], hours=HOURS_OF_DAY)
    monthly = whatif(work, ["US-CAL-CISO"])
    assert list(hourly.groupby("month")["emissions_g"].mean()) == pytest.approx(list(monthly["emissions_g"]))


def test_whole_days_emit_the_same_whatever_hour_they_begin():
    table = whatif(work_of((0, 48.0, 3.0)), ["DE"], [6], hours=HOURS_OF_DAY)
    assert table["emissions_g"].max() == pytest.approx(table["emissions_g"].min(), rel=1e-12)
    short = whatif(work_of((0, 1.0, 3.0)), ["DE"], [6], hours=HOURS_OF_DAY)
    assert short["emissions_g"].max() > 1.2 * short["emissions_g"].min()


def test_an_hour_is_that_of_the_zones_own_clock():
    table = whatif(work_of((0, 1.0, 1.0)), ["IN-WE"], [1], hours=[12])  # 5:30 before UTC
    utc = typical_intensity_of("IN-WE").table_g_per_kwh[0]
    assert table["emissions_g"].iloc[0] == pytest.approx((utc[6] + utc[7]) / 2)


def test_long_work_is_priced_along_its_power_trace():
    trace = pd.DataFrame({"time": [BEGIN + pd.Timedelta("1h"), BEGIN + pd.Timedelta("2h")], "cpu_w": [30.0, 10.0]})
    traces = {("train_diffusion", "m0"): trace.assign(gpu_w=np.nan, ram_w=0.0)}
    profile = energy_by_hour_kwh(work_of((0, 2.0, 4.0)), traces)
    assert list(profile[:3]) == pytest.approx([3.0, 1.0, 0.0])
    assert list(energy_by_hour_kwh(work_of((0, 2.0, 4.0)))[:3]) == pytest.approx([2.0, 2.0, 0.0])


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 80), st.floats(0.01, 50)), min_size=1, max_size=5),
    factor=st.floats(0.1, 10),
)
def test_emissions_are_linear_in_energy_and_additive_over_rows(rows, factor):
    work = work_of((0.0, 1.0, 1e-3), *rows)
    profile = energy_by_hour_kwh(work)
    assert profile.sum() == pytest.approx(work["energy_kwh"].sum())
    assert (profile >= 0).all()
    parts = [
        energy_by_hour_kwh(work.iloc[[0, place]]) - energy_by_hour_kwh(work.iloc[[0]]) for place in range(1, len(work))
    ]
    assert energy_by_hour_kwh(work.iloc[[0]]) + sum(parts) == pytest.approx(profile, abs=1e-9)
    scaled = work.assign(energy_kwh=work["energy_kwh"] * factor)
    assert energy_by_hour_kwh(scaled) == pytest.approx(profile * factor)


def test_all_zones_are_there_with_namibia_and_the_cleanest_first():
    table = whatif(work_of((0, 1.0, 1.0)))
    assert set(table["zone"]) == set(all_zones())
    assert len(table) == 12 * len(all_zones())
    assert (table["zone"] == "NA").sum() == 12
    means = table.groupby("zone", sort=False)["emissions_g"].mean()
    assert means.is_monotonic_increasing
    assert table["ratio_to_smallest"].min() == 1.0


def test_a_zone_with_an_annual_value_only_says_so_and_is_less_certain():
    table = whatif(work_of((0, 1.0, 1.0)), ["NA", "ZA"], [3])
    namibia, south_africa = (table[table["zone"] == zone].iloc[0] for zone in ("NA", "ZA"))
    assert "no seasonal data" in namibia["basis"]
    assert south_africa["basis"] == "hourly 2021-2024"
    widths = [
        (row["emissions_high_g"] - row["emissions_low_g"]) / row["emissions_g"] for row in (namibia, south_africa)
    ]
    assert widths[0] > widths[1] > 0.5  # the energy's own interval is 0.9 to 1.4


def test_intervals_of_energy_and_intensity_are_added_in_quadrature():
    row = whatif(work_of((0, 1.0, 1.0)), ["DE"], [1]).iloc[0]
    error = profile_error(intensity_of("DE", 2024))
    assert row["emissions_low_g"] / row["emissions_g"] == pytest.approx(1 - np.hypot(0.1, 1 - error.month_low))
    assert row["emissions_high_g"] / row["emissions_g"] == pytest.approx(1 + np.hypot(0.4, error.month_high - 1))
    unknown = work_of((0, 1.0, 1.0)).assign(energy_low_kwh=np.nan, energy_high_kwh=np.nan)
    row = whatif(unknown, ["DE"], [1]).iloc[0]
    assert row["emissions_low_g"] / row["emissions_g"] == pytest.approx(error.month_low)


def test_the_room_of_each_site_has_its_own_pue():
    table = whatif(work_of((0, 1.0, 1.0)), ["DE", "SE"], [1], pue={"": 1.5, "SE": 1.1}).set_index("zone")
    assert dict(table["pue"]) == {"DE": 1.5, "SE": 1.1}
    with pytest.raises(ValueError, match="at least 1"):
        whatif(work_of((0, 1.0, 1.0)), ["DE"], [1], pue=0.9)


def test_marginal_and_average_are_apart():
    times = pd.date_range("2026-01-01", "2027-01-01", freq="h", tz="UTC", inclusive="left")
    marginal = series_intensity(
        times, np.full(len(times), 900.0), zone=find_zone("DE"), source="m", kind="marginal direct"
    )
    table = whatif(work_of((0, 1.0, 1.0)), ["SE"], intensities=[marginal])
    assert set(table["intensity_kind"]) == {"average lifecycle", "marginal direct"}
    assert (table.groupby("intensity_kind")["ratio_to_smallest"].min() == 1.0).all()
    grams = table.loc[table["intensity_kind"] == "marginal direct", "emissions_g"]
    assert list(grams) == pytest.approx([900.0] * 12)


def test_months_that_a_file_does_not_have_are_left_out():
    times = pd.date_range("2026-03-01", "2026-04-01", freq="30min", tz="UTC", inclusive="left")
    values = 300 + 100 * np.sin(2 * np.pi * (times.hour + times.minute / 60) / 24)
    series = series_intensity(times, values, zone=find_zone("DE"), source="s", kind="average direct")
    table = whatif(work_of((0, 1.0, 1.0)), ["FR"], intensities=[series])
    direct = table[table["intensity_kind"] == "average direct"]
    assert list(direct["month"]) == [3]
    assert direct["emissions_g"].iloc[0] == pytest.approx(300.0)
    assert np.isnan(typical_of(series).table_g_per_kwh[3]).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"months": [13]}, "month 13"), ({"hours": [24]}, "hour 24"), ({"zones": ["Germani"]}, "unknown zone")],
)
def test_months_hours_and_zones_that_are_none_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        whatif(work_of((0, 1.0, 1.0)), **arguments)


# --- the zone's own time ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timezone", ["Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Etc/UTC"]
)
def test_every_local_and_every_utc_hour_is_used_once(timezone):
    weights = local_hour_weights(timezone, 2028)
    assert weights.sum(axis=1) == pytest.approx(np.ones((12, 24)))
    assert weights.sum(axis=2) == pytest.approx(np.ones((12, 24)))


def test_local_hours_follow_winter_summer_and_the_month_in_which_the_clock_changes():
    weights = local_hour_weights("Europe/Berlin", 2026)
    assert weights[0, 12, 11] == 1.0  # January: UTC+1
    assert weights[6, 12, 10] == 1.0  # July: UTC+2
    assert weights[2, 12, 10] == pytest.approx(3 / 31)  # 29 to 31 March
    assert weights[9, 12, 10] == pytest.approx(24 / 31)  # 1 to 24 October
    india = local_hour_weights("Asia/Kolkata", 2026)
    assert (india[5, 12, 6], india[5, 12, 7]) == (0.5, 0.5)


def test_a_day_in_local_hours_has_the_mean_of_the_day_in_utc():
    signal = typical_intensity_of("IN-WE")
    assert isinstance(signal, TypicalYearIntensity)
    local = by_local_hour(signal.table_g_per_kwh, signal.zone.timezone, 2024)
    assert local.mean(axis=1) == pytest.approx(signal.month_means())


# --- how far apart ------------------------------------------------------------------------------------------


def test_ratios_between_places_name_their_basis_and_are_held_against_what_was_published():
    annual, months, hours = between_places(2024)
    assert 55 < annual.ratio < 65  # grid tables: 57 to 63 in 2021 to 2025
    assert annual.ratio < months.ratio < hours.ratio
    for extremes in (annual, months, hours):
        assert extremes.reaches == (extremes.ratio >= 94)
        assert "published up to 94 times" in extremes.sentence()
    germany = between_months("DE")
    assert 1.2 < germany.ratio < 1.7
    assert germany.reaches == (germany.ratio >= 1.5)
    assert between_months("NA") is None


# --- files and the command ----------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path):
    plan = make_plan()
    table, _ = collect(tmp_path, plan, write_study(tmp_path, plan))
    table.to_csv(tmp_path / "ledger.csv", index=False)
    return tmp_path / "ledger.csv"


def test_the_studys_table_has_all_zones_and_months(ledger, tmp_path):
    write_whatif(ledger, [], carbon(pue=1.2, pue_by_zone={"aws:eu-north-1": 1.1}), tmp_path / "whatif.csv")
    table = pd.read_csv(tmp_path / "whatif.csv", keep_default_na=False, na_values=[""])
    assert len(table) == 12 * len(all_zones())
    assert set(table.loc[table["zone"] == "SE-SE3", "pue"]) == {1.1}
    assert set(table.loc[table["zone"] == "NA", "pue"]) == {1.2}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["whatif", *arguments])
    return status, *capsys.readouterr()


def test_the_command_prints_rows_as_json_and_a_table_for_a_person(ledger, capsys, tmp_path):
    status, out, _ = run(capsys, str(ledger), "--zones", "DE,NA,aws:eu-west-3", "--months", "1,7", "--json")
    rows = json.loads(out)
    assert status == 0
    assert {(row["zone"], row["month"]) for row in rows} == {(z, m) for z in ("DE", "NA", "FR") for m in (1, 7)}
    for row in rows:
        assert row["emissions_g"] == pytest.approx(row["energy_kwh"] * row["carbon_intensity_g_per_kwh"])
    status, out, _ = run(capsys, str(ledger), "--out", str(tmp_path / "all.csv"))
    assert status == 0
    assert "annual means 2024, 352 zones: " in out
    assert "345 more: --json or --out has them all" in out
    assert len(pd.read_csv(tmp_path / "all.csv")) == 12 * len(all_zones())


def test_the_command_adds_a_signal_from_a_file(ledger, capsys, tmp_path):
    times = pd.date_range("2026-03-01", "2026-04-01", freq="h", tz="UTC", inclusive="left")
    series = series_intensity(
        times, np.full(len(times), 800.0), zone=find_zone("DE"), source="w", kind="marginal direct"
    )
    write_intensity(series, times, tmp_path / "marginal.csv")
    status, out, _ = run(
        capsys, str(ledger), "--zones", "DE", "--intensity", str(tmp_path / "marginal.csv"), "--hours", "all"
    )
    assert status == 0
    assert "marginal direct" in out
    assert "average lifecycle" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--zones", "Germani"], "unknown zone 'Germani': did you mean DE"),
        (["--months", "0"], "--months: '0' is not one of 1 to 12, or all"),
        (["--hours", "x"], "--hours: 'x' is not one of 0 to 23, or all"),
        (["--pue", "DE=x"], "--pue: 'DE=x'"),
        (["--pue", "0.5"], "at least 1"),
        (["--intensity", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_is_one_line_and_status_2(ledger, capsys, arguments, said):
    status, out, err = run(capsys, str(ledger), *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_the_parser_is_added_like_every_other():
    parser = argparse.ArgumentParser()
    from emissions.whatif_command import register

    register(parser.add_subparsers())
    assert parser.parse_args(["whatif", "ledger.csv"]).zones == "all"
