"""History replayed: only what was known is used, and regret is against the same policy with perfect foresight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emissions.grid.intensity import GapError, SeriesIntensity
from emissions.grid.series import series_intensity
from emissions.grid.zones import find_zone
from emissions.schedule.backtest import POLICIES, ReplayJob, read_forecasts, regular_jobs, replay, summary
from emissions.schedule.pauses import PauseCost

START = pd.Timestamp("2024-03-01T00:00Z")
HOUR_S = 3600.0
KIND = "average direct"


def at(hours: float) -> pd.Timestamp:
    return START + pd.Timedelta(hours=hours)


def signal(values: list[float] | np.ndarray, begin_h: int = 0, zone: str = "DE", kind: str = KIND) -> SeriesIntensity:
    times = pd.date_range(at(begin_h), periods=len(values), freq="1h")
    return series_intensity(times, np.array(values, dtype=float), zone=find_zone(zone), source="made up", kind=kind)


def job(arrival_h: float = 0, duration_h: float = 1, slack_h: float = 3, pausable: bool = False) -> ReplayJob:
    return ReplayJob(at(arrival_h), duration_h * HOUR_S, 1.0, slack_h * HOUR_S, pausable)


def test_a_wrong_forecast_is_regretted() -> None:
    actual, forecast = signal([40, 10, 30, 20]), signal([40, 30, 10, 20])
    (row,) = replay(actual, [(at(0), forecast)], [job()], ["best start"]).to_dict("records")
    assert (row["now_g"], row["emissions_g"], row["perfect_g"]) == (40, 30, 10)
    assert row["regret"] == pytest.approx(2.0)
    assert (row["issued_at"], row["note"]) == (at(0), "")
    (told,) = summary(pd.DataFrame([row])).to_dict("records")
    assert told["saving_percent"] == pytest.approx(25)
    assert told["perfect_saving_percent"] == pytest.approx(75)
    assert told["realised_percent"] == pytest.approx(100 / 3)
    assert told["regret_percent"] == told["highest_regret_percent"] == pytest.approx(200)
    assert told["worse_percent"] == 0


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.integers(1, 900), min_size=8, max_size=30), duration=st.integers(1, 20))
def test_a_perfect_forecast_has_no_regret(values: list[int], duration: int) -> None:
    actual = signal(values)
    slack_h = len(values) - 3 - duration / 4
    rows = replay(actual, [(at(-1), actual)], [job(1.5, duration / 4, slack_h, pausable=True)])
    assert rows["policy"].tolist() == list(POLICIES)
    assert rows["regret"].to_numpy() == pytest.approx(0, abs=1e-9)
    emitted = rows.set_index("policy")["emissions_g"]
    assert emitted["paused"] <= emitted["best start"] + 1e-9
    assert emitted["best start"] <= rows["now_g"].iloc[0] + 1e-9


def test_a_later_forecast_is_never_looked_at() -> None:
    actual = signal(np.arange(20)[::-1] + 1.0)
    known = [(at(-6), signal([9] * 30, begin_h=-6)), (at(0), signal([5, 4, 3, 2, 1] * 4))]
    nonsense = signal([1, 1, 1, 1, 900, 900, 900, 900] * 3)
    jobs = [job(2, 2, 6, pausable=True), job(3.5, 1, 4)]
    without = replay(actual, known, jobs)
    for later in (at(3.5) + pd.Timedelta(seconds=1), at(4), at(100)):
        mixed = replay(actual, [(later, nonsense), *known[::-1]], jobs)
        pd.testing.assert_frame_equal(mixed, without)
    assert set(without["issued_at"]) == {at(0)}
    # one that is issued just then is known
    assert replay(actual, [*known, (at(3.5), nonsense)], jobs[1:])["issued_at"].tolist() == [at(3.5)]


def test_a_short_forecast_is_used_as_far_as_it_goes() -> None:
    actual = signal([40, 30, 20, 1, 1])
    (row,) = replay(actual, [(at(0), signal([40, 30, 20]))], [job(slack_h=4)]).to_dict("records")
    assert row["emissions_g"] == 20
    assert row["perfect_g"] == 1
    assert row["note"] == "the forecast ends 2024-03-01 03:00 UTC, before the deadline"


@pytest.mark.parametrize(
    ("forecasts", "note"),
    [
        ([], "no forecast had been issued: started now"),
        ([(at(0), signal([40, 30]))], "the forecast ends before the job would: started now"),
        ([(at(0), signal([40, np.nan, 20, 1, 1]))], "the forecast ends before the job would: started now"),
        ([(at(0), signal([1, 1, 1, 1, 1], begin_h=1))], "the forecast ends before the job would: started now"),
    ],
)
def test_without_a_forecast_of_the_job_it_starts_now(forecasts: list, note: str) -> None:
    rows = replay(signal([40, 30, 20, 1, 1]), forecasts, [job(duration_h=3, slack_h=2, pausable=True)])
    assert rows["note"].unique().tolist() == [note]
    assert (rows["emissions_g"] == rows["now_g"]).all()


def test_pausing_policies_are_for_jobs_that_may_be_paused() -> None:
    actual = signal([40, 10, 90, 20, 95])
    jobs = [job(duration_h=2, slack_h=3), job(duration_h=2, slack_h=3, pausable=True)]
    rows = replay(actual, [(at(0), actual)], jobs)
    assert rows["policy"].tolist() == ["best start", *POLICIES]
    assert rows["emissions_g"].tolist() == [25, 25, 15, 15]
    assert rows["pauses"].tolist() == [0, 0, 1, 1]


def test_pauses_are_paid_for() -> None:
    actual = signal([40, 10, 90, 20, 95])
    pause = PauseCost(checkpoint_kwh=0.01, restart_kwh=0.02)
    rows = replay(actual, [(at(0), actual)], [job(duration_h=2, slack_h=3, pausable=True)], ["paused"], pause, pue=2.0)
    assert rows["emissions_g"].tolist() == pytest.approx([2 * (15 + 0.01 * 90 + 0.02 * 20)])


def test_the_threshold_acts_on_what_it_sees() -> None:
    """Its limit comes from the forecast; the hours it works in are those that really are below it."""
    forecast, actual = signal([50, 20, 50, 20, 50]), signal([50, 50, 20, 50, 20])
    rows = replay(actual, [(at(0), forecast)], [job(duration_h=2, slack_h=3, pausable=True)], ["paused", "threshold"])
    assert rows["emissions_g"].tolist() == [50, 20]


def test_the_threshold_waits_on_after_its_forecast_has_ended() -> None:
    forecast, actual = signal([50, 20, 50]), signal([50, 50, 50, 50, 20])
    rows = replay(actual, [(at(0), forecast)], [job(duration_h=1, slack_h=4, pausable=True)], ["threshold"])
    assert rows["emissions_g"].tolist() == [20]


def test_regular_jobs_end_with_history() -> None:
    actual = signal(np.ones(72))
    jobs = regular_jobs(actual, 24 * HOUR_S, 6 * HOUR_S, 12 * HOUR_S, begin=at(5))
    assert [one.arrival for one in jobs] == [at(5), at(29), at(53)]
    assert jobs[0].deadline == at(23)
    assert [one.arrival for one in regular_jobs(actual, 24 * HOUR_S, 12 * HOUR_S, 12 * HOUR_S + 1)] == [at(0), at(24)]
    with pytest.raises(ValueError, match="shorter than a job"):
        regular_jobs(actual, HOUR_S, 72 * HOUR_S, HOUR_S)
    with pytest.raises(ValueError, match="every_s is 0"):
        regular_jobs(actual, 0, HOUR_S, HOUR_S)


@pytest.mark.parametrize(
    ("forecast", "policies", "message"),
    [
        (signal([1, 2, 3, 4], zone="FR"), POLICIES, "has zone FR, and history made up has DE"),
        (signal([1, 2, 3, 4], kind="marginal direct"), POLICIES, "has kind marginal direct"),
        (signal([1, 2, 3, 4]), ["guess"], "policy 'guess' is not one of best start, paused, threshold"),
    ],
)
def test_what_does_not_belong_together_is_said(forecast: SeriesIntensity, policies: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(signal([1, 2, 3, 4]), [(at(0), forecast)], [job()], policies)


def test_a_gap_in_history_and_a_negative_slack_are_refused() -> None:
    with pytest.raises(GapError, match="2024-03-01 02:00"):
        replay(signal([1, 2, np.nan, 4]), [], [job()])
    with pytest.raises(ValueError, match="slack_s is -3600"):
        job(slack_h=-1)


# --- files

HEADER = "issued_at,time,carbon_intensity_g_per_kwh\n"


def test_forecasts_are_read_by_their_issue(tmp_path: Path) -> None:
    path = tmp_path / "issued.csv"
    path.write_text(
        HEADER + "2024-03-02T00:00Z,2024-03-02T00:00Z,7\n"
        "2024-03-01T00:00Z,2024-03-01T00:00Z,1\n2024-03-01 00:00,2024-03-01T02:00+01:00,2\n"
    )
    found = read_forecasts(path, "DEU", KIND)
    assert [issued for issued, _ in found] == [at(0), at(24)]
    assert found[0][1].series(at(0), at(2)).tolist() == [1, 2]
    assert (found[0][1].zone.zone, found[0][1].kind) == ("DE", KIND)
    assert found[0][1].source == "issued.csv, issued 2024-03-01 00:00 UTC"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("issued_at,time\n", "has no column carbon_intensity_g_per_kwh"),
        (HEADER + "2024-03-01T00:00Z,soon,3\n", "row 2: 'soon' is not a time"),
        (HEADER + "2024-03-01T00:00Z,2024-03-01T00:00Z,3\n,2024-03-01T00:00Z,3\n", "row 3: nan is not a time"),
        (HEADER + "2024-03-01T00:00Z,2024-03-01T00:00Z,low\n", "row 2: 'low' is not a number"),
        (HEADER + 2 * "2024-03-01T00:00Z,2024-03-01T00:00Z,3\n", "00:00 UTC is there twice"),
        ("zone," + HEADER + "FR,2024-03-01T00:00Z,2024-03-01T00:00Z,3\n", "column zone holds FR, not DE alone"),
        (HEADER, "has no forecasts"),
    ],
)
def test_a_file_of_forecasts_that_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "issued.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_forecasts(path, "DE", KIND)
    assert "issued.csv" in str(error.value)
