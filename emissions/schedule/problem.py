"""The problem of a schedule in numbers: tasks, sites and a deadline, cut into slots, and what cannot be done.

A task holds its GPUs for whole slots; what it emits is reckoned over its exact duration, evenly in power, at the
intensity of each moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emissions.grid.intensity import utc
from emissions.pricing import check_pue
from emissions.schedule.listed import list_schedule
from emissions.schedule.program import Move, Program
from emissions.schedule.tasks import Task, bundled, ordered

if TYPE_CHECKING:
    from emissions.schedule.slots import Slots

MAX_BINARIES = 12_000  # with more, the first relaxation of two sites takes HiGHS longer than 10 s: longer slots instead
SLOTS_IN_A_CHAIN = 12  # slots are shorter than the signal's where the longest chain of tasks would have fewer
STEPS_S = tuple(60 * minutes for minutes in (5, 10, 15, 30, 60, 120, 180, 360, 720, 1440))


class ChainTooLongError(ValueError):
    """A chain of tasks does not fit before the deadline in whole slots."""


@dataclass(frozen=True)
class DagSite:
    """A place to run: its intensity over the time that may be used, GPUs (or places, without) and PUE."""

    site: str
    slots: Slots
    gpus: int
    pue: float = 1.0


@dataclass(frozen=True)
class Problem:
    """Tasks (short ones in bundles), sites, and the slots between the earliest start and the deadline.

    excess_s: what rounding up to whole slots adds to the durations, in sum. notes: what was done so that the problem
    can be solved, a sentence each.
    """

    tasks: tuple[Task, ...]
    sites: tuple[DagSite, ...]
    earliest: pd.Timestamp
    step_s: int
    program: Program
    excess_s: float
    notes: tuple[str, ...]

    @staticmethod
    def of(
        tasks: Sequence[Task],
        sites: Sequence[DagSite],
        earliest: datetime,
        deadline: datetime,
        *,
        home_gb: float = 0.0,
        kwh_per_gb: float = 0.0,
        one_site_per_item: bool = False,
        step_s: int | None = None,
        max_binaries: int = MAX_BINARIES,
    ) -> Problem:
        """The problem in slots of `step_s`, or of a length that suits the signal and the tasks (`docs/schedule.md`).

        sites: the first is home, where the data are: `home_gb` have to be at any other site before the first tasks
        run there, and a task's `output_gb` where those run that need it; moving takes `kwh_per_gb`, at the mean
        of the two sites' mean intensities, each with its PUE. The time of a move is not in the plan.

        Raises ValueError when it cannot be done: no time or GPUs enough for a task or a chain of tasks, sites whose
        intensities are of different kinds or do not cover the time, or tasks that wait for each other.
        """
        first, last = utc(earliest), utc(deadline)
        tasks = ordered(tasks)
        _check(tasks, sites, first, last)
        moves = _MoveCosts(sites, first, last, home_gb, kwh_per_gb)

        def in_slots_of(step: int) -> Problem:
            return _problem(tasks, sites, first, last, step, moves, one_site_per_item)

        if step_s is not None:
            return in_slots_of(step_s)
        return _suitable(in_slots_of, tasks, sites, max_binaries)


def _suitable(
    in_slots_of: Callable[[int], Problem], tasks: Sequence[Task], sites: Sequence[DagSite], max_binaries: int
) -> Problem:
    """The problem in slots of the signal's own length, or shorter so that the longest chain of tasks has some, and so
    that it fits; then longer again until the program is small enough, as long as it fits.
    """
    chain_s, signal_s = _chain_s(tasks), min(site.slots.step_s for site in sites)
    steps = [step for step in STEPS_S if step <= signal_s and step * SLOTS_IN_A_CHAIN <= chain_s] or [STEPS_S[0]]
    while True:
        try:
            problem = in_slots_of(steps[-1])
            break
        except ChainTooLongError:
            if len(steps) == 1:
                raise
            steps.pop()
    first_s = problem.step_s
    for step in STEPS_S[STEPS_S.index(first_s) + 1 :]:
        if problem.program.binaries <= max_binaries:
            break
        try:
            problem = in_slots_of(step)
        except ChainTooLongError:
            break
    if problem.step_s == first_s:
        return problem
    note = (
        f"slots of {span(problem.step_s)} instead of {span(first_s)}: the program has {problem.program.binaries} "
        f"yes-or-no variables, and should have at most {max_binaries}"
    )
    return replace(problem, notes=(note, *problem.notes))


def _problem(
    tasks: Sequence[Task],
    sites: Sequence[DagSite],
    earliest: pd.Timestamp,
    deadline: pd.Timestamp,
    step_s: int,
    moves: _MoveCosts,
    one_site_per_item: bool,
) -> Problem:
    groups = bundled(tasks, step_s)
    slots = int((deadline - earliest).total_seconds() // step_s)
    place = {task.name: number for number, task in enumerate(groups)}
    edges = tuple(sorted((place[need], place[task.name]) for task in groups for need in task.needs))
    length = np.array([_slots_of(task.duration_s, step_s) for task in groups])
    first, last = _windows(length, edges, slots)
    if (last < first).any():
        raise ChainTooLongError(_chain_too_long(length, edges, slots, step_s, earliest, deadline))
    begins_s = np.arange(slots) * float(step_s)
    cost_g = np.zeros((len(groups), len(sites), slots))
    for task, one in enumerate(groups):
        window = slice(0, slots - length[task] + 1)  # beyond, it would end after the deadline
        for number, site in enumerate(sites):
            offset_s = 0.0
            for part in one.parts:
                mean = mean_intensities(site, earliest, begins_s[window] + offset_s, part.duration_s)
                cost_g[task, number, window] += part.energy_kwh * site.pue * mean
                offset_s += part.duration_s
    program = Program(
        cost_g=cost_g,
        length=length,
        gpus=np.array([task.gpus for task in groups]),
        capacity=np.array([site.gpus for site in sites]),
        first=first,
        last=last,
        edges=edges,
        moves=moves.of(groups, place),
        together=_together(groups) if one_site_per_item else (),
    )
    excess_s = float((length * step_s).sum() - sum(task.duration_s for task in groups))
    notes = () if len(groups) == len(tasks) else (
        f"{len(tasks)} tasks in {len(groups)} bundles, as many are shorter than a slot of {span(step_s)}; those of a "
        "bundle run one after the other",
    )  # fmt: skip
    return Problem(groups, tuple(sites), earliest, step_s, program, excess_s, notes)


def _slots_of(duration_s: float, step_s: int) -> int:
    return max(1, int(np.ceil(duration_s / step_s - 1e-9)))  # a rounding error is no slot


def _windows(length: np.ndarray, edges: Sequence[tuple[int, int]], slots: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and last slot that each task can start in, by the longest chains before and after it."""
    first, last = np.zeros(len(length), dtype=int), slots - length
    for before, after in edges:
        first[after] = max(first[after], first[before] + length[before])
    for before, after in sorted(edges, key=lambda edge: -edge[1]):
        last[before] = min(last[before], last[after] - length[before])
    return first, last


def mean_intensities(site: DagSite, earliest: pd.Timestamp, begins_s: np.ndarray, duration_s: float) -> np.ndarray:
    """Mean gCO2e/kWh over `duration_s` from each of K offsets to the earliest start, (K,)."""
    at_s = begins_s + (earliest - site.slots.start).total_seconds()
    return np.asarray(site.slots.integral(at_s, at_s + duration_s)) / duration_s


def signal_pieces(site: DagSite, earliest: pd.Timestamp, end: pd.Timestamp) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and gCO2e/kWh of each of the K pieces of time in which the intensity stays the same, (K,) both."""
    slots = site.slots
    offset_s = (earliest - slots.start).total_seconds()
    inside_s = np.clip(slots.edges_s, offset_s, offset_s + (end - earliest).total_seconds())
    return np.diff(inside_s), slots.values_g_per_kwh


def _chain_s(tasks: Sequence[Task]) -> float:
    """How long the longest chain of tasks takes; tasks: each after what it needs."""
    ends: dict[str, float] = {}
    for task in tasks:
        ends[task.name] = task.duration_s + max((ends[need] for need in task.needs), default=0.0)
    return max(ends.values())


def _together(tasks: Sequence[Task]) -> tuple[tuple[int, ...], ...]:
    """Tasks with an item in common, directly or through a third, by their places."""
    groups: list[tuple[set[str], list[int]]] = []
    for place, task in enumerate(tasks):
        items, places = {part.item for part in task.parts}, [place]
        for group in [group for group in groups if group[0] & items]:
            groups.remove(group)
            items, places = items | group[0], [*group[1], *places]
        groups.append((items, places))
    return tuple(tuple(places) for _, places in groups if len(places) > 1)


class _MoveCosts:
    """gCO2e of moving one GB between sites."""

    def __init__(
        self,
        sites: Sequence[DagSite],
        earliest: pd.Timestamp,
        deadline: pd.Timestamp,
        home_gb: float,
        kwh_per_gb: float,
    ) -> None:
        span_s = (deadline - earliest).total_seconds()
        means = np.array(
            [site.pue * mean_intensities(site, earliest, np.zeros(1), span_s)[0] for site in sites]
        )  # (S,)
        self.g_per_gb = kwh_per_gb * (means[:, None] + means[None, :]) / 2 * (1 - np.eye(len(sites)))
        self.home_gb = home_gb

    def of(self, tasks: Sequence[Task], place: dict[str, int]) -> tuple[Move, ...]:
        roots = tuple(place[task.name] for task in tasks if not task.needs)
        moves = [Move(None, roots, self.home_gb * self.g_per_gb)]
        for task in tasks:
            users = tuple(place[other.name] for other in tasks if task.name in other.needs)
            moves.append(Move(place[task.name], users, task.output_gb * self.g_per_gb))
        return tuple(move for move in moves if move.consumers and move.emissions_g.any())


# --- what cannot be done


def _check(tasks: Sequence[Task], sites: Sequence[DagSite], earliest: pd.Timestamp, deadline: pd.Timestamp) -> None:
    if not sites:
        raise ValueError("there is no site to run at: name at least one zone")
    if deadline <= earliest:
        raise ValueError(f"the deadline {deadline} is not after the earliest start {earliest}")
    kinds = {site.slots.kind: site.site for site in sites}
    if len(kinds) > 1:
        told = ", ".join(f"{site} ({kind})" for kind, site in kinds.items())
        raise ValueError(f"the sites' intensities are of several kinds and cannot be compared: {told}")
    for site in sites:
        check_pue(site.pue)
        site.slots.seconds_of(earliest, deadline)  # which raises where they do not cover the time
    most = max(sites, key=lambda site: site.gpus)
    for task in tasks:
        if task.gpus > most.gpus:
            raise ValueError(
                f"{task.name} needs {task.gpus} GPUs or places at once, and no site has more than {most.gpus} "
                f"({most.site})"
            )
    chain_s, available_s = _chain_s(tasks), (deadline - earliest).total_seconds()
    if chain_s > available_s:
        raise ValueError(
            f"the deadline leaves {span(available_s)}, and the longest chain of tasks takes {span(chain_s)}: "
            f"{span(chain_s - available_s)} too little"
        )


def _chain_too_long(
    length: np.ndarray,
    edges: Sequence[tuple[int, int]],
    slots: int,
    step_s: int,
    earliest: pd.Timestamp,
    deadline: pd.Timestamp,
) -> str:
    needed = slots - int(_windows(length, edges, slots)[1].min())
    return (
        f"the deadline leaves {span((deadline - earliest).total_seconds())}, and the longest chain of tasks takes "
        f"{span(needed * step_s)} in whole slots of {span(step_s)}: {span((needed - slots) * step_s)} too little"
    )


def too_late(problem: Problem) -> str:
    """Why there is no plan, with the time by which all would end at each site."""
    ends = []
    for number, site in enumerate(problem.sites):
        start = list_schedule(problem.program, number)
        if start is not None:
            end_s = int((start + problem.program.length).max()) * problem.step_s
            ends.append(f"{site.site} by {problem.earliest + pd.Timedelta(seconds=end_s):%Y-%m-%d %H:%M} UTC")
    told = f"; started at once, all ends at {' or at '.join(ends)}" if ends else ""
    return f"no plan ends before the deadline with these GPUs{told}: allow more time or more GPUs"


def span(seconds: float) -> str:
    """A duration for a person."""
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
