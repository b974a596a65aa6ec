"""Proposed starts of a study's next run: `results/emissions/schedule.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from emissions.grid.intensity import intensity_of
from emissions.grid.zones import find_zone
from emissions.ledger import read_ledger
from emissions.schedule.listed import list_schedule
from emissions.schedule.policies import compare, starts_table
from emissions.schedule.problem import DagSite, Problem
from emissions.schedule.slots import Slots
from emissions.schedule.tasks import gpus_at_once, tasks_of
from emissions.tables import read_table, write_table

TIME_LIMIT_S = 120.0
GAP = 1e-4
MAX_BINARIES = 4_000  # solved well within the limit, so that the same study gives the same table on any machine


def propose(ledger: pd.DataFrame, plan: pd.DataFrame, carbon: Mapping[str, Any], slack_h: float) -> pd.DataFrame:
    """`policies.START_COLUMNS`: had the study been free to end `slack_h` later, when would it best have run?

    "Now" is when the study began, and not the time of day at which this is asked, so that the same ledger gives the
    same table. The signal is the zone's typical year, or constant where there is none; the site is the study's own,
    with its PUE and as many GPUs (places, without) as it held at once.

    carbon: the config's section. Raises ValueError for a negative slack and as `tasks_of` and `compare` do.
    """
    if not slack_h >= 0:
        raise ValueError(f"slack_h is {slack_h!r}; it must be a number of hours of at least 0")
    zone = find_zone(carbon["zone"])
    tasks = tasks_of(ledger, plan)
    gpus = gpus_at_once(ledger, tasks)
    intensity = intensity_of(zone, carbon["year"])
    earliest = pd.to_datetime(ledger["started_at"], utc=True).min()

    def sites(deadline: pd.Timestamp) -> list[DagSite]:
        return [DagSite(zone.zone, Slots.of(intensity, earliest, deadline), gpus, float(carbon["pue"]))]

    # One task after the other, each rounded up to an hour, is later than any plan ends that starts at once.
    roomy = earliest + pd.Timedelta(seconds=sum(task.duration_s + 3600 for task in tasks), hours=slack_h)
    problem = Problem.of(tasks, sites(roomy), earliest, roomy, max_binaries=MAX_BINARIES)
    start = list_schedule(problem.program, 0)
    at_once_s = int((start + problem.program.length).max()) * problem.step_s
    deadline = earliest + pd.Timedelta(seconds=at_once_s, hours=slack_h)
    return starts_table(
        compare(tasks, sites(deadline), earliest, deadline, step_s=problem.step_s, time_limit_s=TIME_LIMIT_S, gap=GAP)
    )


def write_schedule(
    ledger_path: str | Path, plan_path: str | Path, schedule_path: str | Path, carbon: Mapping[str, Any], slack_h: float
) -> None:
    """Read a study's ledger and plan, and write its proposed starts. Raises as `propose`, and OSError."""
    ledger, plan = read_ledger(ledger_path), read_table(plan_path, required=("run",))
    write_table(propose(ledger, plan, carbon, slack_h), schedule_path)
