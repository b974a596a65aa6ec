"""Prices against closed forms and the published worked examples."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions.equivalents import CAR_SOURCE, car_km
from emissions.grid.intensity import AnnualIntensity, CarbonIntensity, TypicalYearIntensity, intensity_of
from emissions.grid.zones import find_zone
from emissions.ledger import record_key
from emissions.pricing import (
    PRICE_COLUMNS,
    energy_by_slot_kwh,
    mean_intensity_g_per_kwh,
    operational_emissions_g,
    price_ledger,
    read_traces,
    software_carbon_intensity_g,
    write_prices,
)
from emissions.records import utc_text
from emissions.tables import read_table
from tests.emissions.studies import carbon, collect, make_plan, make_record, write_study

START = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
SECONDS = st.integers(1, 300_000)
OFFSETS = st.integers(0, 3_000_000)


@dataclass(frozen=True, kw_only=True)
class SineIntensity(CarbonIntensity):
    """300 + 100 sin over one day: its integral is known."""

    def lookup(self, times: pd.DatetimeIndex) -> np.ndarray:
        return 300 + 100 * np.sin(2 * np.pi * (times.hour.to_numpy() + 0.5) / 24)

    @property
    def data_hash(self) -> str:
        return "made up"


def sine() -> SineIntensity:
    return SineIntensity(zone=find_zone("DE"), source="made up", basis="made up", year=None)


def two_hours(first: float, second: float) -> TypicalYearIntensity:
    """Hours 10 and 11 of every day at these values, all others at 0."""
    table = np.zeros((12, 24))
    table[:, 10], table[:, 11] = first, second
    return TypicalYearIntensity(
        zone=find_zone("DE"), source="made up", basis="made up", year=None, table_g_per_kwh=table
    )


def trace_of(start: datetime, seconds: list[float], watts: list[float]) -> pd.DataFrame:
    times = [start + timedelta(seconds=second) for second in seconds]
    return pd.DataFrame({"time": times, "cpu_w": watts, "gpu_w": np.nan, "ram_w": 0.0})


def ledger_of(**changes: object) -> pd.DataFrame:
    return pd.DataFrame([make_record("train_diffusion", "m", **changes)])


def test_o_is_e_times_i_with_e_after_pue():
    assert operational_emissions_g(2.0, 1.5, 400.0) == 1200.0


def test_sci_is_o_plus_m_per_r():
    assert software_carbon_intensity_g(1000.0, 200.0, 10) == 120.0
    with pytest.raises(ValueError, match="above zero"):
        software_carbon_intensity_g(1.0, 1.0, 0)


def test_250_g_are_2_33_km_by_car():
    """carbontracker's own test."""
    assert car_km(250.0) == pytest.approx(2.3256, abs=1e-4)
    assert "107.5" in CAR_SOURCE
    assert "European Environment Agency" in CAR_SOURCE


def test_without_a_trace_energy_is_spread_evenly_in_time():
    energy = energy_by_slot_kwh(START, START + timedelta(hours=2), 4.0)
    assert list(energy) == pytest.approx([1.0, 2.0, 1.0])
    assert [hour.hour for hour in energy.index] == [10, 11, 12]


def test_a_job_shorter_than_an_hour_is_still_split_at_the_hour():
    intensity = two_hours(100.0, 400.0)
    start = START + timedelta(minutes=15)  # 10:45 to 11:15
    assert mean_intensity_g_per_kwh(intensity, start, start + timedelta(minutes=30)) == pytest.approx(250.0)


def test_a_long_job_is_priced_along_its_power_trace():
    start, end = START.replace(minute=0), START.replace(minute=0) + timedelta(hours=2)
    trace = trace_of(start, [3600.0, 7200.0], [30.0, 10.0])  # 3 of 4 joules in the first hour
    assert mean_intensity_g_per_kwh(two_hours(100.0, 400.0), start, end, trace) == pytest.approx(175.0)
    assert mean_intensity_g_per_kwh(two_hours(100.0, 400.0), start, end) == pytest.approx(250.0)


def test_readings_outside_the_job_do_not_count_and_the_last_power_holds_to_the_end():
    start, end = START.replace(minute=0), START.replace(minute=0) + timedelta(hours=2)
    trace = trace_of(start, [-60.0, 1800.0, 3600.0], [1e6, 10.0, 10.0])  # killed half-way
    assert list(energy_by_slot_kwh(start, end, 1.0, trace)) == pytest.approx([0.5, 0.5])


def test_a_trace_without_power_falls_back_to_time():
    start, end = START.replace(minute=0), START.replace(minute=0) + timedelta(hours=2)
    assert list(energy_by_slot_kwh(start, end, 1.0, trace_of(start, [7200.0], [0.0]))) == pytest.approx([0.5, 0.5])
    assert list(energy_by_slot_kwh(start, end, 1.0, trace_of(start, [], []))) == pytest.approx([0.5, 0.5])


def test_a_job_of_no_time_keeps_its_energy():
    assert list(energy_by_slot_kwh(START, START, 2.0)) == [2.0]


def test_the_mean_over_a_window_of_a_sine_is_its_integral():
    """The window average of cats: over [a, b) the mean of sin is (cos a - cos b) / (b - a)."""
    start, hours = datetime(2026, 1, 15, tzinfo=UTC), 12
    mean = mean_intensity_g_per_kwh(sine(), start, start + timedelta(hours=hours))
    exact = 300 + 100 * (1 - math.cos(math.pi)) / math.pi
    assert mean == pytest.approx(exact, rel=1e-3)  # midpoint rule over 12 steps: 0.3 % of the sine
    whole_day = mean_intensity_g_per_kwh(sine(), start, start + timedelta(hours=24))
    assert whole_day == pytest.approx(300.0)


@given(offset_s=OFFSETS, seconds=SECONDS, cut=st.floats(0, 1), energy_kwh=st.floats(1e-6, 1e6))
def test_windows_add_up(offset_s, seconds, cut, energy_kwh):
    """Priced in one piece or cut anywhere in two, with energy in proportion: the same grams."""
    start = START + timedelta(seconds=offset_s)
    end, middle = start + timedelta(seconds=seconds), start + timedelta(seconds=seconds * cut)
    share = (middle - start) / (end - start)

    def grams(a: datetime, b: datetime, kwh: float) -> float:
        return operational_emissions_g(kwh, 1.0, mean_intensity_g_per_kwh(sine(), a, b))

    parts = grams(start, middle, share * energy_kwh) + grams(middle, end, (1 - share) * energy_kwh)
    assert parts == pytest.approx(grams(start, end, energy_kwh), rel=1e-6)


@given(
    offset_s=OFFSETS,
    seconds=SECONDS,
    energy_kwh=st.floats(0, 1e6),
    watts=st.lists(st.floats(0, 1000), min_size=1, max_size=30),
)
def test_the_hours_of_a_job_add_up_to_its_energy(offset_s, seconds, energy_kwh, watts):
    start = START + timedelta(seconds=offset_s)
    times = [seconds * (i + 1) / len(watts) for i in range(len(watts))]
    trace = trace_of(start, times, watts)
    energy = energy_by_slot_kwh(start, start + timedelta(seconds=seconds), energy_kwh, trace)
    assert energy.sum() == pytest.approx(energy_kwh)
    assert (energy >= 0).all()


@given(factor=st.floats(0.01, 100), seconds=SECONDS)
def test_emissions_are_linear_in_energy_and_in_intensity(factor, seconds):
    ended = utc_text(START + timedelta(seconds=seconds))
    started = utc_text(START)
    base = ledger_of(started_at=started, ended_at=ended, energy_kwh=0.5)
    more = ledger_of(started_at=started, ended_at=ended, energy_kwh=0.5 * factor)
    one, scaled = two_hours(100.0, 400.0), two_hours(100.0 * factor, 400.0 * factor)
    grams = price_ledger(base, one, 1.2)["emissions_g"].iloc[0]
    assert price_ledger(more, one, 1.2)["emissions_g"].iloc[0] == pytest.approx(factor * grams)
    assert price_ledger(base, scaled, 1.2)["emissions_g"].iloc[0] == pytest.approx(factor * grams)
    assert price_ledger(base, one, 2.4)["emissions_g"].iloc[0] == pytest.approx(2 * grams)


def test_a_priced_row_says_where_its_numbers_come_from():
    row = price_ledger(ledger_of(energy_kwh=0.4), intensity_of("NA", 2024), 1.5).iloc[0]
    assert tuple(row.index[-len(PRICE_COLUMNS) :]) == PRICE_COLUMNS
    assert (row["zone"], row["pue"], row["intensity_kind"]) == ("NA", 1.5, "average lifecycle")
    assert row["carbon_intensity_g_per_kwh"] == 43.0
    assert row["emissions_g"] == pytest.approx(0.4 * 1.5 * 43.0)
    assert row["emissions_low_g"] == pytest.approx(0.9 * row["emissions_g"])
    assert row["emissions_high_g"] == pytest.approx(1.1 * row["emissions_g"])


def test_a_failed_attempt_is_priced_at_its_own_time():
    """1 kWh at 10 o'clock that failed, 3 kWh at 11 that succeeded: (1 x 100 + 3 x 400) g."""
    ledger = ledger_of(energy_kwh=4.0, started_at="2026-01-15T10:00:00.000Z", ended_at="2026-01-15T12:00:00.000Z")
    attempts = pd.DataFrame(
        {
            "stage": "train_diffusion",
            "item": "m",
            "started_at": ["2026-01-15T10:00:00.000Z", "2026-01-15T11:00:00.000Z"],
            "ended_at": ["2026-01-15T10:30:00.000Z", "2026-01-15T12:00:00.000Z"],
            "energy_kwh": [1.0, 3.0],
        }
    )
    priced = price_ledger(ledger, two_hours(100.0, 400.0), 1.0, attempts=attempts)
    assert priced["emissions_g"].iloc[0] == pytest.approx(1300.0)
    with pytest.raises(ValueError, match="collect the ledger again"):
        price_ledger(ledger, two_hours(1, 1), 1.0, attempts=attempts.iloc[:0])


@pytest.mark.parametrize("pue", [0.9, 0, -1, float("nan"), float("inf"), "1.2", True, None])
def test_a_pue_below_one_is_refused(pue):
    intensity = intensity_of("DE", 2024)
    with pytest.raises(ValueError, match=r"carbon\.pue"):
        price_ledger(ledger_of(), intensity, pue)


def test_an_unknown_energy_has_an_unknown_price(tmp_path):
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    ledger, _ = collect(tmp_path, plan, write_study(tmp_path, plan))
    ledger.loc[0, "energy_low_kwh"] = pd.NA
    priced = price_ledger(ledger, intensity_of("DE", 2024), 1.0)
    assert math.isnan(priced["emissions_low_g"].iloc[0])
    assert priced["emissions_g"].notna().all()


def test_only_traces_of_jobs_that_touch_two_hours_are_read(tmp_path):
    long = tmp_path / "results/models/m/emissions/train_diffusion.power.parquet"
    long.parent.mkdir(parents=True)
    trace_of(START, [60.0], [10.0]).to_parquet(long)
    ledger = ledger_of(started_at="2026-01-15T10:59:00.000Z", ended_at="2026-01-15T11:01:00.000Z")
    assert record_key(long) == ("train_diffusion", "m")
    assert list(read_traces(ledger, [long])) == [("train_diffusion", "m")]
    assert read_traces(ledger_of(), [long, tmp_path / "results/runs/r/emissions/missing.power.parquet"]) == {}
    long.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"train_diffusion\.power\.parquet"):
        read_traces(ledger, [long])


def test_the_whole_step_reads_and_writes_files(tmp_path):
    plan = make_plan()
    ledger, attempts = collect(tmp_path, plan, write_study(tmp_path, plan))
    ledger.to_csv(tmp_path / "ledger.csv", index=False)
    attempts.to_csv(tmp_path / "attempts.csv", index=False)
    write_prices(tmp_path / "ledger.csv", tmp_path / "attempts.csv", [], tmp_path / "priced.csv", carbon(zone="NAM"))
    priced = read_table(tmp_path / "priced.csv")
    assert set(priced["zone"]) == {"NA"}
    assert priced["emissions_g"].sum() == pytest.approx(43.0 * ledger["energy_kwh"].sum())


def test_annual_intensity_needs_no_trace():
    namibia = intensity_of("NA", 2024)
    assert isinstance(namibia, AnnualIntensity)
    assert mean_intensity_g_per_kwh(namibia, START, START + timedelta(days=3)) == pytest.approx(43.0)
