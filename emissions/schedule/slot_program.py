"""The dynamic program of a job that may be paused: numbers only. What it plans, and what pauses cost: `pauses`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from emissions.schedule.slots import Slots

if TYPE_CHECKING:
    from emissions.schedule.pauses import PauseCost

TINY_S = 1e-6
PAUSE_COUNTS = 1e-11  # of the job's emissions: so little is added for a pause that of equal plans the calmer one wins
MOST_STATES = 60_000_000  # of 4 bytes each
J_PER_KWH = 3.6e6

# How work came to go on in an interval: it did before, or it starts or resumes there, or it does so for its part only.
# A state's code is the edge (or interval, _AFTER_PART) at which the work before it was paused, times 8, and one of:
GOES_ON, STARTS, RESUMES, RESUMES_AFTER_PART, STARTS_PART, RESUMES_PART = range(6)
KINDS = 8

Piece = tuple[float, float]  # of work: begin_s, end_s
Ends = tuple[bool, bool]  # whether the job works all through the first interval, and through the last
Ending = tuple[str, int]  # "whole" or "part", and the interval in which the job ends
Choice = tuple[np.ndarray, np.ndarray]  # the least cost by slots done, (n + 1,), and its code or where a pause began


@dataclass
class _Front:
    """Where a plan can be after the intervals so far: least costs by slots done.

    works: working to the end of the last interval; parted: the same, with its part done.
    paused, paused_parted: by edge, the last one now; paused_after_part: by interval, the last one the last. Each has
    the best pause that began by then, and the first of each is of no pause at all.
    """

    works: Choice
    parted: Choice
    paused: deque[Choice]
    paused_parted: deque[Choice]
    paused_after_part: deque[Choice]


class SlotProgram:
    """Least emissions of a job over the K intervals between earliest start, edges of slots and deadline.

    The job works n whole slots, and a part of one more. Of the first and last intervals, which may be shorter than a
    slot, `lead` and `trail` say whether the job works all through them; if not, the part may still stand in them.
    """

    def __init__(
        self, slots: Slots, edges_s: np.ndarray, duration_s: float, energy_kwh: float, pause: PauseCost, ends: Ends
    ) -> None:
        lengths_s = np.diff(edges_s)
        lead, trail = ends
        rest_s = duration_s - lead * lengths_s[0] - trail * lengths_s[-1]
        self.whole = max(0, int((rest_s + TINY_S) // slots.step_s))
        part_s = rest_s - self.whole * slots.step_s
        self.part_s = part_s if part_s > 10 * TINY_S else 0.0
        self.slots, self.edges_s, self.pause = slots, edges_s, pause
        self.is_whole = lengths_s > slots.step_s - TINY_S
        self.forced = np.zeros(len(lengths_s), dtype=bool)
        self.forced[0] |= lead
        self.forced[-1] |= trail
        self.lead, self.trail = lead, trail
        self.fits = (self.part_s > 0) & (self.part_s <= lengths_s + TINY_S) & ~self.forced
        self.moves = (self.is_whole & ~self.forced).astype(int)  # slots done by working through an interval
        self.possible = rest_s > -TINY_S and self.whole <= self.is_whole.sum()
        self.kwh_per_s = energy_kwh / duration_s
        self.small = PAUSE_COUNTS * energy_kwh * float(slots.values_g_per_kwh.max())
        self.codes: list[dict[str, np.ndarray]] = []  # of each interval

    @property
    def size(self) -> int:
        """Codes that are remembered."""
        return len(self.moves) * (self.whole + 1) * (3 if self.part_s else 1)

    def solve(self) -> Iterator[tuple[float, float, Ending]]:
        """Cost, end and last state of the best plan for each interval in which the job can end."""
        self._reckon()
        never = np.full(self.whole + 1, np.inf), np.zeros(self.whole + 1, dtype=np.int32)
        kept = int(self.pause.shortest_s / self.slots.step_s) + 4  # no resumption looks back further
        front = _Front(never, never, *(deque([never], maxlen=kept) for _ in range(3)))
        last = len(self.moves) - 1
        for at in range(len(self.moves)):
            here = self._here(front, at)  # at the start of the interval, ready to work
            works = advance(here, self.moves[at], self.work_g[at]) if self.moves[at] or self.forced[at] else never
            codes = {"whole": works[1]}
            if self.part_s:
                parted = self._parted(front, at, never)
                part = (here[0] + self.first_part_g[at], here[1]) if self.fits[at] else never
                codes |= {"parted": parted[1], "part": part[1]}
                front.parted = parted
                front.paused_parted.append(began(front.paused_parted[-1], parted[0] + self.pausing_g[at + 1], at + 1))
                front.paused_after_part.append(
                    began(front.paused_after_part[-1], part[0] + self.pausing_after_part_g[at], at)
                )
                if not self.trail and np.isfinite(part[0][-1]):
                    yield float(part[0][-1]), self._end_s("part", at), ("part", at)
            front.works = works
            front.paused.append(began(front.paused[-1], works[0] + self.pausing_g[at + 1], at + 1))
            self.codes.append(codes)
            name, done = ("parted", front.parted) if self.part_s else ("whole", works)
            if np.isfinite(done[0][-1]) and (not self.trail or at == last):
                yield float(done[0][-1]), self._end_s(name, at), (name, at)

    def _here(self, front: _Front, at: int) -> Choice:
        here = goes_on(front.works)
        if at == 0 or not self.lead:
            here = better(here, starts(STARTS, self.whole + 1))
        return better(here, resumes(front.paused, at - self.edge_before[at], self.resuming_g[at], RESUMES))

    def _parted(self, front: _Front, at: int, never: Choice) -> Choice:
        """Works to the end of this interval, and its part is done: before, or at the end of this interval."""
        parted = never
        if self.moves[at] or self.forced[at]:
            cost, back = self.resuming_g[at], at - self.edge_before[at]
            parted = better(goes_on(front.parted), resumes(front.paused_parted, back, cost, RESUMES))
            back = at - 1 - self.part_before[at]
            parted = better(parted, resumes(front.paused_after_part, back, cost, RESUMES_AFTER_PART))
            parted = advance(parted, self.moves[at], self.work_g[at])
        if self.fits[at]:
            cost = self.last_part_g[at]
            if at == 0 or not self.lead:
                parted = better(parted, starts(STARTS_PART, self.whole + 1, cost))
            back = at - self.edge_before_part[at]
            parted = better(parted, resumes(front.paused, back, cost + self.resuming_part_g[at], RESUMES_PART))
        return parted

    def _reckon(self) -> None:
        """What working, pausing and resuming cost at each edge or in each interval, and when one may resume."""
        begin_s, end_s = self.edges_s[:-1], self.edges_s[1:]
        part_end_s, part_begin_s = begin_s + self.part_s, end_s - self.part_s
        worked = self.slots.integral
        self.work_g = self.kwh_per_s * worked(begin_s, end_s)
        self.first_part_g = self.kwh_per_s * worked(begin_s, part_end_s)
        self.last_part_g = self.kwh_per_s * worked(part_begin_s, end_s)
        self.pausing_g, self.pausing_after_part_g = self._pausing_g(self.edges_s), self._pausing_g(part_end_s)
        self.resuming_g, self.resuming_part_g = self._resuming_g(begin_s), self._resuming_g(part_begin_s)
        # The last edge, or interval with the part, at which the job may have paused to resume at these times
        since_s = self.pause.shortest_s - TINY_S
        self.edge_before = np.searchsorted(self.edges_s, begin_s - since_s, side="right") - 1
        self.edge_before_part = np.searchsorted(self.edges_s, part_begin_s - since_s, side="right") - 1
        self.part_before = np.searchsorted(part_end_s, begin_s - since_s, side="right") - 1

    def _pausing_g(self, at_s: np.ndarray) -> np.ndarray:
        """Of pausing at these times, less idling from the start of the slots until then."""
        saved_s = at_s + self.pause.checkpoint_s
        return self.pause.checkpoint_kwh * means(self.slots, at_s, saved_s) - self._idle_g(saved_s) + self.small

    def _resuming_g(self, at_s: np.ndarray) -> np.ndarray:
        """Of resuming at these times, with idling until then: with `_pausing_g`, what the pause costs."""
        restarts_s = at_s - self.pause.restart_s
        return self.pause.restart_kwh * means(self.slots, restarts_s, at_s) + self._idle_g(restarts_s)

    def _idle_g(self, at_s: np.ndarray) -> np.ndarray:
        return self.pause.idle_w / J_PER_KWH * self.slots.integral(np.zeros(1), at_s)

    def pieces(self, ending: Ending) -> list[Piece]:
        """The pieces of work that lead to an ending, in order."""
        (name, at), done = ending, self.whole
        pieces: list[Piece] = []
        end_s = self._end_s(name, at)
        while True:
            before, kind = divmod(int(self.codes[at][name][done]), KINDS)
            at_end = kind in (STARTS_PART, RESUMES_PART)
            begin_s = float(self.edges_s[at + 1] - self.part_s if at_end else self.edges_s[at])
            if at_end or name == "part":
                name = "whole"  # before its part was done
            else:
                done -= self.moves[at]
            if kind == GOES_ON:
                at -= 1
                continue
            pieces.append((begin_s, end_s))
            if kind in (STARTS, STARTS_PART):
                return pieces[::-1]
            name, at = ("part", before) if kind == RESUMES_AFTER_PART else (name, before - 1)
            end_s = self._end_s(name, at)

    def _end_s(self, name: str, at: int) -> float:
        return float(self.edges_s[at] + self.part_s if name == "part" else self.edges_s[at + 1])


def programs(slots: Slots, room_s: Piece, duration_s: float, energy_kwh: float, pause: PauseCost) -> list[SlotProgram]:
    """One program for each choice of working through the first and the last interval where they are no whole slots.

    Raises ValueError where one of them has too many states to remember.
    """
    edges_s = cut(slots, room_s)
    short = np.diff(edges_s) < slots.step_s - TINY_S
    leads = (False, True) if short[0] else (False,)
    trails = (False, True) if short[-1] and len(short) > 1 else (False,)
    found = [SlotProgram(slots, edges_s, duration_s, energy_kwh, pause, ends) for ends in product(leads, trails)]
    found = [program for program in found if program.possible]
    size = max(program.size for program in found)
    if size > MOST_STATES:
        raise ValueError(
            f"a job of {duration_s / slots.step_s:.0f} slots in {len(edges_s) - 1} slots has {size:.2g} states, "
            f"and memory should hold no more than {MOST_STATES:.2g}: choose an earlier deadline or longer slots"
        )
    return found


def cut(slots: Slots, room_s: Piece) -> np.ndarray:
    """Earliest start, edges of slots, deadline: (K + 1,), in seconds since the start of the slots."""
    first_s, last_s = room_s
    inside_s = slots.edges_s[(slots.edges_s > first_s + TINY_S) & (slots.edges_s < last_s - TINY_S)]
    return np.concatenate([[first_s], inside_s, [last_s]])


def means(slots: Slots, begin_s: np.ndarray, end_s: np.ndarray) -> np.ndarray:
    """As `Slots.mean_g_per_kwh`, for N spans of the same length, (N,)."""
    length_s = float(end_s[0] - begin_s[0])
    if length_s > 0:
        return slots.integral(begin_s, end_s) / length_s
    places = np.floor((begin_s + TINY_S) / slots.step_s).astype(int)
    return slots.values_g_per_kwh[np.clip(places, 0, len(slots.values_g_per_kwh) - 1)]


def goes_on(works: Choice) -> Choice:
    """The job worked in the interval before, too."""
    return works[0], np.full(len(works[0]), GOES_ON, dtype=np.int32)


def starts(kind: int, states: int, cost: float = 0.0) -> Choice:
    """The job starts: nothing has been done."""
    costs = np.full(states, np.inf)
    costs[0] = cost
    return costs, np.full(states, kind, dtype=np.int32)


def resumes(paused: deque[Choice], back: int, cost: float, kind: int) -> Choice:
    """The job resumes after having paused no later than `back` entries ago."""
    if back >= len(paused):
        back = len(paused) - 1  # the first entry is of no pause at all
    costs, began_at = paused[-1 - back]
    return costs + cost, began_at * KINDS + kind


def better(one: Choice, other: Choice) -> Choice:
    """The cheaper of two for each number of slots done; of equal ones the first."""
    change = other[0] < one[0]
    return np.where(change, other[0], one[0]), np.where(change, other[1], one[1])


def began(paused: Choice, cost: np.ndarray, at: int) -> Choice:
    """The best pause to have begun, with one more that could."""
    return better(paused, (cost, np.full(len(cost), at, dtype=np.int32)))


def advance(choice: Choice, moves: int, cost: float) -> Choice:
    """Work through an interval; `moves`: whether that is one slot more done."""
    costs, codes = choice
    if not moves:
        return costs + cost, codes
    costs = np.concatenate([[np.inf], costs[:-1] + cost])
    return costs, np.concatenate([codes[:1], codes[:-1]])
