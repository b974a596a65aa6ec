"""Best starts of very many jobs in very many zones: ours, plain pandas and CATS' optimiser on the same intensities.

Each way runs in a process of its own, so that its peak memory is its own. Those that would take hours do a part of the
work, which is said, and their time is taken per job and zone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, this file finds only its neighbours

from machine import machine, peak_mb, tell  # noqa: E402, tell

from emissions.grid.intensity import typical_intensity_of  # noqa: E402
from emissions.grid.zones import all_zones  # noqa: E402
from emissions.schedule.start import Starts, best_starts  # noqa: E402

BEGIN = pd.Timestamp("2024-01-01T00:00Z")
SHORTEST_H, LONGEST_H = 0.25, 168.0
SLACK_H = 168
AIM_S = 30.0
CATS = "climate-aware-task-scheduler"
OURS, OWN_ROOM, BY_JOB, BY_HOURS, CATS_WAY = (
    "ours", "ours, own rooms", "pandas, job by job", "pandas, by whole hours", "CATS",
)  # fmt: skip
SAYS = {
    OURS: "every job may start at any time of the year; exact for parts of hours",
    OWN_ROOM: f"every job has its own earliest hour, and ends {SLACK_H} h later than at once, at most",
    BY_JOB: "rolling mean and idxmin for each job; whole hours only, rounded up",
    BY_HOURS: "the same, once for all jobs of as many whole hours, rounded up",
    CATS_WAY: "min(WindowedForecast) for each job and zone; whole hours, rounded up, as its starts are an hour apart",
}


@dataclass(frozen=True)
class Work:
    """How much is done. jobs, hours, zones: of ours; the others do a part, the first jobs and zones of the same."""

    jobs: int = 100_000
    hours: int = 8760
    zones: int | None = None  # all that have a typical year
    pandas_jobs: int = 40
    cats_jobs: int = 10
    cats_zones: int = 2
    rounds: int = 3

    def points(self) -> np.ndarray:
        """gCO2e/kWh on each hour, (Z, hours + 1): each zone's typical year, over the hours from `BEGIN` on."""
        times = pd.date_range(BEGIN, periods=self.hours + 1, freq="h")
        years = filter(None, map(typical_intensity_of, all_zones().values()))
        return np.array([year.values_at(times) for year in years])[: self.zones]

    def slots(self) -> np.ndarray:
        """The mean of each hour, (Z, hours), if straight lines join the points: as CATS reads them."""
        points = self.points()
        return (points[:, :-1] + points[:, 1:]) / 2

    def durations_h(self) -> np.ndarray:
        """(jobs,), as many from one to two hours as from 50 to 100."""
        longest = min(LONGEST_H, self.hours / 2)
        return np.exp(np.random.default_rng(4).uniform(math.log(SHORTEST_H), math.log(longest), self.jobs))

    def whole_hours(self, jobs: int) -> np.ndarray:
        return np.ceil(self.durations_h()[:jobs]).astype(int)


# ---------------------------------------------------------------------------------------------------------- the ways

# Each returns how many jobs and zones it has done, the seconds, and the lowest means of the jobs that all ways do
Done = tuple[int, int, float, np.ndarray]


def shared(work: Work, found: np.ndarray) -> np.ndarray:
    """Of (jobs, zones), those that every way looks at."""
    return found[: work.cats_jobs, : work.cats_zones]


def ours(work: Work) -> Done:
    values, durations = work.slots(), work.durations_h()
    began = time.perf_counter()
    found: Starts = best_starts(values, durations)
    assert found.zone.shape == (work.jobs,)  # the best zone is part of the answer
    seconds = time.perf_counter() - began
    same = best_starts(values[: work.cats_zones], work.whole_hours(work.cats_jobs).astype(float))
    return work.jobs, len(values), seconds, same.mean_g_per_kwh


def own_rooms(work: Work) -> Done:
    values, durations = work.slots(), work.durations_h()
    room = np.ceil(durations).astype(int) + min(SLACK_H, work.hours // 4)
    earliest = np.random.default_rng(5).integers(0, work.hours - room + 1)
    began = time.perf_counter()
    found = best_starts(values, durations, earliest, earliest + room)
    assert found.zone.shape == (work.jobs,)
    seconds = time.perf_counter() - began
    same = best_starts(values[: work.cats_zones], work.whole_hours(work.cats_jobs).astype(float))
    return work.jobs, len(values), seconds, same.mean_g_per_kwh


def frame(work: Work) -> pd.DataFrame:
    return pd.DataFrame(work.slots().T, index=pd.date_range(BEGIN, periods=work.hours, freq="h"))


def lowest(hourly: pd.DataFrame, hours: int) -> tuple[pd.Series, pd.Series]:
    """The last hour of the best window of each zone, and its mean."""
    means = hourly.rolling(hours).mean()
    return means.idxmin(), means.min()


def pandas_by_job(work: Work) -> Done:
    hourly, jobs = frame(work), work.whole_hours(work.pandas_jobs)
    began = time.perf_counter()
    found = [lowest(hourly, int(hours)) for hours in jobs]
    seconds = time.perf_counter() - began
    return len(jobs), hourly.shape[1], seconds, shared(work, np.array([means for _, means in found]))


def pandas_by_hours(work: Work) -> Done:
    hourly, jobs = frame(work), work.whole_hours(work.jobs)
    began = time.perf_counter()
    hours, which = np.unique(jobs, return_inverse=True)
    found = [lowest(hourly, int(count)) for count in hours]
    means = np.array([mean for _, mean in found])[which]
    ends = np.array([end for end, _ in found])[which]
    assert means.argmin(axis=1).shape == ends[:, 0].shape
    seconds = time.perf_counter() - began
    return len(jobs), hourly.shape[1], seconds, shared(work, means)


def cats(work: Work) -> Done:
    from cats.forecast import PointEstimate, WindowedForecast

    begin = BEGIN.to_pydatetime()
    forecasts = [
        [PointEstimate(float(value), begin + timedelta(hours=hour)) for hour, value in enumerate(row)]
        for row in work.points()[: work.cats_zones]
    ]
    jobs = work.whole_hours(work.cats_jobs)
    began = time.perf_counter()
    found = [
        [min(WindowedForecast(forecast, 60 * int(hours), start=begin)).value for forecast in forecasts]
        for hours in jobs
    ]
    return len(jobs), len(forecasts), time.perf_counter() - began, np.array(found)


WAYS: dict[str, Callable[[Work], Done]] = {
    OURS: ours,
    OWN_ROOM: own_rooms,
    BY_JOB: pandas_by_job,
    BY_HOURS: pandas_by_hours,
    CATS_WAY: cats,
}


# -------------------------------------------------------------------------------------------------------- measurement


def alone(name: str, work: Work) -> tuple[Done, float, float]:
    """A way, and this process' peak memory in MB before and after it."""
    before_mb = peak_mb()
    return WAYS[name](work), before_mb, peak_mb()


def cats_version() -> str | None:
    """Of CATS; None where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(CATS)
    return None


def measured(work: Work) -> dict[str, Any]:
    """The report. Raises RuntimeError where two ways do not find the same."""
    ways = [name for name in WAYS if name != CATS_WAY or cats_version() is not None]
    runs: dict[str, list[tuple[Done, float, float]]] = {name: [] for name in ways}
    spawn = multiprocessing.get_context("spawn")
    load_before = os.getloadavg()[0]
    for turn in range(work.rounds):
        for name in ways:
            print(f"round {turn + 1} of {work.rounds}: {name} ...", file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                runs[name].append(pool.submit(alone, name, work).result())
    rows = [row(name, runs[name], work) for name in ways]
    check_answers({name: found[0][0][3] for name, found in runs.items()})
    for each in rows:
        each["ratio"] = each["s_per_million"] / rows[0]["s_per_million"]
    return {
        "benchmark": "starts",
        **machine(load_before),
        "jobs": work.jobs,
        "hours": work.hours,
        "zones": rows[0]["zones"],
        "rounds": work.rounds,
        "rows": rows,
        "aim": {"at_most_s": AIM_S, "met": all(each["seconds"] <= AIM_S for each in rows[:2])},
        "missing": [] if CATS_WAY in ways else [f"CATS: package {CATS} is not installed; see benchmarks/README.md"],
    }


def row(name: str, runs: list[tuple[Done, float, float]], work: Work) -> dict[str, Any]:
    jobs, zones = runs[0][0][:2]
    seconds = statistics.median(done[2] for done, *_ in runs)
    whole = work.jobs * len(work.points())
    return {
        "way": name,
        "version": cats_version() if name == CATS_WAY else None,
        "says": SAYS[name],
        "jobs": jobs,
        "zones": zones,
        "seconds": seconds,
        "seconds_min": min(done[2] for done, *_ in runs),
        "seconds_max": max(done[2] for done, *_ in runs),
        "s_per_million": 1e6 * seconds / (jobs * zones),
        "whole_s": seconds * whole / (jobs * zones),
        "scaled": jobs * zones < whole,
        "before_mb": statistics.median(before for _, before, _ in runs),
        "peak_mb": max(peak for *_, peak in runs),
    }


def check_answers(found: dict[str, np.ndarray]) -> None:
    """All ways found the same lowest means of the jobs that all of them did. Raises RuntimeError."""
    for name, means in found.items():
        if not np.allclose(means, found[OURS], rtol=1e-6):
            raise RuntimeError(f"{name} found other optima than {OURS}: {means.tolist()} and {found[OURS].tolist()}")


# ------------------------------------------------------------------------------------------------------------ output


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [
        "{jobs:,} jobs, {hours:,} hours, {zones} zones; {cores} cores".format(**report),
        "Python {python}, numpy {numpy}, pandas {pandas}; medians of {rounds} rounds".format(**report),
        "load of the machine {load_before:.2f} before, {load_after:.2f} after".format(**report),
        "",
        f"{'':26}{'jobs x zones':>14}{'s':>9}{'s per million':>15}{'ratio':>13}{'all, s':>13}{'peak, MB':>10}",
    ]
    for each in report["rows"]:
        whole = f"{each['whole_s']:,.0f}{'*' if each['scaled'] else ' '}"
        lines.append(
            f"{each['way']:26}{each['jobs'] * each['zones']:>14,}{each['seconds']:>9.2f}{each['s_per_million']:>15,.2f}"
            f"{each['ratio']:>11,.2f} x{whole:>13}{each['peak_mb']:>10.0f}"
        )
    lines += ["", "* scaled from the part that was done; all ways found the same lowest means of the same jobs"]
    lines += [
        f"  {each['way']}{' ' + each['version'] if each['version'] else ''}: {each['says']}" for each in report["rows"]
    ]
    own = ", ".join(f"{each['seconds']:.1f} s" for each in report["rows"][:2])
    lines.append(f"aim: ours in at most {AIM_S:g} s; {own}: {'met' if report['aim']['met'] else 'missed'}")
    lines += [f"left out: {line}" for line in report["missing"]]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description="Best starts of 100,000 jobs over 8,760 hours in all zones with a typical year; about three "
        f"minutes. CATS takes part where {CATS} is installed: see benchmarks/README.md.",
        epilog="example: python benchmarks/starts.py --json > starts.json",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="little of everything: to see that it runs")
    arguments = parser.parse_args()
    quick = Work(jobs=300, hours=480, zones=3, pandas_jobs=12, cats_jobs=4, cats_zones=2, rounds=1)
    report = measured(quick if arguments.quick else Work())
    tell(report, table, as_json=arguments.json, quick=arguments.quick)


if __name__ == "__main__":
    main()
