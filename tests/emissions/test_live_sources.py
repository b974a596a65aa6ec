"""Each live source against a server on this machine: what it is worth when it is right, and what it says when not."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emissions.acting.signal import StudySignal
from emissions.grid.choice import intensity_ahead
from emissions.grid.intensity import GapError, intensity_of
from emissions.grid.live import SOURCES, LiveSettings, SourceError, forecast, history, history_or_tables
from emissions.grid.live.factors import FACTORS_G_PER_KWH, STORAGE, UNKNOWN, mix_intensity
from emissions.grid.zones import find_zone
from emissions.pricing import mean_intensity_g_per_kwh
from tests.emissions.live import CASES, DAY, EACH, START, Case, age, expected, mix_g_per_kwh, server, settings
from tests.emissions.studies import carbon
from tests.standins.grid_server import GridServer, grams, month_grams

__all__ = ["server", "settings"]

pytestmark = [  # entsoe-py's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning:entsoe"),
    pytest.mark.filterwarnings("ignore:It looks like you're using an HTML parser"),
]

# fault -> what the one line says
FOREVER = {
    "429": "HTTP 429 (fault 429 of ",
    "500": "HTTP 500 (fault 500 of ",
    "401": "the token is wrong, has expired or does not cover this",
    "truncated": "the answer was cut off after 4 tries",
    "half": "the answer was cut off or is not in the documented form after 4 tries",
    "redirect": "HTTP 302: redirects are not followed",
}
WRONG_UNIT = {
    "electricity_maps": "this is not gCO2e/kWh; is it kg/kWh?",
    "uk": "the API gives whole gCO2/kWh: another unit?",
    "entsoe": "asked for unit MAW, and the answer has 'KWT'",
    "eia": "asked for unit megawatthours, and the answer has 'kilowatthours'",
    "ember": "has no `emissions_intensity_gco2_per_kwh`: another unit",
    "watttime": "asked for unit lbs_co2_per_mwh, and the answer has 'kg_co2_per_mwh'",
}


@EACH
def test_a_good_answer_is_priced_by_its_closed_form(case: Case, server: GridServer, settings: LiveSettings):
    series = case.ask(settings)
    pd.testing.assert_series_equal(
        series.values_g_per_kwh, expected(case, START, START + DAY), check_freq=False, check_names=False
    )
    assert (series.kind, series.step) == (case.kind, pd.Timedelta(minutes=case.step_min))
    assert series.source.startswith(SOURCES[case.name].title)
    start, end = START + timedelta(hours=5, minutes=30), START + timedelta(hours=6, minutes=15)
    values = expected(case, START, START + DAY).resample("5min").ffill()
    mean = values[(values.index >= start) & (values.index < end)].mean()
    assert mean_intensity_g_per_kwh(series, start, end) == pytest.approx(mean)


@EACH
@pytest.mark.parametrize("fault", ["429", "truncated"])
def test_a_fault_that_passes_is_not_seen(case: Case, fault: str, server: GridServer, settings: LiveSettings):
    server.next(fault)
    assert case.ask(settings).values_g_per_kwh.iloc[0] == pytest.approx(case.value_g_per_kwh(START))
    assert len(server.data_requests) == 2


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        pytest.param(case, fault, id=f"{name}-{fault}")
        for name, case in CASES.items()
        for fault in (*FOREVER, "unit", "last_year", "zone")
        if (name, fault) != ("uk", "zone")  # the API does not say its zone: it has one
    ],
)
def test_a_fault_that_stays_is_one_clear_line_and_the_tables_stand_in_or_cannot(
    case: Case, fault: str, server: GridServer, settings: LiveSettings, caplog: pytest.LogCaptureFixture
):
    server.always = fault
    zone, end = find_zone(case.zone), START + timedelta(hours=6)
    if case.kind == "average lifecycle":
        with caplog.at_level(logging.WARNING):
            signal = history_or_tables(case.name, zone, START, end, settings, 2024, True)
        tables = intensity_of(zone, 2024)
        pd.testing.assert_series_equal(signal.series(START, end), tables.series(START, end))
        told = signal.source_at(pd.DatetimeIndex([START]))
        assert told.startswith(f"{tables.source}, for want of {SOURCES[case.name].title} (")
        said = [record.getMessage() for record in caplog.records if record.name == "emissions.grid.live.ask"]
        assert len(said) == 1
        message, instead = said[0].rsplit("; ", 1)
        assert instead == f"{tables.source} stands in"
    else:
        with pytest.raises(SourceError) as caught:
            history_or_tables(case.name, zone, START, end, settings, 2024, True)
        message, instead = str(caught.value).rsplit("; ", 1)
        assert instead == f"the tables are average lifecycle and cannot stand in for {case.kind}"
    assert message.startswith(f"{case.name}: {case.zone}: ")
    wrong = {"unit": WRONG_UNIT[case.name], "last_year": ", which was not asked for", "zone": "asked for "}
    assert (FOREVER | wrong)[fault] in message
    assert "\n" not in message
    assert ("2025-03-" in message) == (fault == "last_year")
    if fault in ("429", "500"):
        assert message.endswith("after 4 tries")
        assert len(server.data_requests) == 4


def test_without_fallback_nothing_stands_in(server: GridServer, settings: LiveSettings):
    server.always = "401"
    with pytest.raises(SourceError, match=r"electricity_maps: DE: HTTP 401 .*expired"):
        history_or_tables("electricity_maps", find_zone("DE"), START, START + DAY, settings, 2024, False)


@EACH
@pytest.mark.parametrize("fault", ["429", "401", "unit", "last_year"])
def test_an_older_answer_stands_in_and_says_how_old_it_is(
    case: Case, fault: str, server: GridServer, settings: LiveSettings, caplog: pytest.LogCaptureFixture
):
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=30)
    end = start + timedelta(hours=12)
    first = case.ask(settings, start, end)
    age(str(settings.cache), 5.2)
    server.always = fault
    with caplog.at_level(logging.WARNING):
        again = case.ask(settings, start, end)
    assert again.data_hash == first.data_hash
    assert again.source == f"{first.source}, cached 5.2 h ago"
    assert again.source_at(pd.DatetimeIndex([start])).endswith("cached 5.2 h ago")
    assert f"{case.name}: {case.zone}: " in caplog.text and "using the answer cached 5.2 h ago" in caplog.text


@pytest.mark.parametrize(
    ("name", "days", "requests"),
    [
        ("electricity_maps", 25, 3),
        ("uk", 30, 3),
        ("entsoe", 40, 2),
        ("eia", 31, 2),
        ("ember", 70, 1),
        ("watttime", 40, 2),
    ],
)
def test_long_spans_are_asked_for_in_pages(
    name: str, days: int, requests: int, server: GridServer, settings: LiveSettings
):
    case, end = CASES[name], START + timedelta(days=days)
    patient = replace(settings, timeout_s=5.0)
    pd.testing.assert_series_equal(
        case.ask(patient, START, end).values_g_per_kwh, expected(case, START, end), check_freq=False, check_names=False
    )
    assert len(server.data_requests) == requests


def test_a_page_that_fails_fails_the_whole_answer(server: GridServer, settings: LiveSettings):
    server.next("good", "429", "429", "429", "429")
    with pytest.raises(SourceError, match="HTTP 429"):
        CASES["uk"].ask(settings, START, START + timedelta(days=20))


def test_eia_pages_that_end_too_early_are_refused(server: GridServer, settings: LiveSettings):
    server.always = "short"
    with pytest.raises(SourceError, match="the answer ended after 5000 of 5208 rows"):
        CASES["eia"].ask(replace(settings, timeout_s=5.0), START, START + timedelta(days=31))


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
@pytest.mark.parametrize("name", ["entsoe", "electricity_maps", "uk"])
def test_days_of_23_and_25_hours_have_as_many(
    name: str, day: str, hours: int, server: GridServer, settings: LiveSettings
):
    start = pd.Timestamp(day, tz="Europe/Berlin")
    end = (start + pd.DateOffset(days=1)).to_pydatetime()
    series = CASES[name].ask(settings, start.to_pydatetime(), end)
    assert len(series.values_g_per_kwh) == hours * 60 // CASES[name].step_min
    utc_start = start.tz_convert("UTC").to_pydatetime()
    pd.testing.assert_series_equal(
        series.values_g_per_kwh,
        expected(CASES[name], utc_start, end.astimezone(UTC)),
        check_freq=False,
        check_names=False,
    )


@pytest.mark.parametrize("name", ["entsoe", "electricity_maps", "ember", "eia"])
def test_no_data_is_a_gap_that_the_tables_fill(name: str, server: GridServer, settings: LiveSettings):
    server.always = "empty"
    case, zone = CASES[name], find_zone(CASES[name].zone)
    series = case.ask(settings)
    assert len(series.values_g_per_kwh) == 24 and series.values_g_per_kwh.isna().all()
    signal = history_or_tables(name, zone, START, START + DAY, settings, 2024, True)
    assert signal.at(START) == intensity_of(zone, 2024).at(START)


def test_a_gap_of_another_kind_stays_one(server: GridServer, settings: LiveSettings, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        signal = history_or_tables("uk", find_zone("GB"), START, START + DAY, settings, 2024, True)
    assert "1 of 48 slots have no value" in caplog.text and "cannot stand in for average direct" in caplog.text
    with pytest.raises(ValueError, match="2026-03-10 03:40 UTC"):
        signal.at(START + timedelta(hours=3, minutes=40))


# --- one source each


def test_electricity_maps_kind_is_that_of_its_factors(server: GridServer, settings: LiveSettings):
    server.next("direct", "mixed")
    assert CASES["electricity_maps"].ask(settings).kind == "average direct"
    with pytest.raises(SourceError, match="emission factors are direct and lifecycle"):
        CASES["electricity_maps"].ask(settings, START + DAY, START + 2 * DAY)


def test_electricity_maps_says_which_hours_are_estimated(server: GridServer, settings: LiveSettings):
    series = CASES["electricity_maps"].ask(settings)
    assert series.source_at(pd.DatetimeIndex([START])) == "Electricity Maps v3"
    assert series.source_at(pd.DatetimeIndex([START + timedelta(hours=20)])) == "Electricity Maps v3, estimated"


def test_electricity_maps_last_24_hours_need_no_paid_endpoint(server: GridServer, settings: LiveSettings):
    now = datetime.now(UTC)
    series = CASES["electricity_maps"].ask(settings, now - timedelta(hours=3), now)
    assert series.values_g_per_kwh.notna().all()
    assert [path for path, _ in server.requests] == ["/v3/carbon-intensity/history"]


def test_an_hour_of_eia_is_named_by_its_end(server: GridServer, settings: LiveSettings):
    CASES["eia"].ask(settings)
    query = server.requests[0][1]
    assert (query["start"], query["end"]) == ("2026-03-10T01", "2026-03-11T00")


def test_the_share_of_unknown_fuel_is_told(server: GridServer, settings: LiveSettings):
    one_hour = CASES["entsoe"].ask(settings, START, START + timedelta(hours=1))
    assert one_hour.source.endswith(f"; {100 / 4400:.1%} of unknown fuel counted like the rest")


def test_ember_has_a_value_a_month(server: GridServer, settings: LiveSettings):
    series = CASES["ember"].ask(settings, datetime(2026, 1, 31, 22, tzinfo=UTC), datetime(2026, 2, 1, 2, tzinfo=UTC))
    assert list(series.values_g_per_kwh) == [month_grams(2026, 1)] * 2 + [month_grams(2026, 2)] * 2


def test_a_month_beside_those_asked_for_changes_nothing(server: GridServer, settings: LiveSettings):
    server.next("beside")
    assert set(CASES["ember"].ask(settings).values_g_per_kwh) == {month_grams(2026, 3)}


def test_watttime_renews_a_session_that_has_run_out_once(server: GridServer, settings: LiveSettings):
    server.next("revoked")
    assert CASES["watttime"].ask(settings).values_g_per_kwh.notna().all()
    assert [path for path, _ in server.requests].count("/login") == 2
    server.always = "revoked"
    with pytest.raises(SourceError, match=r"HTTP 401 \(Invalid token\): the token is wrong, has expired"):
        CASES["watttime"].ask(settings, START + DAY, START + 2 * DAY)
    assert [path for path, _ in server.requests].count("/login") == 4


def test_watttime_health_damage_is_no_carbon(server: GridServer, settings: LiveSettings):
    server.always = "signal"
    with pytest.raises(SourceError, match="asked for signal co2_moer, and the answer has 'health_damage'"):
        CASES["watttime"].ask(settings)


@pytest.mark.parametrize(
    ("name", "zone", "said"),
    [
        ("uk", "DE", "zone GB only"),
        ("entsoe", "US-CAL-CISO", "no generation of this zone"),
        ("eia", "DE", "contiguous United States only"),
        ("ember", "US-CAL-CISO", "whole countries only, such as US"),
    ],
)
def test_a_zone_that_a_source_does_not_have(
    name: str, zone: str, said: str, server: GridServer, settings: LiveSettings
):
    with pytest.raises(SourceError, match=f"{name}: {zone}: this source has .*{said}"):
        history(name, find_zone(zone), START, START + DAY, settings)
    assert server.requests == []


def test_without_entsoe_py_the_extra_is_named(
    server: GridServer, settings: LiveSettings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "entsoe", None)
    with pytest.raises(SourceError, match=r"entsoe: DE: needs entsoe-py: pip install 'latent-footprint\[entsoe\]'"):
        CASES["entsoe"].ask(settings)


def test_every_area_of_entsoe_is_one_that_entsoe_py_knows():
    from entsoe.mappings import lookup_area

    from emissions.grid.live import entsoe
    from emissions.grid.zones import all_zones

    names = {zone: zone for zone in entsoe._COUNTRIES} | entsoe._OTHERWISE
    assert set(names) <= set(all_zones())
    assert all(lookup_area(name).name for name in names.values())


# --- forecasts


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.forecasts])
def test_a_forecast_starts_now_and_has_its_closed_form(name: str, server: GridServer, settings: LiveSettings):
    case, now = CASES[name], datetime.now(UTC)
    series = forecast(name, find_zone(case.zone), settings, now)
    first = pd.Timestamp(now).floor(series.step)
    assert series.values_g_per_kwh.index[0] == first
    assert len(series.values_g_per_kwh) >= 24
    assert series.at(now) == pytest.approx(case.value_g_per_kwh(first.to_pydatetime()))
    assert "forecast" in series.source and series.kind == case.kind


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.forecasts])
@pytest.mark.parametrize("fault", ["401", "last_year", "empty"])
def test_a_forecast_that_fails_is_refused_or_an_older_one_used(
    name: str, fault: str, server: GridServer, settings: LiveSettings
):
    case, now = CASES[name], datetime.now(UTC)
    zone = find_zone(case.zone)
    server.always = fault
    with pytest.raises(SourceError, match=f"{name}: {case.zone}: "):
        forecast(name, zone, settings, now)
    server.always = "good"
    kept = forecast(name, zone, settings, now)
    server.always = fault
    later = now + timedelta(hours=3)
    series = forecast(name, zone, settings, later)
    assert series.source == f"{kept.source}, cached 3.0 h ago"
    assert series.at(later) == kept.at(later)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.forecasts])
def test_a_source_without_forecasts_says_which_have_them(name: str, settings: LiveSettings):
    with pytest.raises(ValueError, match=f"{name}: has no forecasts; electricity_maps, uk, watttime have"):
        forecast(name, find_zone("DE"), settings, datetime.now(UTC))


# --- from generation to intensity


def hours_of(**fuels: list[float]) -> pd.DataFrame:
    hours = len(next(iter(fuels.values())))
    table = pd.DataFrame(fuels, index=pd.date_range("2026-03-10", periods=hours, freq="h", tz="UTC"), dtype=float)
    return table.rename(columns={"unknown": UNKNOWN, "storage": STORAGE})


def test_a_mix_is_weighted_by_generation_without_storage_and_own_use():
    values, share = mix_intensity(hours_of(coal=[100, 0], wind=[300, 50], solar=[-5, -1], storage=[900, -900]))
    assert list(values) == pytest.approx([(100 * 820 + 300 * 11) / 400, 11.0])
    assert share == 0.0


def test_an_hour_of_mostly_unknown_fuel_is_a_gap():
    values, share = mix_intensity(hours_of(gas=[75, 70], unknown=[25, 30]))
    assert values[0] == 490.0 and np.isnan(values[1])
    assert share == 0.25


def test_a_fuel_that_is_reported_late_makes_a_gap_and_solar_at_night_does_not():
    nan = float("nan")
    generation = hours_of(
        coal=[100, nan, 100, 100], wind=[50, 50, nan, 50], solar=[nan, nan, nan, nan], oil=[1, 1, 1, nan]
    )
    assert list(np.isnan(mix_intensity(generation)[0])) == [False, True, True, False]


def test_an_hour_without_generation_is_a_gap():
    assert np.isnan(mix_intensity(hours_of(coal=[0.0], wind=[0.0]))[0]).all()


def test_the_closed_form_of_these_tests_is_not_that_of_the_code():
    by_hand = (1000 * 820 + 500 * 490 + 2000 * 11 + 800 * 12) / 4300
    assert mix_g_per_kwh(START) == pytest.approx(by_hand)
    assert FACTORS_G_PER_KWH["coal"] == 820.0


# --- what a study goes by


def study(name: str, zone: str, settings: LiveSettings, *, fallback: bool = True) -> dict[str, Any]:
    live = {"url": None, "token_file": None, "cache": settings.cache, "max_age_h": 1.0, "timeout_s": settings.timeout_s}
    return carbon(zone=zone, intensity=name, fallback=fallback, live=live)


@pytest.mark.usefixtures("server")
def test_a_study_looks_ahead_by_the_forecast_and_by_the_tables_after_it(settings: LiveSettings):
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    ahead = intensity_ahead(study("electricity_maps", "DE", settings), now)
    assert ahead.at(now) == pytest.approx(grams(now))
    later = now + timedelta(days=9)
    assert ahead.at(later) == intensity_of("DE", 2024).at(later)
    assert "for want of" in ahead.source_at(pd.DatetimeIndex([later]))
    strict = intensity_ahead(study("electricity_maps", "DE", settings, fallback=False), now)
    with pytest.raises(GapError):
        strict.at(later)


@pytest.mark.parametrize("name", ["electricity_maps", "entsoe"])
def test_the_tables_stand_in_for_a_forecast_that_fails_or_that_there_is_none_of(
    name: str, server: GridServer, settings: LiveSettings, caplog: pytest.LogCaptureFixture
):
    server.always = "500"
    now = datetime.now(UTC)
    assert intensity_ahead(study(name, "DE", settings), now).at(now) == intensity_of("DE", 2024).at(now)
    assert "stands in" in caplog.text and name in caplog.text
    with pytest.raises(ValueError, match=name):
        intensity_ahead(study(name, "DE", settings, fallback=False), now)


def test_nothing_stands_in_for_a_forecast_of_another_kind(server: GridServer, settings: LiveSettings):
    server.always = "500"
    with pytest.raises(ValueError, match="watttime"):
        intensity_ahead(study("watttime", "US-CAL-CISO", settings), datetime.now(UTC))


def test_a_running_job_asks_a_source_again_when_its_answer_has_aged(server: GridServer, settings: LiveSettings):
    signal = StudySignal(study("electricity_maps", "DE", settings))
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    assert signal.at(now) == pytest.approx(grams(now))
    asked = len(server.data_requests)
    assert signal.at(now + timedelta(minutes=30)) == pytest.approx(grams(now)) and len(server.data_requests) == asked
    start = now - timedelta(hours=6)
    assert signal.mean_g_per_kwh(start, start + timedelta(hours=1), start) == pytest.approx(grams(start))
    age(settings.cache, 2)
    assert signal.at(now + timedelta(hours=2)) == pytest.approx(grams(now + timedelta(hours=2)))
    assert len(server.data_requests) > asked + 1
