"""When a job may be paused: the dynamic program against every plan there is, and closed forms."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emissions.schedule import slot_program
from emissions.schedule.pauses import PauseCost, best_slots, plan_of, priced_on, slots_below, threshold_g_per_kwh
from emissions.schedule.slots import Slots
from emissions.schedule.start import best_start

START = pd.Timestamp("2026-11-25T00:00Z")
HOUR_S = 3600.0
LATER = pd.Timedelta(hours=1)


def slots_with(values: list[float] | np.ndarray, step_s: float = HOUR_S) -> Slots:
    return Slots("DE", START, step_s, np.array(values, dtype=float), "average lifecycle", "made up", "0")


def at(hours: float) -> pd.Timestamp:
    return START + pd.Timedelta(hours=hours)


def pieces(plan: object) -> list[tuple[float, float]]:
    """Hours since the start."""
    return [((a - START) / LATER, (b - START) / LATER) for a, b in plan.slots]


# --- every plan there is


def every_plan(edges_h: np.ndarray, duration_h: float) -> Iterator[list[tuple[float, float]]]:
    """Pieces that begin and end on edges, but for one part at the start or the end of an interval."""
    lengths = np.diff(edges_h)
    for on in product((False, True), repeat=len(lengths)):
        left = duration_h - lengths[list(on)].sum()
        whole = [(edges_h[i], edges_h[i + 1]) for i in range(len(lengths)) if on[i]]
        if abs(left) < 1e-9:
            yield joined(whole)
        for i in range(len(lengths)):
            if not on[i] and 1e-9 < left <= lengths[i] + 1e-9:
                yield joined([*whole, (edges_h[i], edges_h[i] + left)])
                yield joined([*whole, (edges_h[i + 1] - left, edges_h[i + 1])])


def joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin - merged[-1][1] < 1e-9:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((begin, end))
    return merged


def priced_by_the_minute(
    values: np.ndarray, spans: list[tuple[float, float]], power_kw: float, pause: PauseCost
) -> float:
    """Emissions as a sum over minutes, so all times are whole minutes. Instants: the minute that begins there."""

    def mean(begin_h: float, end_h: float) -> float:
        first, last = round(begin_h * 60), round(end_h * 60)
        return float(
            np.mean([values[min(minute // 60, len(values) - 1)] for minute in range(first, max(last, first + 1))])
        )

    total = sum(power_kw * (end - begin) * mean(begin, end) for begin, end in spans)
    for (_, pauses), (resumes, _) in pairwise(spans):
        saved, restarts = pauses + pause.checkpoint_s / HOUR_S, resumes - pause.restart_s / HOUR_S
        total += pause.checkpoint_kwh * mean(pauses, saved) + pause.restart_kwh * mean(restarts, resumes)
        if round((restarts - saved) * 60) > 0:
            total += pause.idle_w / 1000 * (restarts - saved) * mean(saved, restarts)
    return total


PAUSES = st.builds(
    PauseCost,
    checkpoint_kwh=st.sampled_from([0.0, 0.05, 0.3]),
    restart_kwh=st.sampled_from([0.0, 0.1]),
    checkpoint_s=st.sampled_from([0.0, 600.0, 2700.0]),
    restart_s=st.sampled_from([0.0, 1200.0, 3000.0]),
    idle_w=st.sampled_from([0.0, 100.0]),
)


@settings(max_examples=250, deadline=None)
@given(
    values=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    early_min=st.sampled_from([0, 0, 20, 45]),
    late_min=st.sampled_from([0, 0, 10, 30]),
    part=st.integers(1, 84),
    pause=PAUSES,
)
def test_the_program_equals_the_best_of_all_plans(
    values: list[int], early_min: int, late_min: int, part: int, pause: PauseCost
) -> None:
    end_min = 60 * len(values) - late_min
    duration_min = max(1, round((end_min - early_min) * part / 84))
    if end_min - early_min <= 0:
        return
    signal = np.array(values, dtype=float) * 100
    edges_h = np.unique([early_min, *(m for m in range(0, end_min, 60) if m > early_min), end_min]) / 60
    plan = best_slots(
        slots_with(signal), 60.0 * duration_min, duration_min / 60, at(early_min / 60), at(end_min / 60), pause
    )
    possible = [
        spans
        for spans in every_plan(edges_h, duration_min / 60)
        if all(after[0] - before[1] >= pause.shortest_s / HOUR_S - 1e-9 for before, after in pairwise(spans))
    ]
    costs = [priced_by_the_minute(signal, spans, 1.0, pause) for spans in possible]
    assert plan.emissions_g == pytest.approx(min(costs), abs=1e-6)
    calmest = min(len(spans) - 1 for spans, cost in zip(possible, costs, strict=True) if cost <= min(costs) + 1e-9)
    assert plan.pauses == calmest
    assert sum(end - begin for begin, end in pieces(plan)) == pytest.approx(duration_min / 60)
    assert plan.emissions_g == pytest.approx(priced_by_the_minute(signal, pieces(plan), 1.0, pause), abs=1e-6)
    assert at(early_min / 60) <= plan.start
    assert plan.end <= at(end_min / 60)


# --- closed forms

SIGNALS = st.lists(st.floats(0, 900), min_size=2, max_size=40)


def cheapest(values: np.ndarray, duration_slots: float) -> float:
    """The sum over the cheapest slots, the dearest of them in part."""
    whole = int(duration_slots)
    ordered = np.sort(values)
    rest = duration_slots - whole
    return float(ordered[:whole].sum() + (rest * ordered[whole] if rest else 0.0))


@settings(max_examples=60, deadline=None)
@given(values=SIGNALS, share=st.integers(1, 60))
def test_free_pauses_give_the_cheapest_slots(values: list[float], share: int) -> None:
    duration = len(values) * share / 60
    plan = best_slots(slots_with(values), duration * HOUR_S, duration, at(0), at(len(values)))
    assert plan.emissions_g == pytest.approx(cheapest(np.array(values), duration), rel=1e-6, abs=1e-6)
    assert plan.overhead_kwh == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data(), values=SIGNALS, pause=PAUSES)
def test_the_cheapest_slots_bound_every_plan(data: st.DataObject, values: list[float], pause: PauseCost) -> None:
    slots, signal = slots_with(values), np.array(values)
    on = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)).filter(any))
    pieces_s = [(HOUR_S * a, HOUR_S * b) for a, b in joined([(i, i + 1) for i, chosen in enumerate(on) if chosen])]
    plan = plan_of(slots, pieces_s, sum(on), 0.0)
    assert plan.emissions_g >= cheapest(signal, sum(on)) - 1e-6
    assert plan.emissions_g == pytest.approx(signal[on].sum(), rel=1e-9, abs=1e-6)
    assert best_slots(slots, sum(on) * HOUR_S, sum(on), at(0), at(len(values)), pause).emissions_g >= (
        cheapest(signal, sum(on)) - 1e-6
    )


@settings(max_examples=60, deadline=None)
@given(values=SIGNALS, early_min=st.integers(0, 59), late_min=st.integers(0, 59), share=st.integers(1, 60))
def test_dear_pauses_give_the_best_single_start(values: list[float], early_min: int, late_min: int, share: int) -> None:
    slots, end_min = slots_with(np.array(values) + 10), 60 * len(values) - late_min
    duration_s = 60.0 * (end_min - early_min) * share / 60
    room = at(early_min / 60), at(end_min / 60)
    plan = best_slots(slots, duration_s, 2.0, *room, PauseCost(checkpoint_kwh=1e3), pue=1.2)
    single = best_start(slots, duration_s, 2.0, *room, pue=1.2)
    assert plan.pauses == 0
    assert plan.emissions_g == pytest.approx(single.emissions_g, rel=1e-9)
    assert plan.now_g == pytest.approx(single.now_g)


def test_an_interruptible_job_takes_the_lowest_slots() -> None:
    """As "Let's Wait Awhile" (Wiesner et al. 2021, doi:10.1145/3464298.3493399) defines its interruptible strategy."""
    plan = best_slots(slots_with([30, 10, 50, 20, 40, 15]), 3 * HOUR_S, 3.0, at(0), at(6))
    assert pieces(plan) == [(1, 2), (3, 4), (5, 6)]
    assert plan.emissions_g == pytest.approx(45)
    assert plan.pauses == 2
    assert plan.now_g == pytest.approx(90)


def test_a_constant_signal_starts_now_and_does_not_pause() -> None:
    plan = best_slots(slots_with(np.full(48, 123.4)), 7.5 * HOUR_S, 1.0, at(0), at(48))
    assert pieces(plan) == [(0, 7.5)]


def test_of_equal_plans_the_one_with_fewer_pauses_is_taken() -> None:
    plan = best_slots(slots_with([1, 5, 1, 5, 1, 1]), 3 * HOUR_S, 3.0, at(0), at(6))
    assert plan.emissions_g == pytest.approx(3)  # as do the hours 0, 2 and 4, which end earlier
    assert plan.pauses == 1


def test_a_pause_is_priced_where_it_happens() -> None:
    pause = PauseCost(checkpoint_kwh=0.1, restart_kwh=0.2, idle_w=50)
    plan = best_slots(slots_with([10, 400, 500, 20]), 2 * HOUR_S, 2.0, at(0), at(4), pause, pue=1.5)
    assert pieces(plan) == [(0, 1), (3, 4)]
    # the checkpoint as the first dear hour begins, the restart as the last hour begins, 50 W between
    assert plan.emissions_g == pytest.approx(1.5 * (10 + 20 + 0.1 * 400 + 0.2 * 20 + 0.05 * (400 + 500)))
    assert plan.overhead_kwh == pytest.approx(0.1 + 0.2 + 0.1)
    assert plan.energy_kwh == pytest.approx(2.4)


def test_no_pause_is_shorter_than_a_checkpoint_and_a_restart() -> None:
    slots = slots_with([10, 400, 20, 400])
    assert best_slots(slots, 2 * HOUR_S, 2.0, at(0), at(4), PauseCost(checkpoint_s=1800, restart_s=1800)).pauses == 1
    assert best_slots(slots, 2 * HOUR_S, 2.0, at(0), at(4), PauseCost(checkpoint_s=1800, restart_s=1801)).pauses == 0


def test_pauses_stop_when_idling_costs_more_than_they_save() -> None:
    slots = slots_with([10, 30, 10])
    for idle_w, pauses in ((600, 1), (700, 0)):  # a pause saves 20 g of 1 kWh at 30 g/kWh
        plan = best_slots(slots, 2 * HOUR_S, 2.0, at(0), at(3), PauseCost(idle_w=idle_w))
        assert plan.pauses == pauses


def test_a_plan_is_priced_on_what_came_of_the_forecast() -> None:
    plan = best_slots(slots_with([10, 400, 20]), 2 * HOUR_S, 4.0, at(0), at(3))
    assert priced_on(slots_with([100, 50, 300, 7]), plan, 4.0, pue=2.0).emissions_g == pytest.approx(
        2 * 2 * (100 + 300)
    )


@pytest.mark.parametrize(
    ("count", "step_s", "duration_h", "limit_s"), [(336, 1800.0, 60.25, 1.0), (8760, HOUR_S, 500.0, 5.0)]
)
def test_a_week_of_half_hours_and_a_year_of_hours_are_quick(
    count: int, step_s: float, duration_h: float, limit_s: float
) -> None:
    values = np.random.default_rng(4).uniform(20, 500, count)
    began = time.perf_counter()
    plan = best_slots(slots_with(values, step_s), duration_h * HOUR_S, 1.0, at(0), at(count * step_s / HOUR_S))
    assert time.perf_counter() - began < limit_s
    expected = cheapest(values, duration_h * HOUR_S / step_s) * step_s / HOUR_S / duration_h
    assert plan.emissions_g == pytest.approx(expected)


def test_what_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_program, "MOST_STATES", 100)
    with pytest.raises(ValueError, match=r"a job of 10 slots in 40 slots has 4\.4e"):
        best_slots(slots_with(np.arange(40)), 10 * HOUR_S, 1.0, at(0), at(40))


@pytest.mark.parametrize("wrong", [{"checkpoint_kwh": -1}, {"restart_s": float("nan")}, {"idle_w": float("inf")}])
def test_a_pause_cannot_cost_less_than_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*at least 0"):
        PauseCost(**wrong)


@pytest.mark.parametrize(
    ("duration_s", "energy_kwh", "end_h", "message"),
    [
        (4 * HOUR_S, 1.0, 3, "3600 s too little"),
        (HOUR_S, 1.0, 5, "covers 2026-11-25 00:00 UTC to 2026-11-25 04:00 UTC"),
        (0.0, 1.0, 4, "duration_s is 0"),
        (HOUR_S, -1.0, 4, "energy_kwh is -1"),
    ],
)
def test_what_cannot_be_planned_is_said(duration_s: float, energy_kwh: float, end_h: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        best_slots(slots_with([1, 2, 3, 4]), duration_s, energy_kwh, at(0), at(end_h))


# --- the limit that acting needs


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(0, 900), min_size=3, max_size=30, unique=True), data=st.data())
def test_the_limit_is_the_kth_cheapest_and_gives_exactly_those_slots(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    slots, end = slots_with(values), at(len(values))
    limit = threshold_g_per_kwh(slots, k * HOUR_S, at(0), end)
    assert limit == sorted(values)[k - 1]
    spans = slots_below(slots, limit, k * HOUR_S, at(0), end)
    assert plan_of(slots, spans, float(k), 0.0).emissions_g == pytest.approx(cheapest(np.array(values), k))


@settings(max_examples=100, deadline=None)
@given(values=SIGNALS, shares=st.tuples(st.integers(1, 30), st.integers(1, 30)), early_min=st.integers(0, 59))
def test_the_limit_rises_with_the_work_and_falls_with_time(
    values: list[float], shares: tuple[int, int], early_min: int
) -> None:
    slots, room_h = slots_with(values), len(values) - early_min / 60
    short_s, long_s = (HOUR_S * room_h / 2 * share / 30 for share in sorted(shares))
    half = at(early_min / 60 + room_h / 2)
    limits = [threshold_g_per_kwh(slots, s, at(early_min / 60), at(len(values))) for s in (short_s, long_s)]
    assert limits[0] <= limits[1]
    assert threshold_g_per_kwh(slots, short_s, at(early_min / 60), half) >= limits[0]


@settings(max_examples=150, deadline=None)
@given(values=SIGNALS, limit=st.integers(-1, 900), early_min=st.integers(0, 59), share=st.integers(1, 60), pause=PAUSES)
def test_a_job_below_a_limit_always_ends_in_time(
    values: list[float], limit: int, early_min: int, share: int, pause: PauseCost
) -> None:
    end_h, begin_h = len(values) - 0.25, early_min / 60
    duration_s = HOUR_S * (end_h - begin_h) * share / 60
    spans = slots_below(slots_with(values), limit, duration_s, at(begin_h), at(end_h), pause)
    assert sum(end - begin for begin, end in spans) == pytest.approx(duration_s)
    assert spans[0][0] >= begin_h * HOUR_S - 1e-6
    assert spans[-1][1] <= end_h * HOUR_S + 1e-5
    for (_, pauses), (resumes, _) in pairwise(spans):
        assert resumes - pauses >= pause.shortest_s - 1e-5


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 100), min_size=4, max_size=20), data=st.data())
def test_a_job_below_a_limit_knows_no_later_slot(values: list[int], data: st.DataObject) -> None:
    now = data.draw(st.integers(1, len(values) - 1))
    changed = [
        *values[:now],
        *data.draw(st.lists(st.integers(0, 100), min_size=len(values) - now, max_size=len(values) - now)),
    ]
    known = []
    for signal in (values, changed):
        spans = slots_below(slots_with(signal), 50.0, HOUR_S * len(values) / 2, at(0), at(len(values)))
        known.append([(a, min(b, now * HOUR_S)) for a, b in spans if a < now * HOUR_S])
    assert known[0] == known[1]
