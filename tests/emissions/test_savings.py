"""What waiting and pausing saved, against closed forms."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from emissions.acting.pauses import Pause
from emissions.acting.savings import SAVINGS_COLUMNS, measure_savings, savings_of, savings_text
from emissions.grid.intensity import intensity_of
from emissions.grid.zones import find_zone
from emissions.records import utc_text
from emissions.summary import mass_text
from tests.emissions.test_acting import NOON, at, signal_of


def attempts(*rows: tuple[str, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "stage": "train_diffusion",
                "item": attempt_id,
                "attempt_id": attempt_id,
                "started_at": utc_text(at(start)),
                "ended_at": utc_text(at(end)),
                "energy_kwh": energy_kwh,
            }
            for attempt_id, start, end, energy_kwh in rows
        ]
    )


def request(requested: float, planned: float, done: float | None = None) -> dict[str, Any]:
    plan = {"requested_at": utc_text(at(requested)), "planned_start": utc_text(at(planned))}
    return plan | ({"done_at": utc_text(at(done))} if done is not None else {})


def test_a_study_that_neither_waits_nor_pauses_saves_nothing() -> None:
    table = measure_savings(attempts(("one", 1, 3, 2.0)), signal_of([100, 200, 300, 400]), 1.2)
    assert list(table.columns) == list(SAVINGS_COLUMNS)
    assert table["saved_g"].tolist() == [0.0] and table["moved_h"].tolist() == [0.0]
    assert table["emissions_g"].iloc[0] == pytest.approx(2.0 * 1.2 * 250)


def test_waiting_is_held_against_the_hours_of_the_request() -> None:
    signal = signal_of([500, 400, 100, 100])
    table = measure_savings(attempts(("one", 2, 4, 2.0)), signal, 1.5, [request(0, 2)])
    assert table["at_once_started_at"].iloc[0] == utc_text(NOON)
    assert table["saved_g"].iloc[0] == pytest.approx(1.5 * 2 * (450 - 100))
    sums = savings_of(table)
    assert (sums["waited_h"], sums["saved_percent"]) == (2.0, pytest.approx(100 * 350 / 450))
    assert savings_text(sums, mass_text).startswith("waited 2.0 h: 1.05 kg saved (+77.8 %)")


def test_energy_of_a_pause_is_emitted_and_not_in_the_counterfactual() -> None:
    """One hour of work at 1 kW, two of a pause at 0.1 kW, one of work: at once it were two hours."""
    signal = signal_of([100, 900, 900, 100])
    pauses = [Pause("one", at(1), at(3), 0.2)]
    table = measure_savings(attempts(("one", 0, 4, 2.2)), signal, 1.0, [request(0, 0)], pauses, {"one": trace_of()})
    row = table.iloc[0]
    assert row["emissions_g"] == pytest.approx(100 + 0.2 * 900 + 100)
    assert row["at_once_g"] == pytest.approx(100 + 900)
    assert (row["pauses"], row["paused_h"], row["paused_kwh"], row["moved_h"]) == (1, 2.0, 0.2, 0.0)


def trace_of() -> pd.DataFrame:
    minutes = pd.date_range(NOON, periods=241, freq="min")[1:]
    power = [1000.0 if at(0) < time <= at(1) or time > at(3) else 100.0 for time in minutes]
    return pd.DataFrame({"time": minutes, "cpu_w": power, "gpu_w": 0.0, "ram_w": 0.0})


def test_a_pause_that_ends_up_dearer_is_a_loss() -> None:
    signal = signal_of([100, 900, 900, 900])
    table = measure_savings(
        attempts(("one", 0, 4, 2.2)),
        signal,
        1.0,
        [request(0, 0)],
        [Pause("one", at(1), at(3), 0.2)],
        {"one": trace_of()},
    )
    assert table["saved_g"].iloc[0] == pytest.approx(1000 - (100 + 180 + 900))
    assert savings_text(savings_of(table), mass_text).startswith("1 pause of 2.0 h: 180 g lost (-18.0 %)")


def test_work_after_a_pause_of_another_job_would_have_come_earlier_and_work_beside_it_would_not() -> None:
    rows = attempts(("paused", 0, 4, 2.0), ("beside", 2, 3, 1.0), ("after", 5, 6, 1.0))
    pauses = [Pause("paused", at(1), at(3), 0.0), Pause("gone", at(2), at(4), 0.0)]
    table = measure_savings(rows, signal_of([100.0] * 9), 1.0, [request(0, 0)], pauses).set_index("attempt_id")
    assert table.loc["beside", "moved_h"] == 0
    assert table.loc["after", "moved_h"] == 3.0  # the two pauses overlap
    assert table.loc["paused", "moved_h"] == 0 and table.loc["paused", "paused_h"] == 2.0


def test_each_request_has_its_own_wait_and_earlier_and_later_work_none() -> None:
    rows = attempts(("early", 0, 1, 1.0), ("first", 3, 4, 1.0), ("late", 7, 8, 1.0), ("second", 12, 13, 1.0))
    table = measure_savings(rows, signal_of([100.0] * 20), 1.0, [request(1, 3, done=5), request(8, 10)])
    assert table["moved_h"].tolist() == [0.0, 2.0, 0.0, 2.0]


def test_an_attempt_that_was_killed_while_it_paused_gives_its_mean_power_to_the_pause() -> None:
    table = measure_savings(
        attempts(("one", 0, 4, 2.0)), signal_of([100.0] * 5), 1.0, [request(0, 0)], [Pause("one", at(3))]
    )
    row = table.iloc[0]
    assert (row["paused_h"], row["paused_kwh"]) == (1.0, 0.5)
    assert row["at_once_g"] == pytest.approx(150) and row["saved_g"] == pytest.approx(-50)


def test_no_attempts_give_an_empty_table() -> None:
    table = measure_savings(attempts(), intensity_of(find_zone("DE"), 2024), 1.0)
    assert table.empty and savings_of(table)["saved_g"] == 0
