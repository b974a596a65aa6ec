"""The whole study as one plan: each task's site and start, with the baselines that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd

from emissions.schedule import listed
from emissions.schedule.problem import DagSite, Problem, mean_intensities, signal_pieces, too_late
from emissions.schedule.program import INFEASIBLE, OPTIMAL, Program, Solver
from emissions.schedule.tasks import Task

SlotPlan = tuple[np.ndarray, np.ndarray]  # start slot and site of each task, (N,) both


@dataclass(frozen=True)
class PlacedTask:
    """A task of the study in a plan. carbon_intensity_g_per_kwh: the mean over it."""

    task: Task
    site: DagSite
    start: pd.Timestamp
    end: pd.Timestamp
    carbon_intensity_g_per_kwh: float
    emissions_g: float


@dataclass(frozen=True)
class DagPlan:
    """Where and when each task of the study runs, in the order of their starts.

    emissions_g: with transfer_g, of moving data. bound_g: no plan in these slots emits less. gap: (emissions_g -
    bound_g) / emissions_g. status: "optimal" within the gap that was asked for, "time limit", or "listed" where
    nothing was solved. seconds: that solving took. slot, site: (N,), of the tasks of the problem.
    """

    policy: str
    placed: tuple[PlacedTask, ...]
    emissions_g: float
    transfer_g: float
    slot: np.ndarray
    site: np.ndarray
    status: str = "listed"
    bound_g: float | None = None
    gap: float | None = None
    seconds: float = 0.0

    @property
    def starts(self) -> dict[str, pd.Timestamp]:
        """Start of each task by its name."""
        return {placed.task.name: placed.start for placed in self.placed}

    @property
    def site_of(self) -> dict[str, str]:
        """Site of each task by its name."""
        return {placed.task.name: placed.site.site for placed in self.placed}

    @property
    def begins(self) -> pd.Timestamp:
        """When the first task starts."""
        return min(placed.start for placed in self.placed)

    @property
    def ends(self) -> pd.Timestamp:
        """When the last task ends."""
        return max(placed.end for placed in self.placed)


def schedule_dag(
    tasks: Sequence[Task],
    sites: Sequence[DagSite],
    earliest: datetime,
    deadline: datetime,
    *,
    time_limit_s: float = 30.0,
    gap: float = 1e-4,
    **settings: Any,
) -> DagPlan:
    """`solve_problem` of `Problem.of`, which takes the other settings and says what it raises."""
    return solve_problem(Problem.of(tasks, sites, earliest, deadline, **settings), time_limit_s, gap)


def solve_problem(problem: Problem, time_limit_s: float = 30.0, gap: float = 1e-4) -> DagPlan:
    """The plan that emits least, to a relative gap, or the best that was found in the time with the gap it has.

    First without whole numbers, which gives a bound and a plan close to it; then, where the gap is not reached, the
    whole program. Plans are improved task by task, and the best of all is taken: of equals the one that starts at once.

    Raises ValueError when no plan ends before the deadline, or none was found in the time.
    """
    began, program = monotonic(), problem.program
    solver = Solver(program)
    relaxed = solver.relax(time_limit_s / 2)
    plans = list(_listed_plans(problem))
    if relaxed.start is not None and relaxed.site is not None:
        order = np.lexsort([np.arange(len(relaxed.start)), np.round(relaxed.start, 6)])
        for start in (
            listed.near(program, relaxed.start, relaxed.site),
            listed.one_by_one(program, order, relaxed.site),
        ):
            plans += [] if start is None else [(start, relaxed.site)]
    bound_g = max(relaxed.bound_g, _cheapest_g(program), _crowded_g(problem))
    solved, best = relaxed, _best(program, plans)
    if best is None or best[0] - bound_g > gap * best[0]:
        solved = solver.solve(max(time_limit_s - (monotonic() - began), time_limit_s / 10), gap)
        bound_g = max(bound_g, solved.bound_g)
        if solved.start is not None and solved.site is not None:
            best = _best(program, [*plans, (solved.start, solved.site)])
    if INFEASIBLE in (relaxed.status, solved.status):
        raise ValueError(too_late(problem))
    if best is None:
        raise ValueError(f"no plan was found in {time_limit_s:g} s: allow more time, or longer slots")
    plan = placed_plan(problem, "whole DAG", *best[1])
    bound_g = min(plan.emissions_g, bound_g)  # a rounding error is no negative gap
    reached = (plan.emissions_g - bound_g) / plan.emissions_g if plan.emissions_g > 0 else 0.0
    status = "optimal" if solved.status == OPTIMAL or reached <= gap else "time limit"
    return replace(plan, bound_g=bound_g, gap=reached, status=status, seconds=monotonic() - began)


def _best(program: Program, plans: Sequence[SlotPlan]) -> tuple[float, SlotPlan] | None:
    """The best of the plans when they are improved, and what it emits; of equals the first."""
    better = [(listed.improved(program, start, site), site) for start, site in plans]
    costs_g = [listed.plan_cost_g(program, start, site) for start, site in better]
    for cost_g, plan in zip(costs_g, better, strict=True):
        if cost_g <= min(costs_g) * (1 + listed.EQUAL):
            return cost_g, plan
    return None


def start_now(problem: Problem, site: int = 0) -> DagPlan | None:
    """Everything at one site as soon as it can run, from the earliest start on; None where that ends after the
    deadline or the site has too few GPUs for a task.
    """
    start = listed.list_schedule(problem.program, site)
    if start is None or (start > problem.program.last).any():
        return None
    return placed_plan(problem, "now", start, np.full(len(start), site))


def best_single_start(problem: Problem, site: int = 0) -> DagPlan | None:
    """The plan of `start_now` as one block, begun when it emits least; None where a site has too few GPUs or time."""
    start = listed.best_block(problem.program, site)
    if start is None:
        return None
    return placed_plan(problem, "best single start", start, np.full(len(start), site))


def placed_plan(problem: Problem, policy: str, slot: np.ndarray, site: np.ndarray) -> DagPlan:
    """The plan of these slots and sites (N,), with each task of a bundle on its own, priced."""
    placed = []
    for place, task in enumerate(problem.tasks):
        where = problem.sites[site[place]]
        offset_s = float(slot[place] * problem.step_s)
        for part in task.parts:
            start = problem.earliest + pd.Timedelta(seconds=offset_s)
            end = problem.earliest + pd.Timedelta(seconds=offset_s + part.duration_s)
            intensity = float(mean_intensities(where, problem.earliest, np.array([offset_s]), part.duration_s)[0])
            emissions_g = part.energy_kwh * where.pue * intensity
            placed.append(PlacedTask(part, where, start, end, intensity, emissions_g))
            offset_s += part.duration_s
    transfer_g = listed.moves_cost_g(problem.program, site)
    return DagPlan(
        policy=policy,
        placed=tuple(sorted(placed, key=lambda one: one.start)),
        emissions_g=sum(one.emissions_g for one in placed) + transfer_g,
        transfer_g=transfer_g,
        slot=slot,
        site=site,
    )


def _listed_plans(problem: Problem) -> Iterator[SlotPlan]:
    """What needs no solver: at each site from now on, at the best time for that, and one by one."""
    program = problem.program
    for site in range(len(program.capacity)):
        where = np.full(len(program.length), site)
        now = listed.list_schedule(program, site)
        if now is None:
            continue
        if (now <= program.last).all():
            yield now, where
        for start in (
            listed.best_block(program, site),
            listed.one_by_one(program, np.argsort(now, kind="stable"), where),
        ):
            if start is not None:
                yield start, where


def _cheapest_g(program: Program) -> float:
    """The sum of each task at its cheapest, alone in the world: no plan is below."""
    total_g = 0.0
    for task, gpus in enumerate(program.gpus):
        window = slice(program.first[task], program.last[task] + 1)
        total_g += program.cost_g[task, program.capacity >= gpus, window].min()
    return float(total_g)


def _crowded_g(problem: Problem) -> float:
    """The most energy for a GPU hour in the cleanest GPU hours of all sites, as if tasks could be cut at will and
    waited for nothing: no plan is below, since large times small in turn is the least sum of products.
    """
    end = problem.earliest + pd.Timedelta(seconds=problem.step_s * problem.program.cost_g.shape[2])
    pieces = [signal_pieces(site, problem.earliest, end) for site in problem.sites]
    gpu_s = np.concatenate([site.gpus * piece_s for site, (piece_s, _) in zip(problem.sites, pieces, strict=True)])
    g_per_kwh = np.concatenate([site.pue * values for site, (_, values) in zip(problem.sites, pieces, strict=True)])
    parts = [part for task in problem.tasks for part in task.parts]
    free_g = sum(part.energy_kwh for part in parts if part.gpus == 0) * float(g_per_kwh.min())
    held_s = np.array([part.gpus * part.duration_s for part in parts if part.gpus])
    energy_kwh = np.array([part.energy_kwh for part in parts if part.gpus])
    by_power, by_intensity = np.argsort(-energy_kwh / held_s), np.argsort(g_per_kwh)
    ends_s = np.concatenate([[0.0], np.cumsum(gpu_s[by_intensity])])
    sums = np.concatenate([[0.0], np.cumsum((gpu_s * g_per_kwh)[by_intensity])])
    cuts_s = np.concatenate([[0.0], np.cumsum(held_s[by_power])])
    means = np.diff(np.interp(cuts_s, ends_s, sums)) / held_s[by_power]
    return float((energy_kwh[by_power] * means).sum()) + free_g
