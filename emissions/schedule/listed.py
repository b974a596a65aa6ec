"""Plans without a solver, on the same numbers as `program`: first come first served, the best time for that, and
small steps from a plan to a better one.
"""

from __future__ import annotations

import numpy as np

from emissions.schedule.program import Program

EQUAL = 1e-9  # relative: costs are differences of long sums


def list_schedule(program: Program, site: int) -> np.ndarray | None:
    """Start slots, (N,), of all tasks at one site, each as soon as what it needs has ended and GPUs are free.

    Of those that could start, the one with the longest chain of tasks after it goes first (Graham 1969). The plan
    heeds neither the deadline nor the intensity; None when the site has too few GPUs for a task.
    """
    capacity = program.capacity[site]
    if (program.gpus > capacity).any():
        return None
    needs = _needs(program)
    tail = program.length.copy()  # slots from a task's start to the end of all that follows from it
    for before, after in reversed(program.edges):
        tail[before] = max(tail[before], program.length[before] + tail[after])
    start = np.full(len(program.length), -1)
    held = np.zeros(int(program.length.sum()), dtype=int)  # GPUs, by slot; at worst all run one after the other
    waiting = set(range(len(start)))
    while waiting:
        ready = [task for task in waiting if all(start[need] >= 0 for need in needs[task])]
        soonest = {task: _soonest(program, task, start, needs[task], held, capacity) for task in ready}
        task = min(ready, key=lambda task: (soonest[task], -tail[task], task))
        start[task] = soonest[task]
        held[start[task] : start[task] + program.length[task]] += program.gpus[task]
        waiting.remove(task)
    return start


def best_block(program: Program, site: int) -> np.ndarray | None:
    """The list schedule at one site, begun as a whole in the slot that emits least: start slots, (N,), else None
    when it has no place before the deadline.
    """
    start = list_schedule(program, site)
    if start is None:
        return None
    slots = program.cost_g.shape[2]
    begins = np.arange(slots - int((start + program.length).max()) + 1)
    if len(begins) == 0:
        return None
    cost_g = sum(program.cost_g[task, site, start[task] + begins] for task in range(len(start)))
    return start + _cheapest(np.asarray(cost_g))


def near(program: Program, wanted: np.ndarray, site: np.ndarray) -> np.ndarray | None:
    """Start slots, (N,), close after those wanted, (N,), in their order and with GPUs free; None where one has none.

    wanted: may be fractions of slots, as a relaxed program has them; of tasks that wait for each other in order.
    """
    start = np.full(len(program.length), -1)
    held = np.zeros((len(program.capacity), program.cost_g.shape[2]), dtype=int)
    needs = _needs(program)
    for task in np.lexsort([np.arange(len(start)), wanted]):
        ready = max([program.first[task], *(start[need] + program.length[need] for need in needs[task])])
        place = held[site[task]]
        slots = np.arange(ready, program.last[task] + 1)
        slots = slots[_free(place, program.length[task], program.capacity[site[task]] - program.gpus[task])[slots]]
        if len(slots) == 0:
            return None
        after = slots[slots >= np.floor(wanted[task] + 1e-6)]
        start[task] = after[0] if len(after) else slots[-1]
        place[start[task] : start[task] + program.length[task]] += program.gpus[task]
    return start


def one_by_one(program: Program, order: np.ndarray, site: np.ndarray) -> np.ndarray | None:
    """The best start slots, (N,), of tasks that run one at a time in this order, each at its site; None when there is
    no time for that.

    By dynamic programming over tasks and slots: the least of the first k tasks with the k-th started by slot t.
    """
    slots = program.cost_g.shape[2]
    least_g = np.zeros(slots + 1)  # of all tasks before, ended by the start of slot t
    choices = []
    for task in order:
        start_g = np.full(slots + 1, np.inf)
        window = np.arange(program.first[task], program.last[task] + 1)
        start_g[window] = least_g[window] + program.cost_g[task, site[task], window]
        begun_g = np.minimum.accumulate(start_g)
        lowers = np.append(True, start_g[1:] < begun_g[:-1])
        choices.append(np.maximum.accumulate(np.where(lowers, np.arange(slots + 1), 0)))
        length = program.length[task]
        least_g = np.full(slots + 1, np.inf)
        least_g[length:] = begun_g[: slots + 1 - length]
    if not np.isfinite(least_g[-1]):
        return None
    start, end = np.zeros(len(order), dtype=int), slots
    for task, choice in zip(order[::-1], choices[::-1], strict=True):
        start[task] = end = choice[end - program.length[task]]
    return start


def improved(program: Program, start: np.ndarray, site: np.ndarray) -> np.ndarray:
    """A plan, moved task by task to the best slot that the others leave, until none moves; sites stay.

    Of equal slots the earliest, so that nothing waits without a gain.
    """
    start = start.copy()
    needs, users = _needs(program), _users(program)
    held = np.zeros((len(program.capacity), program.cost_g.shape[2]), dtype=int)
    for task, length in enumerate(program.length):
        held[site[task], start[task] : start[task] + length] += program.gpus[task]
    moved = True
    while moved:
        moved = False
        for task, length in enumerate(program.length):
            place = held[site[task]]
            place[start[task] : start[task] + length] -= program.gpus[task]
            first = max([program.first[task], *(start[need] + program.length[need] for need in needs[task])])
            last = min([program.last[task], *(start[user] - length for user in users[task])])
            slots = np.arange(first, last + 1)
            slots = slots[_free(place, length, program.capacity[site[task]] - program.gpus[task])[slots]]
            cost_g = program.cost_g[task, site[task]]
            best = slots[_cheapest(cost_g[slots])]
            if best < start[task] or cost_g[best] < cost_g[start[task]] * (1 - EQUAL):
                start[task], moved = best, True
            place[start[task] : start[task] + length] += program.gpus[task]
    return start


def plan_cost_g(program: Program, start: np.ndarray, site: np.ndarray) -> float:
    """What a plan emits, with what moves between sites."""
    return float(program.cost_g[np.arange(len(start)), site, start].sum()) + moves_cost_g(program, site)


def moves_cost_g(program: Program, site: np.ndarray) -> float:
    """What moving data emits, given where each task is: once to each site that needs it."""
    total_g = 0.0
    for move in program.moves:
        origin = 0 if move.producer is None else int(site[move.producer])
        total_g += sum(move.emissions_g[origin, goal] for goal in {int(site[task]) for task in move.consumers})
    return float(total_g)


def _cheapest(cost_g: np.ndarray) -> int:
    """The place of the least, and of equals the first."""
    return int(np.argmax(cost_g <= cost_g.min() * (1 + EQUAL)))


def _soonest(program: Program, task: int, start: np.ndarray, needs: list[int], held: np.ndarray, capacity: int) -> int:
    first = max((start[need] + program.length[need] for need in needs), default=0)
    free = _free(held, program.length[task], capacity - program.gpus[task])
    found = np.flatnonzero(free[first:])
    return int(first + found[0]) if len(found) else len(held)


def _free(held: np.ndarray, length: int, most: int) -> np.ndarray:
    """For each slot that a task of this length could start in, whether at most `most` GPUs are held all through."""
    too_many = np.concatenate([[0], np.cumsum(held > most)])
    return too_many[length:] == too_many[:-length]


def _needs(program: Program) -> list[list[int]]:
    needs: list[list[int]] = [[] for _ in program.length]
    for before, after in program.edges:
        needs[after].append(before)
    return needs


def _users(program: Program) -> list[list[int]]:
    users: list[list[int]] = [[] for _ in program.length]
    for before, after in program.edges:
        users[before].append(after)
    return users
