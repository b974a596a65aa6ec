"""History replayed: what schedules made from the forecasts of the time would have emitted, beside perfect foresight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from emissions.grid.intensity import SeriesIntensity, utc
from emissions.grid.series import series_intensity
from emissions.grid.zones import Zone, find_zone
from emissions.pricing import check_pue
from emissions.schedule.pauses import FREE, PauseCost, best_slots, plan_of, priced_on, slots_below, threshold_g_per_kwh
from emissions.schedule.slots import Slots
from emissions.schedule.start import best_start, emissions_from_g
from emissions.tables import read_table

FORECAST_COLUMNS = ("issued_at", "time", "carbon_intensity_g_per_kwh")
NOW = "now"
# Each policy that plans, by what it plans on a signal: the same is done on the forecast and on what came of it.
POLICIES = ("best start", "paused", "threshold")
PAUSING = ("paused", "threshold")
COLUMNS = (
    "arrival", "deadline", "duration_s", "energy_kwh", "policy", "now_g", "emissions_g", "perfect_g", "regret",
    "pauses", "issued_at", "note",
)  # fmt: skip

Forecasts = Sequence[tuple[datetime, SeriesIntensity]]


@dataclass(frozen=True)
class ReplayJob:
    """A job that could start at `arrival` and has to end `slack_s` later than it then would."""

    arrival: datetime
    duration_s: float
    energy_kwh: float
    slack_s: float
    pausable: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.slack_s < np.inf:
            raise ValueError(f"slack_s is {self.slack_s}; it must be a number of at least 0")

    @property
    def deadline(self) -> pd.Timestamp:
        return utc(self.arrival) + pd.Timedelta(seconds=self.duration_s + self.slack_s)


def regular_jobs(
    actual: SeriesIntensity,
    every_s: float,
    duration_s: float,
    slack_s: float,
    energy_kwh: float = 1.0,
    pausable: bool = False,
    begin: datetime | None = None,
) -> list[ReplayJob]:
    """Jobs that arrive regularly from `begin` (or the first slot) on, as long as history covers the whole room.

    Raises ValueError for a distance that is not above zero, or where history is too short for a single job.
    """
    if not every_s > 0:
        raise ValueError(f"every_s is {every_s}; jobs arrive some time apart")
    times = pd.DatetimeIndex(actual.values_g_per_kwh.index)
    first = times[0] if begin is None else utc(begin)
    last = times[-1] + actual.step - pd.Timedelta(seconds=duration_s + slack_s)
    if last < first:
        raise ValueError(f"{actual.source} is shorter than a job of {duration_s:g} s with a slack of {slack_s:g} s")
    arrivals = pd.date_range(first, last, freq=pd.Timedelta(seconds=every_s))
    return [ReplayJob(arrival, duration_s, energy_kwh, slack_s, pausable) for arrival in arrivals]


def replay(
    actual: SeriesIntensity,
    forecasts: Forecasts,
    jobs: Sequence[ReplayJob],
    policies: Sequence[str] = POLICIES,
    pause: PauseCost = FREE,
    pue: float = 1.0,
) -> pd.DataFrame:
    """`COLUMNS`: a row per job and policy, priced at what the intensity was. Pausing is for jobs that may be paused.

    The plan is made at the arrival, from the latest forecast that had been issued by then; `issued_at` says which. A
    forecast that ends (or has a gap) before the deadline is used as far as it goes; where it does not cover the job,
    or there was none, the job starts now. `note` says so.

    perfect_g: the same policy with perfect foresight up to the deadline. regret: (emissions_g - perfect_g) /
    perfect_g; missing where that is 0. "best start": in one piece. "paused": the plan of `best_slots`. "threshold":
    works while the intensity, known as each slot begins, is at or below the limit taken from the forecast.

    Raises ValueError for an unknown policy, forecasts of another zone or kind, GapError where history has a gap.
    """
    check_pue(pue)
    unknown = [policy for policy in policies if policy not in POLICIES]
    if unknown:
        raise ValueError(f"policy {unknown[0]!r} is not one of {', '.join(POLICIES)}")
    for _, forecast in forecasts:
        _check_alike(actual, forecast)
    issued = sorted(((utc(time), forecast) for time, forecast in forecasts), key=lambda pair: pair[0])
    rows = [row for job in jobs for row in _rows(actual, issued, job, policies, pause, pue)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _check_alike(actual: SeriesIntensity, forecast: SeriesIntensity) -> None:
    for name, was, told in (
        ("zone", actual.zone.zone, forecast.zone.zone),
        ("kind", actual.kind, forecast.kind),
    ):
        if was != told:
            raise ValueError(f"forecast {forecast.source} has {name} {told}, and history {actual.source} has {was}")


def _rows(
    actual: SeriesIntensity,
    issued: Sequence[tuple[pd.Timestamp, SeriesIntensity]],
    job: ReplayJob,
    policies: Sequence[str],
    pause: PauseCost,
    pue: float,
) -> Iterator[dict[str, object]]:
    arrival, deadline = utc(job.arrival), job.deadline
    was = Slots.of(actual, arrival, deadline)
    now_g = emissions_from_g(was, arrival, job.duration_s, job.energy_kwh, pue)
    issued_at, told, until, note = _forecast_for(issued, arrival, deadline, job.duration_s)
    for policy in policies:
        if policy in PAUSING and not job.pausable:
            continue
        act: Callable[..., tuple[float, int]] = _ACTS[policy]
        perfect_g, _ = act(was, was, job, deadline, pause, pue)
        emissions_g, pauses = (now_g, 0) if told is None else act(told, was, job, until, pause, pue)
        yield {
            "arrival": arrival,
            "deadline": deadline,
            "duration_s": job.duration_s,
            "energy_kwh": job.energy_kwh,
            "policy": policy,
            "now_g": now_g,
            "emissions_g": emissions_g,
            "perfect_g": perfect_g,
            "regret": (emissions_g - perfect_g) / perfect_g if perfect_g > 0 else np.nan,
            "pauses": pauses,
            "issued_at": issued_at,
            "note": note,
        }


def _forecast_for(
    issued: Sequence[tuple[pd.Timestamp, SeriesIntensity]],
    arrival: pd.Timestamp,
    deadline: pd.Timestamp,
    duration_s: float,
) -> tuple[pd.Timestamp | None, Slots | None, pd.Timestamp, str]:
    """When the latest forecast known at the arrival was issued, what it told, until when, and what falls short."""
    place = bisect_right(issued, arrival, key=lambda pair: pair[0]) - 1
    if place < 0:
        return None, None, deadline, "no forecast had been issued: started now"
    issued_at, forecast = issued[place]
    values = forecast.values_g_per_kwh[forecast.values_g_per_kwh.index >= arrival.floor(forecast.step)]
    gaps = np.flatnonzero(values.isna())
    known = values.iloc[: gaps[0]] if len(gaps) else values
    ends = arrival
    if len(known) and known.index[0] == arrival.floor(forecast.step):
        ends = known.index[-1] + forecast.step
    if ends < arrival + pd.Timedelta(seconds=duration_s):
        return issued_at, None, deadline, "the forecast ends before the job would: started now"
    until = min(ends, deadline)
    note = "" if until == deadline else f"the forecast ends {until:%Y-%m-%d %H:%M} UTC, before the deadline"
    return issued_at, Slots.of(forecast, arrival, until), until, note


def _start_once(
    told: Slots, was: Slots, job: ReplayJob, until: datetime, pause: PauseCost, pue: float
) -> tuple[float, int]:
    best = best_start(told, job.duration_s, job.energy_kwh, job.arrival, until, pue)
    return emissions_from_g(was, best.start, job.duration_s, job.energy_kwh, pue), 0


def _pause(told: Slots, was: Slots, job: ReplayJob, until: datetime, pause: PauseCost, pue: float) -> tuple[float, int]:
    plan = best_slots(told, job.duration_s, job.energy_kwh, job.arrival, until, pause, pue)
    return priced_on(was, plan, job.energy_kwh, pause, pue).emissions_g, plan.pauses


def _below_limit(
    told: Slots, was: Slots, job: ReplayJob, until: datetime, pause: PauseCost, pue: float
) -> tuple[float, int]:
    """The limit is from the signal up to `until`; the job has until its own deadline."""
    limit = threshold_g_per_kwh(told, job.duration_s, job.arrival, until)
    pieces_s = slots_below(was, limit, job.duration_s, job.arrival, job.deadline, pause)
    earliest_s, _ = was.seconds_of(job.arrival, job.deadline)
    plan = plan_of(was, pieces_s, job.energy_kwh, earliest_s, pause, pue)
    return plan.emissions_g, plan.pauses


_ACTS = {"best start": _start_once, "paused": _pause, "threshold": _below_limit}


def summary(replayed: pd.DataFrame) -> pd.DataFrame:
    """A row per policy: over all jobs together, what was saved against starting now, and what could have been.

    saving_percent, perfect_saving_percent: of the sum of now_g. regret_percent: of the sum of perfect_g.
    realised_percent: the part of the possible saving that was realised; missing where nothing could be saved.
    worse_percent: jobs that emitted more than they would have now. highest_regret_percent: of a single job.
    """
    rows = []
    for policy, jobs in replayed.groupby("policy", sort=False):
        now_g, emissions_g, perfect_g = (float(jobs[name].sum()) for name in ("now_g", "emissions_g", "perfect_g"))
        possible_g = now_g - perfect_g
        rows.append(
            {
                "policy": policy,
                "jobs": len(jobs),
                "now_g": now_g,
                "emissions_g": emissions_g,
                "perfect_g": perfect_g,
                "saving_percent": _percent(now_g - emissions_g, now_g),
                "perfect_saving_percent": _percent(possible_g, now_g),
                "regret_percent": _percent(emissions_g - perfect_g, perfect_g),
                "highest_regret_percent": 100 * float(jobs["regret"].max()),
                "realised_percent": _percent(now_g - emissions_g, possible_g),
                "worse_percent": 100 * float((jobs["emissions_g"] > jobs["now_g"] * (1 + 1e-9)).mean()),
                "mean_pauses": float(jobs["pauses"].mean()),
                "short_forecasts": int((jobs["note"] != "").sum()),
            }
        )
    return pd.DataFrame(rows)


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole > 1e-12 else np.nan


def read_forecasts(path: str | Path, zone: Zone | str, kind: str) -> list[tuple[pd.Timestamp, SeriesIntensity]]:
    """Forecasts of one zone and kind from a CSV with `FORECAST_COLUMNS`, a row per issue and slot, by their issue.

    Times without a zone are UTC. Raises FileNotFoundError, or ValueError naming the file, and the row or issue.
    """
    place = find_zone(zone) if isinstance(zone, str) else zone
    table = read_table(path, required=FORECAST_COLUMNS)
    if table.empty:
        raise ValueError(f"{path}: has no forecasts")
    for column in ("zone", "intensity_kind"):
        held = list(table[column].unique()) if column in table.columns else []
        expected = place.zone if column == "zone" else kind
        if held and held != [expected]:
            raise ValueError(f"{path}: column {column} holds {', '.join(map(str, held[:4]))}, not {expected} alone")
    for column in ("issued_at", "time"):
        table[column] = _times(table[column], path)
    values = pd.to_numeric(table["carbon_intensity_g_per_kwh"], errors="coerce")
    wrong = table["carbon_intensity_g_per_kwh"][values.isna() & table["carbon_intensity_g_per_kwh"].notna()]
    if len(wrong):
        # the header is the file's first row
        raise ValueError(f"{path}: row {wrong.index[0] + 2}: {wrong.iloc[0]!r} is not a number")
    table["carbon_intensity_g_per_kwh"] = values
    forecasts = []
    for _, rows in table.groupby("issued_at"):
        issued_at = rows["issued_at"].iloc[0]
        signal = series_intensity(
            rows["time"],
            rows["carbon_intensity_g_per_kwh"].to_numpy(dtype=float),
            zone=place,
            source=f"{Path(path).name}, issued {issued_at:%Y-%m-%d %H:%M} UTC",
            kind=kind,
        )
        forecasts.append((issued_at, signal))
    return forecasts


def _times(column: pd.Series, path: str | Path) -> pd.Series:
    times = pd.to_datetime(column, utc=True, format="ISO8601", errors="coerce")
    wrong = column[times.isna()]
    if len(wrong):
        raise ValueError(f"{path}: row {wrong.index[0] + 2}: {wrong.iloc[0]!r} is not a time ({column.name})")
    return times
