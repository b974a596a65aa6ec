"""Carbon intensity over time."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions.grid.intensity import (
    AnnualIntensity,
    TypicalYearIntensity,
    annual_intensity_of,
    intensity_of,
    typical_intensity_of,
)
from emissions.grid.zones import all_zones, find_zone

TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(lambda time: time.replace(tzinfo=UTC))


def test_germany_has_12_different_months_and_says_its_basis():
    germany = intensity_of("DE", 2024)
    assert isinstance(germany, TypicalYearIntensity)
    assert len(set(germany.month_means())) == 12
    assert germany.basis == "hourly 2021-2024"
    assert germany.basis in germany.source
    assert germany.kind == "average lifecycle"
    assert germany.year is None


def test_a_zone_without_a_typical_year_takes_the_year_asked():
    namibia = intensity_of("NA", 2024)
    assert isinstance(namibia, AnnualIntensity)
    assert (namibia.value_g_per_kwh, namibia.year, namibia.basis) == (43.0, 2024, "annual 2024")
    assert "nearest" not in namibia.source


@pytest.mark.parametrize(("year", "found", "value"), [(2019, 2021, 52.0), (2030, 2025, 93.0)])
def test_a_year_without_a_value_takes_the_nearest_and_says_so(year, found, value):
    namibia = annual_intensity_of("NA", year)
    assert (namibia.year, namibia.value_g_per_kwh) == (found, value)
    assert f"no value for {year}: nearest year" in namibia.source


def test_a_zone_with_a_typical_year_only_has_no_annual_value():
    assert typical_intensity_of("IN-MH") is not None
    with pytest.raises(ValueError, match="IN-MH"):
        annual_intensity_of("IN-MH", 2024)


def test_157_zones_have_a_typical_year():
    assert sum(typical_intensity_of(zone) is not None for zone in all_zones().values()) == 157


def test_the_typical_year_is_read_by_month_and_utc_hour():
    table = np.arange(288.0).reshape(12, 24)
    typical = TypicalYearIntensity(
        zone=find_zone("DE"), source="made up", basis="made up", year=None, table_g_per_kwh=table
    )
    assert typical.at(datetime(2026, 1, 1, tzinfo=UTC)) == 0
    assert typical.at(datetime(2026, 12, 31, 23, 59, tzinfo=UTC)) == 287
    plus_two = datetime.fromisoformat("2026-03-01T01:30:00+02:00")  # 28 February, 23:30 UTC
    assert typical.at(plus_two) == 24 + 23


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        intensity_of("DE", 2024).at(datetime(2026, 1, 1))


def test_a_table_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="12 months"):
        TypicalYearIntensity(zone=find_zone("DE"), source="", basis="", year=None, table_g_per_kwh=np.zeros((24, 12)))


@given(start=TIMES, seconds=st.integers(0, 400_000))
def test_a_series_covers_every_hour_that_the_interval_touches_and_agrees_with_at(start, seconds):
    germany = intensity_of("DE", 2024)
    end = start + timedelta(seconds=seconds)
    series = germany.series(start, end)
    assert series.index[0] <= start < series.index[0] + timedelta(hours=1)
    assert series.index[-1] + timedelta(hours=1) >= end
    assert seconds == 0 or series.index[-1] < end
    assert series.iloc[-1] == germany.at(series.index[-1])
    assert (series.index.to_series().diff().dropna() == timedelta(hours=1)).all()


def test_a_series_that_ends_before_it_starts_is_refused():
    start = datetime(2026, 1, 2, tzinfo=UTC)
    with pytest.raises(ValueError, match="before"):
        intensity_of("DE", 2024).series(start, start - timedelta(seconds=1))


def test_every_value_is_above_zero():
    for zone in all_zones().values():
        intensity = intensity_of(zone, 2024)
        assert (intensity.series(datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 6, 2, tzinfo=UTC)) > 0).all()
