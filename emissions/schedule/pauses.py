"""The best slots of a job that may be paused at checkpoints, what a pause costs, and the limit that acting needs.

A pause begins with the checkpoint and ends with the restart: both take their time from the pause, none from the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import pandas as pd

from emissions.pricing import check_pue
from emissions.schedule.slot_program import J_PER_KWH, TINY_S, Ending, Piece, SlotProgram, cut, programs
from emissions.schedule.slots import Slots, room_s


@dataclass(frozen=True)
class PauseCost:
    """What a pause costs: energy of IT of a checkpoint and of a restart, their time, and power that is held meanwhile.

    idle_w: over the pause without checkpoint and restart; 0 where the process ends. Raises ValueError below 0.
    """

    checkpoint_kwh: float = 0.0
    restart_kwh: float = 0.0
    checkpoint_s: float = 0.0
    restart_s: float = 0.0
    idle_w: float = 0.0

    def __post_init__(self) -> None:
        for name, value in zip(self.__dataclass_fields__, astuple(self), strict=True):
            if not 0 <= value < np.inf:
                raise ValueError(f"{name} is {value}; it must be a number of at least 0")

    @property
    def shortest_s(self) -> float:
        """A pause takes no less."""
        return self.checkpoint_s + self.restart_s

    def overhead_kwh(self, pieces_s: Sequence[Piece]) -> float:
        """Energy of IT of all pauses between these pieces of work."""
        idle_s = [after[0] - before[1] - self.shortest_s for before, after in pairwise(pieces_s)]
        return len(idle_s) * (self.checkpoint_kwh + self.restart_kwh) + sum(idle_s) * self.idle_w / J_PER_KWH


FREE = PauseCost()


@dataclass(frozen=True)
class PausedPlan:
    """When a job works. slots: (start, end) of each piece of work. pauses: between them, one less than pieces.

    overhead_kwh: energy of IT of all pauses; energy_kwh: with it. now_g: had the job started at once, without pauses.
    """

    slots: tuple[tuple[pd.Timestamp, pd.Timestamp], ...]
    emissions_g: float
    energy_kwh: float
    overhead_kwh: float
    now_g: float

    @property
    def start(self) -> pd.Timestamp:
        return self.slots[0][0]

    @property
    def end(self) -> pd.Timestamp:
        return self.slots[-1][1]

    @property
    def pauses(self) -> int:
        return len(self.slots) - 1


def best_slots(
    slots: Slots,
    duration_s: float,
    energy_kwh: float,
    earliest: datetime,
    deadline: datetime,
    pause: PauseCost = FREE,
    pue: float = 1.0,
) -> PausedPlan:
    """When a job of even power works between `earliest` and the deadline so that it emits least, pauses included.

    Exact over all plans whose pieces begin and end on edges (of slots, or the earliest start, or the deadline), but
    for one part of a slot, which the duration leaves over: it stands at the start or the end of its slot. Where pauses
    are free there is no better plan at all (it has the cheapest slots), and where they are too dear it is
    `best_start`. Of plans that emit the same: the one with fewer pauses, then the one that ends first.

    A dynamic program over slots x work done (in slots) x working or paused x part done or not. The checkpoint is
    priced over the first `checkpoint_s` of the pause and the restart over the last `restart_s`; one that takes no time,
    at the intensity of the moment when the job pauses or resumes.

    Raises ValueError as `room_s`, for negative energy, a PUE below 1, or more slots x work than memory should hold.
    """
    if not 0 <= energy_kwh < np.inf:
        raise ValueError(f"energy_kwh is {energy_kwh}; it must be a number of at least 0")
    check_pue(pue)
    room = room_s(slots, duration_s, earliest, deadline)
    found: list[tuple[float, float, SlotProgram, Ending]] = []
    for program in programs(slots, room, duration_s, energy_kwh, pause):
        found += [(cost, end_s, program, ending) for cost, end_s, ending in program.solve()]
    lowest = min(cost for cost, *_ in found)
    equal = [plan for plan in found if plan[0] <= lowest + plan[2].small / 2]
    *_, program, ending = min(equal, key=lambda plan: plan[1])
    return plan_of(slots, program.pieces(ending), energy_kwh, room[0], pause, pue)


def plan_of(
    slots: Slots,
    pieces_s: Sequence[Piece],
    energy_kwh: float,
    earliest_s: float,
    pause: PauseCost = FREE,
    pue: float = 1.0,
) -> PausedPlan:
    """The plan of these pieces of work, priced exactly; all seconds are since the start of the slots."""
    work_s = sum(end - begin for begin, end in pieces_s)
    overhead_kwh = pause.overhead_kwh(pieces_s)
    return PausedPlan(
        slots=tuple((slots.time(begin), slots.time(end)) for begin, end in pieces_s),
        emissions_g=pue * _emissions_g(slots, pieces_s, energy_kwh / work_s, pause),
        energy_kwh=energy_kwh + overhead_kwh,
        overhead_kwh=overhead_kwh,
        now_g=pue * energy_kwh * slots.mean_g_per_kwh(earliest_s, earliest_s + work_s),
    )


def priced_on(
    slots: Slots, plan: PausedPlan, energy_kwh: float, pause: PauseCost = FREE, pue: float = 1.0
) -> PausedPlan:
    """The same pieces of work on another signal: what became of a plan that was made on a forecast.

    now_g is of a job that starts with the plan's first piece. Raises ValueError where the slots do not cover the plan.
    """
    pieces_s = [slots.seconds_of(start, end) for start, end in plan.slots]
    return plan_of(slots, pieces_s, energy_kwh, pieces_s[0][0], pause, pue)


def _emissions_g(slots: Slots, pieces_s: Sequence[Piece], kwh_per_s: float, pause: PauseCost) -> float:
    """Before PUE."""
    worked, idle = 0.0, 0.0
    for begin_s, end_s in pieces_s:
        worked += kwh_per_s * float(slots.integral(begin_s, end_s))
    for (_, pauses_s), (resumes_s, _) in pairwise(pieces_s):
        saved_s, restarts_s = pauses_s + pause.checkpoint_s, resumes_s - pause.restart_s
        idle += pause.checkpoint_kwh * slots.mean_g_per_kwh(pauses_s, saved_s)
        idle += pause.idle_w / J_PER_KWH * float(slots.integral(saved_s, restarts_s))
        idle += pause.restart_kwh * slots.mean_g_per_kwh(restarts_s, resumes_s)
    return worked + idle


def threshold_g_per_kwh(slots: Slots, duration_s: float, earliest: datetime, deadline: datetime) -> float:
    """The limit that acting needs: the lowest intensity L such that the slots at L or below, between `earliest` and the
    deadline, are long enough for the job. For a job of k slots it is the k-th cheapest of them.

    A job that works whenever the intensity is at or below it ends before the deadline: in the cheapest slots, if it
    takes whole slots and only one of them is at L exactly. Longer jobs raise it, later deadlines lower it.

    Raises ValueError as `room_s`.
    """
    edges_s = cut(slots, room_s(slots, duration_s, earliest, deadline))
    values = _values(slots, edges_s)
    order = np.argsort(values, kind="stable")
    enough = np.cumsum(np.diff(edges_s)[order]) >= duration_s - TINY_S
    return float(values[order][int(np.argmax(enough))])


def slots_below(
    slots: Slots,
    limit_g_per_kwh: float,
    duration_s: float,
    earliest: datetime,
    deadline: datetime,
    pause: PauseCost = FREE,
) -> list[Piece]:
    """The pieces of work, in seconds since the start of the slots, of a job that knows only a limit and its deadline.

    It looks at the intensity when a slot begins: works at or below the limit, pauses above it, and works whatever the
    intensity is once it would be late otherwise. No later slot is looked at. Raises ValueError as `room_s`.
    """
    room = room_s(slots, duration_s, earliest, deadline)
    edges_s = cut(slots, room)
    pieces: list[Piece] = []
    begin_s: float | None = None  # of the piece that goes on
    left_s = duration_s
    for (at_s, next_s), value in zip(pairwise(edges_s), _values(slots, edges_s), strict=True):
        low = value <= limit_g_per_kwh
        in_time = at_s + pause.shortest_s + left_s <= room[1] + TINY_S
        if begin_s is not None and begin_s < at_s and not low and in_time:
            pieces.append((begin_s, float(at_s)))
            begin_s = None
        if begin_s is None:
            ready_s = at_s if not pieces else max(at_s, pieces[-1][1] + pause.checkpoint_s) + pause.restart_s
            latest_s = room[1] - left_s
            if low or latest_s < next_s - TINY_S:
                begin_s = float(min(ready_s, latest_s)) if low else float(latest_s)
        if begin_s is not None:
            worked_s = max(0.0, next_s - max(begin_s, at_s))
            if worked_s >= left_s - TINY_S:
                return [*pieces, (begin_s, max(begin_s, float(at_s)) + left_s)]
            left_s -= worked_s
    raise AssertionError("a job that starts at its latest time ends by the deadline")


def _values(slots: Slots, edges_s: np.ndarray) -> np.ndarray:
    """Intensities between edges as of `cut`, (K,)."""
    places = np.floor((edges_s[:-1] + edges_s[1:]) / 2 / slots.step_s).astype(int)
    return slots.values_g_per_kwh[places]
