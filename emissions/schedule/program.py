"""The mixed-integer program of a schedule: start slots and sites of tasks, solved by HiGHS to a proven gap.

Here are only numbers: of tasks, sites and slots. Times, zones and what a gram is for stay in `dag`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array

OPTIMAL, LIMIT, INFEASIBLE = 0, 1, 2  # status of SciPy's `linprog` and `milp`

Term = tuple[float, np.ndarray]  # a factor, and the column that it stands before in each of K rows, (K,)


@dataclass(frozen=True)
class Move:
    """What a task leaves (or, with `producer` None, what is at home from the first) and the consumers need.

    emissions_g: (S, S), of moving it from one site to another, zero on the diagonal; once to each site.
    """

    producer: int | None
    consumers: tuple[int, ...]
    emissions_g: np.ndarray


@dataclass(frozen=True)
class Program:
    """N tasks on S sites in T slots; site 0 is home.

    cost_g: (N, S, T), of starting a task at a site in a slot; only the slots of its window are looked at.
    length: (N,), slots that a task takes; gpus: (N,), that it holds; capacity: (S,), GPUs of a site.
    first, last: (N,), the window of its start, which leaves room for what comes before and after.
    edges: pairs of tasks of which the second waits for the end of the first. moves: see `Move`.
    together: groups of tasks that have to be at one site.
    """

    cost_g: np.ndarray
    length: np.ndarray
    gpus: np.ndarray
    capacity: np.ndarray
    first: np.ndarray
    last: np.ndarray
    edges: tuple[tuple[int, int], ...] = ()
    moves: tuple[Move, ...] = ()
    together: tuple[tuple[int, ...], ...] = ()

    @property
    def binaries(self) -> int:
        """How many yes-or-no variables the program has."""
        return int((self.last - self.first + 1).sum()) * len(self.capacity)


@dataclass(frozen=True)
class Solution:
    """start, site: (N,) each, or None when none was found. No plan is below bound_g. status: of SciPy."""

    start: np.ndarray | None
    site: np.ndarray | None
    bound_g: float
    status: int


class Solver:
    """The program for HiGHS, which is asked twice: without whole numbers for a bound, and with them for a plan.

    The time-indexed program with disaggregated precedence (Christofides, Alvarez-Valdés and Tamarit 1987), written
    with steps: x[i, s, t] = 1 when task i starts at site s in slot t, and z[i, s, t] = x[i, s, 0] + ... + x[i, s, t]
    when it has started by then. So the precedence of a pair in a slot is one row with two entries a site, where sums
    over x would have as many as there are slots, and with GPUs for all on one site its relaxation is whole already.

    Columns: first all x, task by task and site by site, then all z in the same order, then those of moves.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.sites = len(program.capacity)
        self.widths = program.last - program.first + 1
        self.offsets = np.concatenate([[0], np.cumsum(self.widths * self.sites)])
        self.columns = 2 * program.binaries
        self.weights, self.integrality, self.ceilings = self._starts()
        self._entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # value, row, column
        self._limits: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows = 0
        self._add_steps()
        self._add_precedence()
        self._add_capacity()
        self._add_groups()
        for move in program.moves:
            self._add_move(move)
        # HiGHS has absolute tolerances, and a study may be of milligrams or tonnes
        self.unit_g = (float(np.concatenate(self.weights).max()) or 1.0) / 1000

    def relax(self, time_limit_s: float) -> Solution:
        """The plan in parts, by interior points: its bound, and for each task the mean of its starts, and the site
        that has most of it.
        """
        matrix, low, high = self._constraints()
        same = low == high
        found = linprog(
            np.concatenate(self.weights) / self.unit_g,
            A_ub=matrix[~same],
            b_ub=high[~same],
            A_eq=matrix[same],
            b_eq=high[same],
            bounds=np.stack([np.zeros(self.columns), np.concatenate(self.ceilings)], axis=1),
            method="highs-ipm",
            options={"time_limit": time_limit_s},
        )
        if found.status != OPTIMAL:
            return Solution(None, None, -np.inf, int(found.status))
        start, site = np.zeros(len(self.widths)), np.zeros(len(self.widths), dtype=int)
        for task in range(len(self.widths)):
            parts = found.x[self.offsets[task] : self.offsets[task + 1]].reshape(self.sites, -1)
            site[task] = int(parts.sum(axis=1).argmax())
            start[task] = parts.sum(axis=0) @ self.window(task)
        for group in self.program.together:  # of two halves, the same for all
            site[list(group)] = site[group[0]]
        return Solution(start, site, float(found.fun) * self.unit_g, OPTIMAL)

    def solve(self, time_limit_s: float, gap: float) -> Solution:
        """The plan, to a relative gap, or the best that was found in the time."""
        matrix, low, high = self._constraints()
        found = milp(
            np.concatenate(self.weights) / self.unit_g,
            integrality=np.concatenate(self.integrality),
            bounds=Bounds(0.0, np.concatenate(self.ceilings)),
            constraints=LinearConstraint(matrix, low, high),
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )
        bound_g = -np.inf if found.mip_dual_bound is None else float(found.mip_dual_bound) * self.unit_g
        if found.x is None:
            return Solution(None, None, bound_g, int(found.status))
        start, site = np.zeros(len(self.widths), dtype=int), np.zeros(len(self.widths), dtype=int)
        for task, width in enumerate(self.widths):
            chosen = int(found.x[self.offsets[task] : self.offsets[task + 1]].argmax())
            site[task], start[task] = divmod(chosen, int(width))
        return Solution(start + self.program.first, site, bound_g, int(found.status))

    def begins(self, task: int, site: int, slots: np.ndarray) -> np.ndarray:
        """The columns of x in K slots of the window, (K,)."""
        return self.offsets[task] + site * self.widths[task] + slots - self.program.first[task]

    def begun(self, task: int, site: int, slots: np.ndarray | int) -> np.ndarray:
        """The columns of z in K slots, (K,), none before the window; what comes after it is as at its end."""
        within: np.ndarray = np.minimum(np.atleast_1d(slots), self.program.last[task])
        return self.begins(task, site, within) + self.program.binaries

    def at(self, task: int, site: int) -> np.ndarray:
        """The column that tells whether the task is at the site, (1,)."""
        return self.begun(task, site, int(self.program.last[task]))

    def window(self, task: int) -> np.ndarray:
        return np.arange(self.program.first[task], self.program.last[task] + 1)

    def _constraints(self) -> tuple[csr_array, np.ndarray, np.ndarray]:
        values, rows, columns = (np.concatenate(parts) for parts in zip(*self._entries, strict=True))
        matrix = csr_array(coo_array((values, (rows, columns)), shape=(self._rows, self.columns)))
        low, high = (np.concatenate(parts) for parts in zip(*self._limits, strict=True))
        return matrix, low, high

    def _starts(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Weights, kinds and upper bounds of x and z; a site with too few GPUs for a task is closed to it."""
        program, size = self.program, self.program.binaries
        weights, ceilings = np.zeros(2 * size), np.ones(2 * size)
        for task in range(len(self.widths)):
            for site in range(self.sites):
                columns = self.begins(task, site, self.window(task))
                weights[columns] = program.cost_g[task, site, self.window(task)]
                ceilings[columns] = program.gpus[task] <= program.capacity[site]
        return [weights], [np.repeat([1, 0], size)], [ceilings]

    def _add(self, terms: Sequence[Term], low: float, high: float) -> None:
        """K rows `low <= sum of factor x column <= high`; low is high or minus infinity."""
        count = len(terms[0][1])
        for factor, columns in terms:
            self._entries.append((np.full(count, float(factor)), self._rows + np.arange(count), columns))
        self._limits.append((np.full(count, low), np.full(count, high)))
        self._rows += count

    def _add_steps(self) -> None:
        """z grows by x, and at the end of its window a task has started, at one site."""
        for task in range(len(self.widths)):
            window = self.window(task)
            for site in range(self.sites):
                begins, begun = self.begins(task, site, window), self.begun(task, site, window)
                self._add([(1.0, begun[:1]), (-1.0, begins[:1])], 0.0, 0.0)
                self._add([(1.0, begun[1:]), (-1.0, begun[:-1]), (-1.0, begins[1:])], 0.0, 0.0)
            self._add([(1.0, self.at(task, site)) for site in range(self.sites)], 1.0, 1.0)

    def _add_precedence(self) -> None:
        """In each slot: the second has begun only if the first had begun its own length before."""
        for before, after in self.program.edges:
            needed = self.window(after) - self.program.length[before]
            open_ = needed < self.program.last[before]  # from there on, it has begun in any case
            ends = [(-1.0, self.begun(before, site, needed[open_])) for site in range(self.sites)]
            begins = [(1.0, self.begun(after, site, self.window(after)[open_])) for site in range(self.sites)]
            self._add([*begins, *ends], -np.inf, 0.0)

    def _add_capacity(self) -> None:
        """In each slot: those that have begun and not ended hold no more GPUs than the site has."""
        program = self.program
        for slot in range(program.cost_g.shape[2]):
            ended = slot - program.length
            may_run = (slot >= program.first) & (ended < program.last) & (program.gpus > 0)
            active = [int(task) for task in np.flatnonzero(may_run)]
            for site, capacity in enumerate(program.capacity):
                if program.gpus[active].sum() <= capacity:
                    continue
                terms = [(program.gpus[task], self.begun(task, site, slot)) for task in active]
                before = [task for task in active if ended[task] >= program.first[task]]
                terms += [(-program.gpus[task], self.begun(task, site, int(ended[task]))) for task in before]
                self._add(terms, -np.inf, float(capacity))

    def _add_groups(self) -> None:
        for first, *others in self.program.together:
            for site in range(self.sites):
                for other in others:
                    self._add([(1.0, self.at(first, site)), (-1.0, self.at(other, site))], 0.0, 0.0)

    def _add_move(self, move: Move) -> None:
        """moved[a, b] is at least what flows from a to b for any consumer, out of and into where they are."""
        pairs = [(a, b) for a in range(self.sites) for b in range(self.sites)]
        moved = self._columns([move.emissions_g[pair] for pair in pairs])
        for consumer in move.consumers:
            flow = self._columns([0.0] * len(pairs))
            for site in range(self.sites):
                leaves = [(1.0, flow[[place]]) for place, (a, _) in enumerate(pairs) if a == site]
                enters = [(1.0, flow[[place]]) for place, (_, b) in enumerate(pairs) if b == site]
                self._add([*enters, (-1.0, self.at(consumer, site))], 0.0, 0.0)
                if move.producer is None:
                    self._add(leaves, float(site == 0), float(site == 0))
                else:
                    self._add([*leaves, (-1.0, self.at(move.producer, site))], 0.0, 0.0)
            self._add([(1.0, flow), (-1.0, moved)], -np.inf, 0.0)

    def _columns(self, weights: Sequence[float]) -> np.ndarray:
        """New columns between 0 and 1, (K,)."""
        count = len(weights)
        self.weights.append(np.asarray(weights, dtype=float))
        self.integrality.append(np.zeros(count, dtype=int))
        self.ceilings.append(np.ones(count))
        self.columns += count
        return np.arange(self.columns - count, self.columns)
