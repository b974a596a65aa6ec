"""Signals from files and from other signals: gaps, steps, kinds, days of 23 and 25 hours."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emissions.grid.choice import check_carbon, chosen_intensity
from emissions.grid.intensity import GapError, SeriesIntensity, annual_intensity_of, intensity_of, with_fallback
from emissions.grid.series import read_intensity_csv, series_intensity, write_intensity
from emissions.grid.zones import find_zone
from emissions.pricing import mean_intensity_g_per_kwh, price_ledger
from tests.emissions.studies import carbon, make_record

LIFECYCLE = "average lifecycle"
EXPORT = "Carbon intensity gCO\u2082eq/kWh (Life cycle)"
EXPORT_DIRECT = "Carbon intensity gCO\u2082eq/kWh (direct)"


def signal(start: str, values: list[float], freq: str = "h", kind: str = LIFECYCLE) -> SeriesIntensity:
    times = pd.date_range(start, periods=len(values), freq=freq, tz="UTC")
    return series_intensity(times, values, zone=find_zone("DE"), source="made up", kind=kind)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def export(path: Path, times: list[str], values: list[object], zone: str = "DE") -> Path:
    table = pd.DataFrame({"Datetime (UTC)": times, "Zone id": zone, EXPORT_DIRECT: 1.0, EXPORT: values})
    table.to_csv(path, index=False)
    return path


def test_a_value_holds_until_the_next_slot_and_not_longer():
    series = signal("2026-03-01", [100.0, 200.0], freq="30min")
    assert series.at(moment("2026-03-01T00:29:59")) == 100.0
    assert series.at(moment("2026-03-01T00:30")) == 200.0
    for outside in ("2026-02-28T23:59", "2026-03-01T01:00"):
        with pytest.raises(GapError, match="DE: made up has no carbon intensity at"):
            series.at(moment(outside))


def test_half_hours_are_priced_by_half_hours():
    series = signal("2026-03-01", [100.0, 300.0, 500.0], freq="30min")
    mean = mean_intensity_g_per_kwh(series, moment("2026-03-01T00:15"), moment("2026-03-01T00:45"))
    assert mean == pytest.approx(200.0)
    assert list(series.series(moment("2026-03-01T00:15"), moment("2026-03-01T00:45"))) == [100.0, 300.0]


def test_a_missing_slot_is_a_gap_and_is_not_filled_in_from_its_neighbours():
    times = pd.to_datetime(["2026-03-01T00:00Z", "2026-03-01T01:00Z", "2026-03-01T03:00Z"])
    series = series_intensity(times, [1.0, 2.0, 4.0], zone=find_zone("DE"), source="made up", kind=LIFECYCLE)
    with pytest.raises(GapError, match="2026-03-01 02:00 UTC"):
        series.series(moment("2026-03-01T00:00"), moment("2026-03-01T04:00"))


def test_the_tables_fill_a_gap_and_the_source_says_so():
    series = signal("2026-03-01", [100.0, np.nan, 300.0])
    table = annual_intensity_of("DE", 2024)
    both = with_fallback(series, table)
    hours = pd.date_range("2026-03-01", periods=3, freq="h", tz="UTC")
    assert list(both.values_at(hours)) == [100.0, table.value_g_per_kwh, 300.0]
    assert both.source_at(hours[[0, 2]]) == "made up"
    assert both.source_at(hours[[1]]) == f"{table.source}, for want of made up"
    assert both.source_at(hours) == f"made up; {table.source}, for want of made up"
    assert both.data_hash not in (series.data_hash, table.data_hash)


def test_signals_of_two_kinds_or_two_zones_are_never_mixed():
    marginal = signal("2026-03-01", [100.0], kind="marginal direct")
    with pytest.raises(ValueError, match=r"average lifecycle.*cannot stand in for made up .*marginal direct"):
        with_fallback(marginal, intensity_of("DE", 2024))
    with pytest.raises(ValueError, match="zone FR"):
        with_fallback(signal("2026-03-01", [100.0]), intensity_of("FR", 2024))
    with pytest.raises(ValueError, match="kind 'green' is not one of"):
        signal("2026-03-01", [100.0], kind="green")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([100.0, -1.0], "-1 at 2026-03-01 01:00 UTC is no carbon intensity"),
        ([100.0, 300_000.0], "300000 at 2026-03-01 01:00 UTC"),
        ([100.0, np.inf], "inf at"),
        ([0.3, 0.4], "is it kg/kWh"),
    ],
)
def test_what_cannot_be_grams_per_kwh_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        signal("2026-03-01", values)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["2026-03-01T00:00Z", "2026-03-01T00:00Z"], "is there twice"),
        (["2026-03-01T00:00Z", "2026-03-01T00:07Z"], "0 days 00:07:00 apart"),
        (["2026-03-01T00:10Z", "2026-03-01T01:10Z", "2026-03-01T02:10Z"], "off the step"),
        ([], "has no values"),
    ],
)
def test_times_that_are_no_series_are_refused(times, said):
    with pytest.raises(ValueError, match=said):
        series_intensity(
            pd.to_datetime(times, utc=True), [100.0] * len(times), zone=find_zone("DE"), source="x", kind=LIFECYCLE
        )


def test_times_without_a_zone_are_refused():
    times = pd.date_range("2026-03-01", periods=2, freq="h")
    with pytest.raises(ValueError, match="has no time zone"):
        series_intensity(times, [1.0, 2.0], zone=find_zone("DE"), source="x", kind=LIFECYCLE)


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2028-02-29", 24)])
def test_a_local_day_has_the_hours_that_it_has(tmp_path, day, hours):
    """The file's times carry their offsets, as exports in local time do."""
    first = pd.Timestamp(day, tz="Europe/Berlin")
    times = pd.date_range(first, first + pd.DateOffset(days=1), freq="h", inclusive="left")
    path = tmp_path / "local.csv"
    pd.DataFrame({"when": [time.isoformat() for time in times], "g": np.arange(len(times)) + 100.0}).to_csv(path)
    series = read_intensity_csv(path, zone="DE", time_column="when", value_column="g", kind=LIFECYCLE)
    assert len(times) == hours
    assert list(series.series(times[0], times[-1] + pd.Timedelta("1h"))) == list(np.arange(hours) + 100.0)


def test_an_electricity_maps_export_needs_only_its_path(tmp_path):
    path = export(tmp_path / "DE_2026_hourly.csv", ["2026-03-01 00:00:00", "2026-03-01 01:00:00"], [380.5, 390.0])
    series = read_intensity_csv(path)
    assert (series.zone.zone, series.kind) == ("DE", LIFECYCLE)
    assert series.at(moment("2026-03-01T01:30")) == 390.0
    direct = read_intensity_csv(path, value_column=EXPORT_DIRECT)
    assert (direct.kind, direct.at(moment("2026-03-01T00:00"))) == ("average direct", 1.0)


def test_a_file_of_several_zones_gives_the_rows_of_the_one_asked_for(tmp_path):
    table = pd.DataFrame(
        {"Datetime (UTC)": "2026-03-01 00:00:00", "Zone id": ["NA", "FR"], EXPORT: [43.0, 50.0]}
    )  # NA is Namibia and not a missing value
    table.to_csv(tmp_path / "two.csv", index=False)
    assert read_intensity_csv(tmp_path / "two.csv", zone="NAM").at(moment("2026-03-01T00:00")) == 43.0
    with pytest.raises(ValueError, match="holds 2 zones: name one of FR, NA"):
        read_intensity_csv(tmp_path / "two.csv")
    with pytest.raises(ValueError, match="has no rows of zone DE"):
        read_intensity_csv(tmp_path / "two.csv", zone="DE")


@pytest.mark.parametrize(
    ("values", "arguments", "said"),
    [
        ([1.0, "n/a"], {}, "row 3: 'n/a' is not a number"),
        ([1.0, 2.0], {"value_column": "nothing"}, "has no column 'nothing'; it has Datetime"),
        ([1.0, 2.0], {"time_column": "Zone id"}, "column Zone id: not a time"),
        ([1.0, 2.0], {"value_column": "Zone id"}, "does not say its kind"),
    ],
)
def test_a_file_that_is_no_signal_is_one_line_that_names_it(tmp_path, values, arguments, said):
    path = export(tmp_path / "bad.csv", ["2026-03-01 00:00:00", "2026-03-01 01:00:00"], values)
    with pytest.raises(ValueError, match=said) as caught:
        read_intensity_csv(path, **arguments)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_other_csv_has_to_have_its_columns_named(tmp_path):
    (tmp_path / "mine.csv").write_text("when,grams\n2026-03-01T00:00Z,120\n")
    with pytest.raises(ValueError, match="name its columns"):
        read_intensity_csv(tmp_path / "mine.csv", zone="DE")
    with pytest.raises(ValueError, match="does not say its zone"):
        read_intensity_csv(tmp_path / "mine.csv", time_column="when", value_column="grams", kind=LIFECYCLE)


def test_what_is_written_is_read_back_with_its_sources_and_the_same_hash(tmp_path):
    both = with_fallback(signal("2026-03-01", [100.0, np.nan, 300.0]), annual_intensity_of("DE", 2024))
    hours = pd.date_range("2026-03-01", periods=3, freq="h", tz="UTC")
    for name in ("one.csv", "two.csv"):
        write_intensity(both, hours, tmp_path / name)
    one, two = (read_intensity_csv(tmp_path / name) for name in ("one.csv", "two.csv"))
    assert list(one.values_at(hours)) == list(both.values_at(hours))
    assert "for want of made up" in one.source_at(hours[[1]])
    assert one.source_at(hours[[0]]) == "made up"
    assert one.data_hash == two.data_hash
    changed = signal("2026-03-01", [100.0, 200.0, 300.5])
    assert changed.data_hash != one.data_hash


def test_a_ledger_is_priced_by_a_file_with_the_tables_in_its_gaps(tmp_path):
    path = export(tmp_path / "de.csv", ["2026-01-15 10:00:00", "2026-01-15 11:00:00"], [100.0, 200.0])
    settings = carbon(intensity="file", file={"path": str(path), "time": None, "value": None, "kind": None})
    inside = {"started_at": "2026-01-15T10:30:00.000Z", "ended_at": "2026-01-15T11:30:00.000Z"}
    outside = {"started_at": "2026-01-16T10:00:00.000Z", "ended_at": "2026-01-16T10:30:00.000Z"}
    ledger = pd.DataFrame(
        [make_record("train_diffusion", "m", **inside), make_record("train_diffusion", "n", **outside)]
    )
    priced = price_ledger(ledger, chosen_intensity(settings, path), 1.0)
    table = intensity_of("DE", 2024)
    assert list(priced["carbon_intensity_g_per_kwh"]) == [
        pytest.approx(150.0),
        table.at(moment("2026-01-16T10:00")),
    ]
    assert priced["intensity_source"][0].startswith("de.csv, column Carbon intensity")
    assert priced["intensity_source"][1].startswith(table.source)
    assert priced["intensity_hash"].nunique() == 1
    strict = chosen_intensity(settings | {"fallback": False}, path)
    with pytest.raises(GapError, match="2026-01-16 10:00 UTC"):
        price_ledger(ledger, strict, 1.0)


def test_a_file_of_direct_factors_is_not_filled_with_lifecycle_tables(tmp_path):
    path = export(tmp_path / "de.csv", ["2026-01-15 10:00:00", "2026-01-15 11:00:00"], [100.0, 200.0])
    settings = carbon(intensity="file", file={"path": str(path), "time": None, "value": EXPORT_DIRECT, "kind": None})
    chosen = chosen_intensity(settings, path)
    assert chosen.kind == "average direct"
    with pytest.raises(GapError):
        chosen.at(moment("2026-01-16T10:00"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zone": "Germani"}, r"carbon\.zone.*did you mean DE"),
        ({"pue_by_zone": {"aws:nowhere-1": 1.2}}, r"carbon\.pue_by_zone.*cloud region"),
        ({"intensity": "file"}, r"carbon\.file\.path.*name the CSV"),
        ({"intensity": "file", "file": {"path": "/nowhere.csv"}}, "/nowhere.csv: no such file"),
    ],
)
def test_a_carbon_section_that_cannot_work_is_refused_before_anything_runs(changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        check_carbon(carbon(**changes))
