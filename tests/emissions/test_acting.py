"""Waiting for a start, pausing, budgets and what they saved, on made-up signals and clocks."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emissions.acting.budget import Budget, warn_once, windows_so_far
from emissions.acting.controller import BUDGET_EVERY_S, Controller
from emissions.acting.job import ActingJob, latest_pause
from emissions.acting.pauses import Pause, PauseLog, read_pauses
from emissions.acting.settings import Acting
from emissions.acting.signal import StudySignal
from emissions.acting.starts import begin_option, finish, open_start, read_starts, starts_path, wait_for_start
from emissions.attempt_file import Totals
from emissions.grid.intensity import KIND, CarbonIntensity
from emissions.grid.series import series_intensity
from emissions.grid.zones import find_zone
from emissions.records import append_journal, utc_text
from tests.emissions.studies import make_record

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOURS = 48


def at(hours: float) -> datetime:
    return NOON + timedelta(hours=hours)


def signal_of(values: Sequence[float]) -> CarbonIntensity:
    """Hourly from noon on."""
    times = pd.date_range(NOON, periods=len(values), freq="h")
    return series_intensity(times, np.array(values, dtype=float), zone=find_zone("DE"), source="made up", kind=KIND)


def carbon_file(folder: Path, values: Sequence[float]) -> dict[str, Any]:
    path = folder / "grid.csv"
    times = pd.date_range(NOON, periods=len(values), freq="h").strftime("%Y-%m-%dT%H:%M:%SZ")
    pd.DataFrame({"when": times, "grams": values}).to_csv(path, index=False)
    file = {"path": str(path), "time": "when", "value": "grams", "kind": KIND}
    return {"zone": "DE", "year": 2024, "pue": 1.5, "intensity": "file", "fallback": False, "file": file}


class Clock:
    """Time passes only in `sleep`."""

    def __init__(self, moment: datetime = NOON) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment

    def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


# --- the start ----------------------------------------------------------------------------------------------


def wait(config: dict[str, Any], results: Path, clock: Clock, **options: Any) -> list[str]:
    told: list[str] = []
    wait_for_start(config, results, now=clock.now, sleep=clock.sleep, tell=told.append, **options)
    return told


def green(folder: Path, values: Sequence[float], **schedule: Any) -> dict[str, Any]:
    asked = {"start": "green", "deadline_h": 24.0, "duration_h": 2.0, **schedule}
    return {"schedule": asked, "carbon": carbon_file(folder, values)}


def test_a_green_study_waits_for_the_greenest_hours_before_its_deadline(tmp_path: Path) -> None:
    values = [400 + 100 * math.cos(hour) for hour in range(HOURS)]
    clock = Clock()
    told = wait(green(tmp_path, values), tmp_path, clock)
    best = min(range(23), key=lambda hour: values[hour] + values[hour + 1])
    assert clock.moment == at(best)
    assert told[0].startswith(f"waiting until {utc_text(at(best))}: {(values[best] + values[best + 1]) / 2:.0f} g/kWh")
    assert f"instead of {(values[0] + values[1]) / 2:.0f}" in told[0]
    assert len(told) == 1 + best * 2 - 1  # every half hour, and not at the end


def test_a_study_that_was_interrupted_keeps_its_plan_until_it_is_done(tmp_path: Path) -> None:
    values = [500.0] * 5 + [100.0] * (HOURS - 5)
    config, clock = green(tmp_path, values), Clock()
    wait(config, tmp_path, clock, holds=False)
    clock.moment = at(3)
    assert len(wait(config, tmp_path, clock)) > 1 and clock.moment == at(5)
    clock.moment = at(6)
    assert wait(config, tmp_path, clock) == [] and clock.moment == at(6)
    assert len(read_starts(starts_path(tmp_path))) == 1
    finish(tmp_path, clock.moment)
    assert open_start(tmp_path) is None
    wait(config, tmp_path, clock)
    assert [plan["requested_at"] for plan in read_starts(starts_path(tmp_path))] == [utc_text(NOON), utc_text(at(6))]


@pytest.mark.parametrize("change", [{"deadline_h": 40.0}, {"duration_h": 3.0}, {"start": "now"}])
def test_another_request_is_planned_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    config, clock = green(tmp_path, [500.0] * 30 + [100.0] * 18), Clock()
    wait(config, tmp_path, clock, holds=False)
    config["schedule"] |= {"pause_above_g_per_kwh": 300.0, **change}
    wait(config, tmp_path, clock, holds=False)
    plans = read_starts(starts_path(tmp_path))
    assert len(plans) == 2 and plans[1]["asked"] != plans[0]["asked"]


def test_a_plan_whose_deadline_is_over_is_made_anew(tmp_path: Path) -> None:
    config, clock = green(tmp_path, [500.0] * 10 + [100.0] * 38), Clock()
    wait(config, tmp_path, clock, holds=False)
    clock.moment = at(24)
    wait(config, tmp_path, clock, holds=False)
    assert [plan["planned_start"] for plan in read_starts(starts_path(tmp_path))] == [
        utc_text(at(10)),
        utc_text(at(24)),
    ]


def test_now_waits_for_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    clock = Clock()
    assert wait({"schedule": {"start": "now"}, "carbon": {"zone": "DE"}}, tmp_path, clock) == []
    assert clock.moment == NOON and not starts_path(tmp_path).exists()


def test_a_study_of_unknown_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"schedule\.duration_h"):
        wait(green(tmp_path, [1.0] * HOURS, duration_h=None), tmp_path, Clock())


def test_a_deadline_that_is_too_near_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"schedule\.deadline_h`: 1 h are less than the 2 h"):
        wait(green(tmp_path, [100.0] * HOURS, deadline_h=1.0), tmp_path, Clock())


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    starts_path(tmp_path).parent.mkdir(parents=True)
    starts_path(tmp_path).write_text('[{"requested_at": "yesterday"}]')
    with pytest.raises(ValueError, match=r"starts\.json.*delete it to plan anew"):
        wait(green(tmp_path, [100.0] * HOURS), tmp_path, Clock())


def test_slurm_is_told_of_a_start_that_is_ahead_in_local_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        wait(green(tmp_path, [500.0] * 5 + [100.0] * 43), tmp_path, Clock(), holds=False)
        assert begin_option(tmp_path, NOON) == "--begin=2026-06-01T22:30:00"
        assert begin_option(tmp_path, at(5)) == ""
    finally:
        monkeypatch.undo()
        time.tzset()


def test_waiting_tells_the_time_that_is_left(tmp_path: Path) -> None:
    told = wait(green(tmp_path, [500.0] + [100.0] * 47), tmp_path, Clock())
    assert told[1:] == [f"waiting for {utc_text(at(1))}: 30 min left"]


# --- the controller -----------------------------------------------------------------------------------------


class Watched:
    """A controller on an hourly signal, and all that it says."""

    def __init__(self, folder: Path, values: Sequence[float] = (100.0,), *, obeys: bool = True, **options: Any) -> None:
        self.clock, self.lines, self.warned = Clock(), [], []
        self.spent = ""
        signal = signal_of(values)
        self.controller = Controller(
            folder / "control.json",
            intensity_g_per_kwh=lambda moment: signal.at(moment),
            over_budget=lambda: self.spent,
            tell=self.lines.append,
            warn=self.warned.append,
            now=self.clock.now,
            **options,
        )
        self.log = PauseLog(folder / "pauses.jsonl", "one", None)
        self.controller._log = self.log
        if obeys:
            self.controller.obeyed()

    def look(self, hours: float) -> str:
        self.clock.moment = at(hours)
        self.controller.look()
        path = self.controller.path
        return str(json.loads(path.read_text())["state"]) if path.exists() else "run"


def test_a_training_is_told_to_pause_above_the_limit_and_to_go_on_at_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path, [300, 301, 900, 300, 301], pause_above_g_per_kwh=300.0)
    assert [watched.look(hour) for hour in (0, 1, 2, 3, 4)] == ["run", "pause", "pause", "run", "pause"]
    watched.clock.moment = at(4.5)
    watched.controller.close()
    assert not watched.controller.path.exists()
    spans = [(pause.began_at, pause.ended_at) for pause in read_pauses(tmp_path / "pauses.jsonl")]
    assert spans == [(at(1), at(3)), (at(4), at(4.5))]
    assert watched.lines[0] == "pause: 301 g/kWh is above the limit of 300"


def test_work_that_does_not_look_is_not_told_to_pause(tmp_path: Path) -> None:
    watched = Watched(tmp_path, [900.0] * 3, obeys=False, pause_above_g_per_kwh=300.0)
    assert [watched.look(hour) for hour in (0, 1)] == ["run", "run"] and watched.lines == []
    watched.controller.obeyed()
    assert watched.look(1) == "pause"


def test_a_deadline_ends_all_pauses(tmp_path: Path) -> None:
    plan = {"deadline": utc_text(at(5)), "duration_s": 2 * 3600.0}
    watched = Watched(tmp_path, [900.0] * 9, pause_above_g_per_kwh=300.0, latest_pause=latest_pause(plan))
    assert [watched.look(hour) for hour in (0, 2.9, 3, 4)] == ["pause", "pause", "run", "run"]
    assert "no time left" in watched.lines[-1]


def test_over_budget_warns_once_or_stops(tmp_path: Path) -> None:
    warns, stops = Watched(tmp_path / "a"), Watched(tmp_path / "b", stops=True)
    for watched in (warns, stops):
        assert watched.look(0) == "run"
        watched.spent = "9 kWh of 8"
        assert watched.look(0.5 * BUDGET_EVERY_S / 3600) == "run", "it has looked a moment ago"
    later = 2 * BUDGET_EVERY_S / 3600
    assert (warns.look(later), stops.look(later)) == ("run", "stop")
    assert (warns.look(2 * later), stops.look(2 * later)) == ("run", "stop")
    assert (warns.warned, stops.warned) == (["over budget: 9 kWh of 8"], [])


def test_a_gap_of_the_signal_while_it_watches_does_no_harm(tmp_path: Path) -> None:
    watched = Watched(tmp_path, [900.0], pause_above_g_per_kwh=300.0)
    assert watched.look(0) == "pause"
    with pytest.raises(ValueError, match="no carbon intensity"):
        watched.look(1)
    assert json.loads(watched.controller.path.read_text())["state"] == "pause"


def test_a_job_of_a_study_that_asks_for_nothing_has_no_control_file(tmp_path: Path) -> None:
    job = ActingJob({}, tmp_path / "results/models/m/emissions/train.json", [], print)
    job.start("one", None)
    assert job.control_file() is None and job.close() == {"paused_s": 0.0, "paused_kwh": 0.0}


# --- the signal and the budget ------------------------------------------------------------------------------


def test_a_file_that_is_written_anew_is_read_again(tmp_path: Path) -> None:
    carbon = carbon_file(tmp_path, [100.0, 200.0])
    signal = StudySignal(carbon)
    assert signal.at(at(1)) == 200
    carbon_file(tmp_path, [100.0, 300.0])
    os.utime(carbon["file"]["path"], (1, 1))
    assert signal.at(at(1)) == 300


def test_hours_that_a_source_does_not_tell_yet_have_its_last_value(tmp_path: Path) -> None:
    signal = StudySignal(carbon_file(tmp_path, [100.0, 300.0]))
    assert signal.mean_g_per_kwh(at(0.5), at(1.5), NOON) == pytest.approx(200)
    assert signal.mean_g_per_kwh(at(1), at(4), NOON) == pytest.approx(300)
    with pytest.raises(ValueError, match="no carbon intensity between"):
        signal.mean_g_per_kwh(at(5), at(6), NOON)


def budget_of(folder: Path, **limits: float) -> Budget:
    signal = StudySignal(carbon_file(folder, [100.0, 300.0]))
    acting = Acting(stops=True, **limits)
    return Budget(acting, folder / "journal.jsonl", [folder / "attempts"], signal.mean_g_per_kwh, pue=1.5)


def attempt(folder: Path, attempt_id: str, hours: tuple[float, float], energy_kwh: float) -> None:
    line = make_record(
        "train_diffusion",
        attempt_id,
        started_at=utc_text(at(hours[0])),
        ended_at=utc_text(at(hours[1])),
        energy_kwh=energy_kwh,
        attempt_id=attempt_id,
    )
    append_journal(folder / "journal.jsonl", line)


def running(folder: Path, attempt_id: str, journal: Path, joules: float, seconds: int = 3600) -> Path:
    """The file of an attempt that has run for so long, with a reading a second."""
    path = folder / "attempts" / f"{attempt_id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"started_at": utc_text(NOON), "journal": str(journal), "fields": list(Totals.__dataclass_fields__)}
    lines = [json.dumps(header)]
    lines += [json.dumps(Totals(t_s=t, cpu_j=joules * t / seconds).row()) for t in range(1, seconds + 1)]
    path.write_text("\n".join(lines) + '\n{"warning": "w"}\n[1.0, 2')
    return path


def test_what_is_used_counts_ended_and_running_attempts_once(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    attempt(tmp_path, "one", (0, 1), 2.0)
    attempt(tmp_path, "two", (1, 2), 3.0)
    running(tmp_path, "two", journal, 7e6)  # whose line is in the journal already
    running(tmp_path, "three", journal, 3.6e6)
    running(tmp_path, "four", tmp_path / "other.jsonl", 3.6e6)  # of another study
    (tmp_path / "attempts" / "five.jsonl").write_text("")
    windows = windows_so_far(journal, [tmp_path / "attempts", tmp_path / "none"])
    assert windows == [(at(0), at(1), 2.0), (at(1), at(2), 3.0), (at(0), at(1), pytest.approx(1.0))]


@pytest.mark.parametrize(
    ("limits", "over"),
    [
        ({"budget_kwh": 5.1}, ""),
        ({"budget_kwh": 4.9}, "5 kWh of budget.energy_kwh 4.9 are used"),
        ({"budget_g": 1.5 * (2 * 100 + 3 * 300) + 1}, ""),
        ({"budget_g": 1.5 * (2 * 100 + 3 * 300) - 1}, "1.65e+03 g of budget.emissions_g 1649 are emitted"),
        ({"budget_kwh": 6.0, "budget_g": 10.0}, "1.65e+03 g of budget.emissions_g 10 are emitted"),
    ],
)
def test_a_budget_in_grams_has_the_hours_and_the_pue_and_one_in_kwh_has_neither(
    tmp_path: Path, limits: dict[str, float], over: str
) -> None:
    budget = budget_of(tmp_path, **limits)
    assert budget.over() == ""
    attempt(tmp_path, "one", (0, 1), 2.0)
    attempt(tmp_path, "two", (1, 2), 3.0)
    assert budget.over() == over


def test_a_study_whose_budget_is_used_up_begins_nothing(tmp_path: Path) -> None:
    attempt(tmp_path / "results/emissions", "one", (0, 1), 2.0)
    config = {
        "carbon": carbon_file(tmp_path, [100.0]),
        "budget": {"energy_kwh": 1.0, "emissions_g": None, "action": "stop"},
    }
    with pytest.raises(ValueError, match="not begun; goes on with a larger budget"):
        ActingJob(config, tmp_path / "results/models/m/emissions/train.json", [], print)
    config["budget"] |= {"energy_kwh": 3.0}
    ActingJob(config, tmp_path / "results/models/m/emissions/train.json", [], print)


def test_a_job_that_is_to_pause_by_a_signal_without_a_value_does_not_begin(tmp_path: Path) -> None:
    config = {"carbon": carbon_file(tmp_path, [100.0]), "schedule": {"pause_above_g_per_kwh": 300.0}}
    with pytest.raises(ValueError, match="no carbon intensity at"):
        ActingJob(config, tmp_path / "results/models/m/emissions/train.json", [], print)


def test_each_budget_is_warned_of_once(tmp_path: Path) -> None:
    told: list[str] = []
    for limit in (1.0, 1.0, 2.0, 2.0):
        warn_once(tmp_path / "over_budget.txt", f"over {limit}", Acting(budget_kwh=limit), told.append)
    assert told == ["over 1.0", "over 2.0"]


# --- pauses -------------------------------------------------------------------------------------------------


def test_a_pause_has_the_energy_that_the_readings_tell(tmp_path: Path) -> None:
    file = running(tmp_path, "one", tmp_path / "journal.jsonl", 3.6e6)
    log = PauseLog(tmp_path / "pauses.jsonl", "one", file)
    log.began(at(0.25))
    log.ended(at(0.25), at(0.75))
    assert log.pauses == [Pause("one", at(0.25), at(0.75), pytest.approx(0.5))]
    assert read_pauses(tmp_path / "pauses.jsonl") == log.pauses
    log.began(at(0.8))  # and is killed
    assert read_pauses(tmp_path / "pauses.jsonl")[1] == Pause("one", at(0.8))


def test_a_line_that_is_no_pause_is_named(tmp_path: Path) -> None:
    (tmp_path / "pauses.jsonl").write_text('{"attempt_id": "one"}\n')
    with pytest.raises(ValueError, match=r"pauses\.jsonl:1: not a pause"):
        read_pauses(tmp_path / "pauses.jsonl")
