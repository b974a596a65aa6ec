"""The best start of a job: closed forms, a published example, every start there is; and very many jobs at once."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emissions.grid.intensity import GapError, SeriesIntensity
from emissions.grid.series import series_intensity
from emissions.grid.zones import find_zone
from emissions.schedule import start as start_module
from emissions.schedule.slots import Slots
from emissions.schedule.start import best_start, best_starts, emissions_from_g

START = pd.Timestamp("2026-11-25T00:00Z")
HOUR_S = 3600.0


def slots_with(values: list[float] | np.ndarray, step_s: float = HOUR_S, start: pd.Timestamp = START) -> Slots:
    return Slots("DE", start, step_s, np.array(values, dtype=float), "average lifecycle", "made up", "0")


def at(hours: float) -> pd.Timestamp:
    return START + pd.Timedelta(hours=hours)


def signal(first: str, values: list[float] | np.ndarray, step: str = "1h", zone: str = "DE") -> SeriesIntensity:
    times = pd.date_range(first, periods=len(values), freq=step, tz="UTC")
    return series_intensity(
        times, np.array(values, dtype=float), zone=find_zone(zone), source="made up", kind="average direct"
    )


# --- slots


def test_slots_are_all_that_a_span_touches() -> None:
    slots = Slots.of(signal("2026-11-25", np.arange(24)), at(3.5), at(6.25))
    assert (slots.zone, slots.start, slots.end, slots.step_s) == ("DE", at(3), at(7), HOUR_S)
    assert slots.values_g_per_kwh.tolist() == [3, 4, 5, 6]
    assert (slots.kind, slots.source) == ("average direct", "made up")


def test_a_gap_is_refused() -> None:
    with pytest.raises(GapError, match="2026-11-25 02:00"):
        Slots.of(signal("2026-11-25", [1, 2, math.nan, 4]), at(0), at(4))
    with pytest.raises(GapError, match="2026-11-25 01:00"):
        slots_with([1, math.nan])


def test_integrals_are_exact_for_steps() -> None:
    slots = slots_with([100, 0, 300], step_s=1800)
    assert float(slots.integral(900.0, 4500.0)) == pytest.approx(100 * 900 + 0 + 300 * 900)
    assert slots.integral(np.array([0.0, 1800.0]), np.array([1800.0, 5400.0])).tolist() == [180_000, 540_000]
    assert slots.mean_g_per_kwh(0.0, 5400.0) == pytest.approx(400 / 3)
    assert slots.mean_g_per_kwh(1800.0, 1800.0) == 0  # a moment belongs to the slot that it begins


# --- closed forms

DAY_S = 86_400.0


def sine_slots(step_s: float, days: int = 2) -> Slots:
    """300 - 100 sin(2 pi t / day), each slot the exact mean over itself: the trough is at 06:00."""
    edges = np.arange(int(days * DAY_S / step_s) + 1) * step_s
    integral = 300 * edges + 100 * DAY_S / math.tau * np.cos(math.tau * edges / DAY_S)
    return slots_with(np.diff(integral) / step_s, step_s)


@pytest.mark.parametrize("step_s", [HOUR_S, 1800.0, 300.0])
@pytest.mark.parametrize("duration_h", [1, 4, 7, 12])
def test_the_best_start_in_a_sine_lies_about_its_trough(step_s: float, duration_h: int) -> None:
    start = best_start(sine_slots(step_s), duration_h * HOUR_S, 2.0, at(0), at(24), pue=1.25)
    half = math.pi * duration_h / 24  # half the job, in radians
    exact = 300 - 100 * math.sin(half) / half  # the mean over a window that is symmetric about the trough
    if (duration_h * HOUR_S / step_s) % 2 == 0:  # then such a window begins on an edge
        assert start.emissions_g == pytest.approx(2.0 * 1.25 * exact, rel=1e-9)
        assert start.start == at(6 - duration_h / 2)
    assert start.mean_g_per_kwh >= exact - 1e-9
    assert abs((start.start - at(6 - duration_h / 2)).total_seconds()) <= step_s / 2


def test_a_windows_mean_in_a_sine_is_its_integral() -> None:
    for begin_h in (0, 5, 13.5):
        grams = emissions_from_g(sine_slots(1800.0), at(begin_h), 5 * HOUR_S, 1.0)
        a, b = (math.tau * hours / 24 for hours in (begin_h, begin_h + 5))
        assert grams == pytest.approx(300 + 100 * (math.cos(b) - math.cos(a)) / (b - a), rel=1e-9)


@pytest.mark.parametrize("duration_h", [0.3, 1, 5.5])
def test_falling_starts_last_rising_first_and_constant_now(duration_h: float) -> None:
    ramp = np.linspace(500, 100, 24)
    starts = {
        name: best_start(slots_with(values), duration_h * HOUR_S, 1.0, at(1.25), at(20.75))
        for name, values in {"falls": ramp, "rises": ramp[::-1], "constant": np.full(24, 321.7)}.items()
    }
    # within a slot the intensity is constant, and of equal starts the earliest is taken
    assert starts["falls"].start == (at(20) if duration_h == 0.3 else at(20.75 - duration_h))
    assert starts["falls"].now_g == starts["falls"].worst_g
    assert starts["falls"].saved_g > 0
    assert starts["rises"].start == starts["constant"].start == at(1.25)
    assert starts["rises"].saved_g == starts["constant"].saved_g == 0


def test_of_equal_starts_the_earliest_is_taken() -> None:
    assert best_start(slots_with([5, 1, 1, 9, 1, 1]), 2 * HOUR_S, 1.0, at(0), at(6)).start == at(1)


# --- every start there is


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    early_min=st.integers(0, 59),
    late_min=st.integers(0, 30),
    share=st.integers(1, 60),
    shape=st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any)),
)
def test_no_start_at_any_minute_is_better(
    values: list[int], early_min: int, late_min: int, share: int, shape: list[int] | None
) -> None:
    room_min = 60 * len(values) - early_min - late_min
    pieces = len(shape or [1])
    piece_min = max(1, room_min * share // 60 // pieces)
    if room_min < piece_min * pieces:
        return
    duration_min = piece_min * pieces
    by_minute = np.repeat(np.array(values, dtype=float), 60)
    weights = np.repeat(np.array(shape or [1.0]), piece_min)
    begins = range(early_min, early_min + room_min - duration_min + 1)
    every = [float((by_minute[m : m + duration_min] * weights).sum() / weights.sum()) for m in begins]
    found = best_start(
        slots_with(values), 60.0 * duration_min, 1.0, at(early_min / 60), at(len(values) - late_min / 60), shape=shape
    )
    assert found.emissions_g == pytest.approx(min(every), abs=1e-9)
    assert found.worst_g == pytest.approx(max(every), abs=1e-9)
    assert found.now_g == pytest.approx(every[0], abs=1e-9)
    best_min = (found.start - START) / pd.Timedelta(minutes=1)
    assert best_min <= begins[int(np.argmax(np.array(every) <= min(every) + 1e-9))] + 1e-6
    assert emissions_from_g(slots_with(values), found.start, 60.0 * duration_min, 1.0, shape=shape) == pytest.approx(
        found.emissions_g, abs=1e-9
    )


def test_a_job_with_a_heavy_end_puts_it_in_the_trough() -> None:
    slots = slots_with([9, 9, 9, 1, 9, 9])
    assert best_start(slots, 2 * HOUR_S, 1.0, at(0), at(6), shape=[0, 1]).start == at(2)
    assert best_start(slots, 2 * HOUR_S, 1.0, at(0), at(6), shape=[1, 0]).start == at(3)


# --- published: CATS' own test of its optimiser (tests/test_windowed_forecast.py, MIT, and its carbon_intensity_24h.csv
# of the British grid, carbonintensity.org.uk, CC BY 4.0), from 2023-05-04 12:30 UTC on

CATS_POINTS = [
    11, 15, 15, 18, 19, 17, 16, 11, 11, 11, 11, 11, 17, 22, 20, 20, 21, 15, 15, 13, 13, 14, 14, 15,
    15, 17, 15, 8, 8, 8, 9, 9, 9, 9, 9, 11, 11, 15, 14, 18, 14, 10, 10, 9, 6, 7, 7, 10,
    8, 7, 7, 5, 8, 8, 14, 16, 16, 20, 25, 14, 29, 35, 30, 34, 38, 30, 30, 28, 34, 34, 36, 42,
    36, 26, 31, 35, 35, 33, 33, 22, 23, 23, 19, 36, 37, 46, 54, 64, 53, 49, 34, 35, 34, 32, 34, 40,
]  # fmt: skip
# CATS joins its points by straight lines; a slot of ours has the mean over it, which is all that whole slots need
CATS_SLOTS = (np.array(CATS_POINTS[:-1]) + np.array(CATS_POINTS[1:])) / 2
CATS_START = pd.Timestamp("2023-05-04T12:30Z")


@pytest.mark.parametrize(
    ("count", "start", "points"),
    [
        (6, "2023-05-05T12:00Z", [10, 8, 7, 7, 5, 8, 8]),  # test_minimise_average
        (95, "2023-05-04T12:30Z", CATS_POINTS),  # test_maximum_duration
    ],
)
def test_the_optimum_that_cats_publishes(count: int, start: str, points: list[int]) -> None:
    slots = slots_with(CATS_SLOTS, 1800.0, CATS_START)
    found = best_start(slots, count * 1800.0, 1.0, CATS_START, slots.end)
    expected = sum(0.5 * (a + b) for a, b in pairwise(points)) / count
    assert found.mean_g_per_kwh == pytest.approx(expected)
    assert found.start == pd.Timestamp(start)


# --- calendars


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-25", 24)])
def test_a_local_day_has_all_its_hours(day: str, hours: int) -> None:
    begin = pd.Timestamp(day, tz="Europe/Berlin")
    end = begin + pd.DateOffset(days=1)
    year = signal("2026-01-01", np.arange(8760) % 1000)
    slots = Slots.of(year, begin, end)
    assert len(slots.values_g_per_kwh) == hours
    whole = best_start(slots, hours * HOUR_S, 1.0, begin, end)
    assert whole.emissions_g == pytest.approx(slots.values_g_per_kwh.mean())
    with pytest.raises(ValueError, match="60 s too little"):
        best_start(slots, hours * HOUR_S + 60, 1.0, begin, end)


def test_the_leap_day_is_a_day() -> None:
    values = np.full(96, 500.0)
    values[24:48] = 50  # 2028-02-29
    slots = Slots.of(signal("2028-02-28", values), pd.Timestamp("2028-02-28T00:00Z"), pd.Timestamp("2028-03-03T00:00Z"))
    found = best_start(slots, DAY_S, 1.0, slots.start, slots.end)
    assert (found.start, found.end) == (pd.Timestamp("2028-02-29T00:00Z"), pd.Timestamp("2028-03-01T00:00Z"))
    assert found.emissions_g == pytest.approx(50)


def test_half_hours_give_starts_on_the_half_hour() -> None:
    slots = Slots.of(signal("2026-11-25", [9, 9, 9, 1, 2, 9, 9, 9], step="30min"), at(0), at(4))
    assert best_start(slots, HOUR_S, 1.0, at(0), at(4)).start == at(1.5)
    assert best_start(slots, 2700.0, 1.0, at(0), at(4)).start == at(1.5)


# --- errors


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"deadline": at(1)}, "cannot end by the deadline 2026-11-25 01:00 UTC: 3600 s too little"),
        ({"deadline": at(5)}, "covers 2026-11-25 00:00 UTC to 2026-11-25 04:00 UTC, not all"),
        ({"earliest": at(-1)}, "covers 2026-11-25 00:00 UTC"),
        ({"duration_s": 0.0}, "duration_s is 0.0"),
        ({"duration_s": math.nan}, "duration_s is nan"),
        ({"energy_kwh": -1.0}, "energy_kwh is -1.0"),
        ({"pue": 0.9}, "pue is 0.9"),
        ({"shape": [0.0, 0.0]}, "shape"),
        ({"shape": [1.0, -1.0]}, "shape"),
        ({"earliest": pd.Timestamp("2026-11-25")}, "no time zone"),
    ],
)
def test_what_cannot_be_planned_is_said(changed: dict, message: str) -> None:
    asked = {"duration_s": 2 * HOUR_S, "energy_kwh": 1.0, "earliest": at(0), "deadline": at(4)} | changed
    with pytest.raises(ValueError, match=message):
        best_start(slots_with([1, 2, 3, 4]), **asked)


# --- many jobs, many zones


@pytest.mark.parametrize("few_starts", [0, 10**9], ids=["by lines", "one by one"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_many_jobs_have_the_starts_that_each_has_alone(few_starts: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 12))
    values = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 5), min_size=count, max_size=count), min_size=1, max_size=3))
    )
    first = data.draw(st.integers(0, count - 3))
    last = data.draw(st.integers(first + 2, count))
    duration = np.array(data.draw(st.lists(st.integers(1, 8 * (last - first)), min_size=2, max_size=6))) / 8
    kept = start_module.FEW_STARTS
    start_module.FEW_STARTS = few_starts
    try:
        found = best_starts(values, duration, first, last)
    finally:
        start_module.FEW_STARTS = kept
    for zone, row in enumerate(values):
        for job, slots in enumerate(duration):
            alone = best_start(slots_with(row), slots * HOUR_S, 1.0, at(first), at(last))
            assert found.mean_g_per_kwh[job, zone] == pytest.approx(alone.mean_g_per_kwh, abs=1e-9)
            assert at(found.start_slots[job, zone]) == alone.start
    assert found.zone.tolist() == [int(np.argmin(row)) for row in found.mean_g_per_kwh]


@pytest.mark.parametrize("few_starts", [0, 10**9], ids=["by lines", "one by one"])
def test_of_equal_starts_on_and_off_an_edge_the_earlier_is_taken(
    few_starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_module, "FEW_STARTS", few_starts)
    # half of 2 and all of 1, or all of 1 and half of 2
    assert best_starts(np.array([[2, 1, 9, 1, 2]]), np.array([1.5, 1.25])).start_slots.tolist() == [[0.5], [0.75]]
    assert best_starts(np.array([[1, 2, 9, 2, 1]]), np.array([1.5, 1.25])).start_slots.tolist() == [[0], [0]]


def test_jobs_with_rooms_of_their_own() -> None:
    rng = np.random.default_rng(8)
    values, duration = rng.uniform(20, 800, (4, 200)), rng.uniform(0.1, 30, 60)
    earliest = rng.integers(0, 120, 60)
    deadline = np.minimum(200, earliest + np.ceil(duration).astype(int) + rng.integers(0, 60, 60))
    found = best_starts(values, duration, earliest, deadline)
    for job in range(60):
        for zone in range(4):
            alone = best_start(
                slots_with(values[zone]), duration[job] * HOUR_S, 1.0, at(earliest[job]), at(deadline[job])
            )
            assert found.mean_g_per_kwh[job, zone] == pytest.approx(alone.mean_g_per_kwh, rel=1e-6)
            assert abs((at(found.start_slots[job, zone]) - alone.start).total_seconds()) < 1e-3
    grams = found.emissions_g(np.full(60, 2.0), np.array([1.0, 1.1, 1.2, 1.3]))
    assert grams[3].tolist() == pytest.approx((2 * np.array([1.0, 1.1, 1.2, 1.3]) * found.mean_g_per_kwh[3]).tolist())


def test_a_repeated_day_starts_on_the_first() -> None:
    day = np.random.default_rng(2).uniform(20, 800, (3, 24))
    found = best_starts(np.tile(day, 300), np.linspace(0.5, 20, 400))
    assert found.start_slots.max() < 48


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"duration_slots": [1.0, 5.0]}, "job 1: its duration of 5 slots does not fit between 0 and 4"),
        ({"duration_slots": [0.0, 1.0]}, "job 0"),
        ({"earliest": 9}, "job 0: earliest is 9; the edges are 0 to 4"),
        ({"earliest": 0.5}, "earliest is float64"),
        ({"values_g_per_kwh": [[1.0, math.nan, 1.0, 1.0]]}, "without gaps"),
        ({"values_g_per_kwh": [[1.0, -2.0, 1.0, 1.0]]}, "at least 0"),
    ],
)
def test_jobs_without_room_are_named(changed: dict, message: str) -> None:
    asked = {"values_g_per_kwh": [[4.0, 3.0, 2.0, 1.0]], "duration_slots": [1.0, 2.0]} | changed
    with pytest.raises(ValueError, match=message):
        best_starts(**{name: np.array(value) for name, value in asked.items()})
