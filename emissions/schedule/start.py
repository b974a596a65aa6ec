"""The best start of a job that runs in one piece, and of very many jobs in many zones at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from emissions.pricing import check_pue
from emissions.schedule.slots import Slots, room_s

EQUAL = 1e-10  # relative: integrals are differences of long sums, so two that are the same may differ by less
BLOCK = 1 << 20  # numbers that are looked at together
GRAIN = 2.0**-20  # gCO2e/kWh, see `best_starts`
FEW_STARTS = (
    20_000  # (jobs x starts) of a group; with fewer, looking at each start takes less time than leaving some out
)


@dataclass(frozen=True)
class Start:
    """The best start of a job. now_g: had it started at the earliest time; worst_g: at the worst time."""

    start: pd.Timestamp
    end: pd.Timestamp
    emissions_g: float
    now_g: float
    worst_g: float
    mean_g_per_kwh: float

    @property
    def saved_g(self) -> float:
        """Below starting now."""
        return self.now_g - self.emissions_g


def best_start(
    slots: Slots,
    duration_s: float,
    energy_kwh: float,
    earliest: datetime,
    deadline: datetime,
    pue: float = 1.0,
    shape: Sequence[float] | np.ndarray | None = None,
) -> Start:
    """The start between `earliest` and the deadline from which a job emits least; of equal ones the earliest.

    Exact over all times, not only slots: emissions are piecewise linear in the start, so the least is where a piece
    of the job begins or ends on the edge of a slot, or at either end of the time allowed.

    energy_kwh: of IT, before PUE. shape: energy of K pieces of equal length along the job, (K,), in any unit, such as a
    measured power trace; None for even power.

    Raises ValueError as `room_s`, and for negative energy, a PUE below 1 or a shape without energy.
    """
    _check_energy(energy_kwh)
    first_s, deadline_s = room_s(slots, duration_s, earliest, deadline)
    last_s = max(first_s, deadline_s - duration_s)
    shares = _shares(shape)
    starts_s = _candidates(slots, duration_s, first_s, last_s, len(shares))
    means = _job_means(slots, starts_s, duration_s, shares)  # gCO2e/kWh
    place = int(np.argmax(means <= means.min() * (1 + EQUAL)))
    scale = energy_kwh * check_pue(pue)
    start = max(slots.time(starts_s[place]), pd.Timestamp(earliest).tz_convert("UTC"))
    return Start(
        start=start,
        end=start + pd.Timedelta(seconds=duration_s),
        emissions_g=scale * float(means[place]),
        now_g=scale * float(means[0]),
        worst_g=scale * float(means.max()),
        mean_g_per_kwh=float(means[place]),
    )


def emissions_from_g(
    slots: Slots,
    start: datetime,
    duration_s: float,
    energy_kwh: float,
    pue: float = 1.0,
    shape: Sequence[float] | np.ndarray | None = None,
) -> float:
    """What a job emits that starts then: a plan made on one signal, priced on another. Raises as `best_start`."""
    _check_energy(energy_kwh)
    end = pd.Timestamp(start) + pd.Timedelta(seconds=duration_s)
    begin_s, _ = room_s(slots, duration_s, start, end)
    means = _job_means(slots, np.array([begin_s]), duration_s, _shares(shape))
    return energy_kwh * check_pue(pue) * float(means[0])


def _check_energy(energy_kwh: float) -> None:
    if not 0 <= energy_kwh < np.inf:
        raise ValueError(f"energy_kwh is {energy_kwh}; it must be a number of at least 0")


def _shares(shape: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """The part of the energy in each piece, (K,)."""
    shares = np.ones(1) if shape is None else np.asarray(shape, dtype=float)
    if shares.ndim != 1 or not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise ValueError("the shape of a job is a row of energies of at least 0, and one above 0")
    return shares / shares.sum()


def _candidates(slots: Slots, duration_s: float, first_s: float, last_s: float, pieces: int) -> np.ndarray:
    """Starts at which a piece of the job begins or ends on the edge of a slot, and the first and last, sorted."""
    offsets_s = np.arange(pieces + 1) * (duration_s / pieces)
    on_edge_s = (slots.edges_s[:, None] - offsets_s[None, :]).ravel()
    inside_s = on_edge_s[(on_edge_s > first_s) & (on_edge_s < last_s)]
    return np.unique(np.concatenate([[first_s], inside_s, [last_s]]))


def _job_means(slots: Slots, starts_s: np.ndarray, duration_s: float, shares: np.ndarray) -> np.ndarray:
    """Mean intensity by energy, gCO2e/kWh, of a job from each of N starts, (N,)."""
    edges_s = np.arange(len(shares) + 1) * (duration_s / len(shares))
    weights = shares * (len(shares) / duration_s)
    rows = max(1, BLOCK // len(edges_s))
    means = []
    for begin in range(0, len(starts_s), rows):
        at_s = starts_s[begin : begin + rows, None] + edges_s[None, :]
        means.append(np.diff(np.interp(at_s, slots.edges_s, slots.sums), axis=1) @ weights)
    return np.concatenate(means)


# --- many jobs, many zones


@dataclass(frozen=True)
class Starts:
    """Best starts of N jobs in each of Z zones.

    start_slots: (N, Z), from the start of slot 0 on, with a fraction where the job's end is on an edge.
    mean_g_per_kwh: (N, Z), over the job; times its energy and PUE, what it emits.
    """

    start_slots: np.ndarray
    mean_g_per_kwh: np.ndarray

    @property
    def zone(self) -> np.ndarray:
        """The zone in which each job emits least, (N,), as its row of the values; of equal ones the first."""
        return self.mean_g_per_kwh.argmin(axis=1)

    def emissions_g(self, energy_kwh: np.ndarray, pue: float | np.ndarray = 1.0) -> np.ndarray:
        """What each job emits in each zone, (N, Z). energy_kwh: (N,); pue: one, or of each zone, (Z,)."""
        return np.asarray(energy_kwh)[:, None] * pue * self.mean_g_per_kwh


def best_starts(
    values_g_per_kwh: np.ndarray,
    duration_slots: np.ndarray,
    earliest: np.ndarray | int = 0,
    deadline: np.ndarray | int | None = None,
) -> Starts:
    """`best_start` of N jobs of even power in each of Z zones, exact over all times, of equal ones the earliest.

    values_g_per_kwh: (Z, T), a row a zone, without gaps. duration_slots: (N,), above 0, whole or not.
    earliest, deadline: one for all, or (N,): edges of slots, 0 to T; None: T.

    A job of n whole slots and a fraction f starts or ends best on an edge, so it costs the integral over n slots and f
    times a slot beside them: one of 2 x T lines in f. Jobs that share n, earliest and deadline share the few lines
    that are lowest for some f, found once per zone. So jobs with the same room are quick, however long it is; those
    with a room of their own take time in proportion to it.

    Values are rounded to 2**-20 g/kWh (a millionth of a gram), which makes sums of them exact, and equal ones equal.

    Raises ValueError naming the first job (0 is the first) that has no room or starts off an edge.
    """
    values = np.round(np.asarray(values_g_per_kwh, dtype=float) / GRAIN) * GRAIN
    if values.ndim != 2 or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("intensities of many zones are a table of zones x slots, numbers of at least 0 without gaps")
    zones, slots = values.shape
    duration = np.asarray(duration_slots, dtype=float)
    earliest = _edges("earliest", earliest, len(duration), slots)
    deadline = _edges("deadline", slots if deadline is None else deadline, len(duration), slots)
    _check_rooms(duration, earliest, deadline)
    whole = np.floor(duration).astype(int)
    sums = np.concatenate([np.zeros((zones, 1)), np.cumsum(values, axis=1)], axis=1)  # (Z, T + 1)
    found = Starts(np.empty((len(duration), zones)), np.empty((len(duration), zones)))
    order = np.lexsort((deadline, earliest, whole))
    keys = np.stack([whole, earliest, deadline])[:, order]
    cuts = np.flatnonzero((np.diff(keys, axis=1) != 0).any(axis=0)) + 1
    for jobs in np.split(order, cuts):
        if len(jobs) == 0:
            continue
        n, first, last = int(whole[jobs[0]]), int(earliest[jobs[0]]), int(deadline[jobs[0]])
        room = values[:, first:last], sums[:, first : last + 1]
        rest = duration[jobs] - n
        if len(jobs) > 1 and len(jobs) * (last - first) > FEW_STARTS:
            _by_lines(found, jobs, *room, n, rest)
        else:
            _one_by_one(found, jobs, *room, n, rest)
        found.start_slots[jobs] += first
        found.mean_g_per_kwh[jobs] /= duration[jobs, None]
    return found


def _edges(name: str, edges: np.ndarray | int, jobs: int, slots: int) -> np.ndarray:
    given = np.asarray(edges)
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{name} is {given.dtype}; it must be the number of an edge, a whole number")
    wrong = np.flatnonzero((given < 0) | (given > slots))
    if len(wrong):
        raise ValueError(f"job {wrong[0]}: {name} is {given.ravel()[wrong[0]]}; the edges are 0 to {slots}")
    return np.broadcast_to(given, jobs)


def _check_rooms(duration: np.ndarray, earliest: np.ndarray, deadline: np.ndarray) -> None:
    wrong = np.flatnonzero(~((duration > 0) & (duration <= deadline - earliest)))
    if len(wrong):
        job = wrong[0]
        raise ValueError(
            f"job {job}: its duration of {duration[job]:g} slots does not fit between {earliest[job]} and "
            f"{deadline[job]}"
        )


def _one_by_one(
    found: Starts, jobs: np.ndarray, values: np.ndarray, sums: np.ndarray, n: int, rest: np.ndarray
) -> None:
    """Fill in jobs of n whole slots by looking at every start on an edge, and every end on one."""
    slots = values.shape[1]
    over_n = sums[:, n:] - sums[:, : slots + 1 - n]  # (Z, starts)
    rows = np.arange(len(values))
    for job, part in zip(jobs, rest, strict=True):
        if part == 0:
            place = over_n.argmin(axis=1)
            found.start_slots[job], found.mean_g_per_kwh[job] = place, over_n[rows, place]
            continue
        begins = over_n[:, :-1] + part * values[:, n:]  # starts on edge i
        ends = over_n[:, 1:] + part * values[:, : slots - n]  # ends on edge i + n + 1
        begin, end = begins.argmin(axis=1), ends.argmin(axis=1)
        begin_cost, end_cost = begins[rows, begin], ends[rows, end]
        end_start = end + (1 - part)
        at_end = (end_cost < begin_cost) | ((end_cost == begin_cost) & (end_start < begin))
        found.start_slots[job] = np.where(at_end, end_start, begin)
        found.mean_g_per_kwh[job] = np.where(at_end, end_cost, begin_cost)


def _by_lines(found: Starts, jobs: np.ndarray, values: np.ndarray, sums: np.ndarray, n: int, rest: np.ndarray) -> None:
    """Fill in jobs of n whole slots from the lines (integral over n slots) + f x (slot beside) that can be lowest."""
    slots = values.shape[1]
    starts = slots - n  # of a job of n slots and a part
    partly, wholly = np.flatnonzero(rest > 0), np.flatnonzero(rest == 0)
    for zone in range(len(values)):
        over_n = sums[zone, n:] - sums[zone, : slots + 1 - n]
        if len(wholly):
            place = int(over_n.argmin())
            found.start_slots[jobs[wholly], zone], found.mean_g_per_kwh[jobs[wholly], zone] = place, over_n[place]
        if len(partly) == 0:
            continue
        # A job starts on edge i, and has a part of slot i + n, or ends on edge i + n + 1, and has a part of slot i.
        cost = np.concatenate([over_n[:-1], over_n[1:]])
        slope = np.concatenate([values[zone, n:], values[zone, :starts]])
        lines = _lowest(cost, slope, starts)
        at_end = lines >= starts
        edge = lines - at_end * starts
        part = rest[partly]
        costs = cost[lines] + part[:, None] * slope[lines]  # (jobs, lines)
        at = edge + at_end * (1 - part[:, None])
        best = costs.min(axis=1, keepdims=True)
        found.mean_g_per_kwh[jobs[partly], zone] = best[:, 0]
        found.start_slots[jobs[partly], zone] = np.where(costs == best, at, np.inf).min(axis=1)


def _lowest(cost: np.ndarray, slope: np.ndarray, starts: int) -> np.ndarray:
    """Lines cost + f x slope of which one is lowest, for each f between 0 and 1; of equal ones those that start first.

    The second half of the lines are of jobs that end on an edge. A line that is not below the lowest one at 0, nor
    below the lowest one at 1, is below both somewhere only if it is so where these two meet.
    """
    at_one = cost + slope
    first_cost, last_cost = cost.min(), at_one.min()
    first_slope, last_slope = slope[cost == first_cost].min(), slope[at_one == last_cost].max()
    turn = first_slope - last_slope
    meet = 0.5 if turn <= 0 else (last_cost - last_slope - first_cost) / turn
    level = first_cost + meet * first_slope
    few = np.flatnonzero(cost + meet * slope <= level * (1 + EQUAL))
    begins = few % starts + (few >= starts) * 0.5  # one that ends on an edge starts within the slot, wherever
    order = np.lexsort((begins, slope[few], cost[few]))
    before = np.minimum.accumulate(slope[few][order])
    keep = np.ones(len(order), dtype=bool)
    keep[1:] = slope[few][order][1:] < before[:-1]  # with growing cost, ever smaller slopes
    return few[order[keep]]
