"""A schedule beside its alternatives: start now, start once at the best time, pause, move, and plan the whole DAG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from emissions.schedule.dag import DagPlan, best_single_start, placed_plan, solve_problem, start_now
from emissions.schedule.problem import DagSite, Problem, span
from emissions.schedule.tasks import Task

if TYPE_CHECKING:
    from emissions.schedule.pauses import PauseCost

START_COLUMNS = (
    "policy", "stage", "item", "site", "zone", "planned_start", "planned_end", "energy_kwh",
    "carbon_intensity_g_per_kwh", "emissions_g", "now_g", "saved_g", "intensity_kind", "intensity_source",
    "intensity_hash", "solver_gap",
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """One way to run all the work. emissions_g: as planned; actual_g: at what became of the forecast, if known.

    saving_percent: below starting now, of actual_g where it is known. plan: its tasks; None for one with pauses.
    energy_kwh: of IT, with pauses and without moving data.
    """

    policy: str
    site: str
    begins: pd.Timestamp
    ends: pd.Timestamp
    energy_kwh: float
    emissions_g: float
    actual_g: float | None = None
    saving_percent: float | None = None
    bound_g: float | None = None
    gap: float | None = None
    status: str = "listed"
    seconds: float = 0.0
    plan: DagPlan | None = None


@dataclass(frozen=True)
class Comparison:
    """The policies, of one problem. notes: what a reader has to know, a sentence each."""

    problem: Problem
    policies: tuple[Policy, ...]
    notes: tuple[str, ...]


def compare(
    tasks: Sequence[Task],
    sites: Sequence[DagSite],
    earliest: datetime,
    deadline: datetime,
    *,
    pause: PauseCost | None = None,
    actual: Sequence[DagSite] | None = None,
    time_limit_s: float = 30.0,
    gap: float = 1e-4,
    **settings: Any,
) -> Comparison:
    """All policies on the same slots, tasks and GPUs; the first site is home.

    pause: of a pause of all the work, which runs at home as one block at its mean power; None: it is not paused.
    actual: the sites with what became of their forecasts, in the same order; adds what each plan really emits, and the
    plan of perfect foresight. settings: of `Problem.of`.

    Raises ValueError as `Problem.of` and `solve_problem` do.
    """
    problem = Problem.of(tasks, sites, earliest, deadline, **settings)
    known = None
    if actual is not None:
        known = Problem.of(tasks, actual, earliest, deadline, **settings | {"step_s": problem.step_s})
    solved = solve_problem(problem, time_limit_s, gap)
    now, single = start_now(problem), best_single_start(problem)
    plans = [plan for plan in (now, single, _best_site(problem), solved) if plan is not None]
    policies = [_policy(plan, known) for plan in plans]
    notes = list(problem.notes)
    if now is None:
        notes.append("run at once at the first site, the work would end after the deadline: there is no saving to tell")
    if pause is not None and single is not None:
        policies.insert(len(policies) - 1, _paused(problem, single, pause, deadline))
    if known is not None:
        best = solve_problem(known, time_limit_s, gap)
        policies.append(_policy(replace(best, policy="perfect foresight"), known))
    if problem.excess_s > 0:
        notes.append(f"whole slots of {span(problem.step_s)} add {span(problem.excess_s)} to the durations, in sum")
    return Comparison(problem, tuple(_with_saving(policies)), tuple(notes))


def starts_table(comparison: Comparison) -> pd.DataFrame:
    """A row per policy and task, in `START_COLUMNS`; a policy with pauses has none.

    now_g, saved_g: what the task emits when all starts now, and less by. solver_gap: of the policy, if it was solved.
    """
    rows = []
    now_g: dict[str, float] = {}
    for policy in comparison.policies:
        for placed in policy.plan.placed if policy.plan is not None else ():
            task, slots = placed.task, placed.site.slots
            if policy.policy == "now":
                now_g[task.name] = placed.emissions_g
            rows.append(
                {
                    "policy": policy.policy,
                    "stage": task.stage,
                    "item": task.item,
                    "site": placed.site.site,
                    "zone": slots.zone,
                    "planned_start": utc_second(placed.start),
                    "planned_end": utc_second(placed.end),
                    "energy_kwh": task.energy_kwh,
                    "carbon_intensity_g_per_kwh": placed.carbon_intensity_g_per_kwh,
                    "emissions_g": placed.emissions_g,
                    "now_g": now_g.get(task.name),
                    "saved_g": now_g[task.name] - placed.emissions_g if task.name in now_g else None,
                    "intensity_kind": slots.kind,
                    "intensity_source": slots.source,
                    "intensity_hash": slots.data_hash,
                    "solver_gap": policy.gap,
                }
            )
    return pd.DataFrame(rows, columns=list(START_COLUMNS))


def utc_second(time: pd.Timestamp) -> str:
    """ISO 8601 in UTC, to the second."""
    return f"{time.round('s'):%Y-%m-%dT%H:%M:%SZ}"


def _best_site(problem: Problem) -> DagPlan | None:
    """The best single start at any site, with what moving the data emits; None where there is only one site."""
    if len(problem.sites) == 1:
        return None
    plans = [best_single_start(problem, site) for site in range(len(problem.sites))]
    best = min((plan for plan in plans if plan is not None), key=lambda plan: plan.emissions_g, default=None)
    return None if best is None else replace(best, policy="best site")


def _policy(plan: DagPlan, known: Problem | None) -> Policy:
    actual_g = None if known is None else placed_plan(known, plan.policy, plan.slot, plan.site).emissions_g
    return Policy(
        policy=plan.policy,
        site=", ".join(dict.fromkeys(placed.site.site for placed in plan.placed)),
        begins=plan.begins,
        ends=plan.ends,
        energy_kwh=sum(placed.task.energy_kwh for placed in plan.placed),
        emissions_g=plan.emissions_g,
        actual_g=actual_g,
        bound_g=plan.bound_g,
        gap=plan.gap,
        status=plan.status,
        seconds=plan.seconds,
        plan=plan,
    )


def _paused(problem: Problem, single: DagPlan, pause: PauseCost, deadline: datetime) -> Policy:
    """All the work as one block at home, at its mean power, paused and resumed."""
    from emissions.schedule.pauses import best_slots

    home, duration_s = problem.sites[0], (single.ends - single.begins).total_seconds()
    energy_kwh = sum(placed.task.energy_kwh for placed in single.placed)
    plan = best_slots(home.slots, duration_s, energy_kwh, problem.earliest, deadline, pause, home.pue)
    return Policy("pausable", home.site, plan.start, plan.end, plan.energy_kwh, plan.emissions_g)


def _with_saving(policies: Sequence[Policy]) -> list[Policy]:
    def counted_g(policy: Policy) -> float:
        return policy.emissions_g if policy.actual_g is None else policy.actual_g

    now_g = next((counted_g(policy) for policy in policies if policy.policy == "now"), 0.0)
    if not now_g > 0:
        return list(policies)
    return [replace(policy, saving_percent=100 * (1 - counted_g(policy) / now_g)) for policy in policies]
