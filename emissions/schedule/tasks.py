"""Tasks to schedule: one per stage and item of the measured work, what each waits for, and short ones in bundles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter

import pandas as pd

from emissions.phases import STAGES, phase_of

KEYS = tuple(dict.fromkeys(phase.key for phase in STAGES.values()))  # plan columns, from images to runs
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Task:
    """Work that runs on one site from its start to its end, when all that it needs has ended.

    duration_s, energy_kwh: of IT, measured. gpus: held for the whole duration. needs: names of other tasks.
    output_gb: what it leaves for those that need it. pausable: whether it goes on from a checkpoint.
    checkpoint_kwh, restart_kwh (and _s): of one more checkpoint and one more start; None: not measured.
    members: of a bundle, the tasks in it, which run one after the other in this order.
    """

    name: str
    stage: str
    item: str
    duration_s: float
    energy_kwh: float
    gpus: int = 1
    needs: tuple[str, ...] = ()
    output_gb: float = 0.0
    pausable: bool = False
    checkpoint_kwh: float | None = None
    restart_kwh: float | None = None
    checkpoint_s: float | None = None
    restart_s: float | None = None
    members: tuple[Task, ...] = ()

    @property
    def parts(self) -> tuple[Task, ...]:
        """The tasks of a bundle, or the task itself."""
        return self.members or (self,)


def tasks_of(
    work: pd.DataFrame, plan: pd.DataFrame | None = None, *, scale: float = 1.0, output_gb: float = 0.0
) -> tuple[Task, ...]:
    """The tasks of measured work, in an order in which each comes after what it needs.

    With a plan, what a task needs follows from the plan's keys and `phases.STAGES`: the last stage before it of its
    own key, or of the nearest key that its own builds on; audits need the audits of those keys too, and nothing else
    waits for an audit. Stages of the branch that follows masks wait for each other so, the first for the others, and
    no other waits for them. Without one, tasks run in the order in which they started, each after the one before.

    work: a ledger, or a table with `stage, item, started_at, duration_s, energy_kwh`; what else it has of the
    ledger's columns is used. scale: duration and energy are times this. output_gb: of every task's result.

    Raises ValueError for an empty table, a stage or item that the plan does not know, a row without a duration, or
    a scale that is not above zero.
    """
    if not scale > 0:
        raise ValueError(f"--scale: {scale:g} is not above zero")
    if work.empty:
        raise ValueError("there is no work to schedule: the table has no rows")
    work = work.sort_values("started_at", kind="stable") if plan is None else work
    rows = [_known(row) for row in work.to_dict("records")]
    names = _names(rows)
    needs = _in_a_row(names) if plan is None else _by_plan(names, rows, plan)
    has_gpus = any(row.get("gpu_count", 0) > 0 for row in rows)
    tasks = [_task(name, row, needs[name], scale, output_gb, has_gpus) for name, row in zip(names, rows, strict=True)]
    return ordered(tasks)


def gpus_at_once(work: pd.DataFrame, tasks: Iterable[Task]) -> int:
    """The most GPUs (or places, on a machine without) that the measured work held at one time, at least 1."""
    times = work.assign(name=_names(work.to_dict("records"))).set_index("name")[["started_at", "ended_at"]]
    gpus = pd.Series({task.name: task.gpus for task in tasks})
    events = pd.concat(
        [
            pd.DataFrame({"time": pd.to_datetime(times["ended_at"], utc=True), "change": -gpus, "place": 0}),
            pd.DataFrame({"time": pd.to_datetime(times["started_at"], utc=True), "change": gpus, "place": 1}),
        ]
    )
    held = events.sort_values(["time", "place"])["change"].cumsum()  # who ends makes room for who starts
    return max(1, int(held.max()), int(gpus.max()))


def ordered(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks, each after what it needs, else in the order given.

    Raises ValueError for a name that is there twice, a need that is no task, or tasks that wait for each other.
    """
    by_name = {task.name: task for task in tasks}
    if len(by_name) < len(tasks):
        twice = next(task.name for task in tasks if by_name[task.name] is not task)
        raise ValueError(f"task {twice} is there twice")
    for task in tasks:
        for need in task.needs:
            if need not in by_name:
                raise ValueError(f"task {task.name} needs {need}, which is no task")
        if not (task.duration_s > 0 and task.energy_kwh >= 0 and task.gpus >= 0):
            raise ValueError(
                f"task {task.name}: needs a duration above zero, and energy and GPUs of at least zero; it has "
                f"{task.duration_s:g} s, {task.energy_kwh:g} kWh, {task.gpus} GPUs"
            )
    places = {task.name: place for place, task in enumerate(tasks)}
    sorter = TopologicalSorter({task.name: task.needs for task in tasks})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(f"tasks wait for each other: {' -> '.join(error.args[1])}") from None
    found: list[Task] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=places.__getitem__)
        found += [by_name[name] for name in ready]
        sorter.done(*ready)
    return tuple(found)


def bundled(tasks: Sequence[Task], slot_s: float) -> tuple[Task, ...]:
    """Tasks that are shorter than a slot are put together with others, to run one after the other as a bundle.

    The shortest goes first. It joins a task before or after it, if no third one lies between, or one that waits for
    the same and is waited for by the same: that for which the rest waits least longer, then the shortest. It stays
    alone, and takes a slot, where the rest would wait a slot or more. A bundle holds the most GPUs of its members.
    No energy is lost; what waited for one task waits for the whole bundle.
    """
    groups = {task.name: task for task in ordered(tasks)}
    order = {name: place for place, name in enumerate(groups)}
    while pair := _pair(groups, order, slot_s):
        groups = _merged(groups, *pair)
    return ordered(list(groups.values()))


def _pair(groups: dict[str, Task], order: dict[str, int], slot_s: float) -> tuple[Task, Task] | None:
    """The shortest task below a slot that has a partner, and the partner, in the order in which they run."""
    short = [task for task in groups.values() if task.duration_s < slot_s]
    for task in sorted(short, key=lambda task: (task.duration_s, order[task.name])):
        delays_s = {name: delay_s for name, delay_s in _partners(task, groups) if delay_s < slot_s}
        if delays_s:
            partner = groups[min(delays_s, key=lambda name: (delays_s[name], groups[name].duration_s, order[name]))]
            before = partner.name in task.needs or (
                task.name not in partner.needs and order[partner.name] < order[task.name]
            )
            return (partner, task) if before else (task, partner)
    return None


def _partners(task: Task, groups: dict[str, Task]) -> Iterator[tuple[str, float]]:
    """Tasks that this one can be joined with, and how much longer others may have to wait for the two, in seconds."""
    users = _users(task, groups)
    for other in groups.values():
        if other.name != task.name and set(other.needs) == set(task.needs) and _users(other, groups) == users:
            yield other.name, task.duration_s
    linked = [(groups[need], task) for need in task.needs] + [(task, groups[user]) for user in users]
    for first, second in linked:
        between = {need for need in second.needs if first.name in _all_needs(groups[need], groups)}
        if not between:  # else the two would wait for a third that waits for them
            later = {user for user in _users(first, groups) if second.name not in _all_needs(groups[user], groups)}
            earlier = set(second.needs) - _all_needs(first, groups)
            delay_s = second.duration_s if later - {second.name} else 0.0
            delay_s += first.duration_s if earlier - {first.name} else 0.0
            yield (first if second is task else second).name, delay_s


def _users(task: Task, groups: dict[str, Task]) -> set[str]:
    return {other.name for other in groups.values() if task.name in other.needs}


def _all_needs(task: Task, groups: dict[str, Task]) -> set[str]:
    """The names of all that has to end before the task, directly or not."""
    found: set[str] = set()
    waiting = list(task.needs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += groups[name].needs
    return found


def _merged(groups: dict[str, Task], first: Task, second: Task) -> dict[str, Task]:
    joined = replace(
        first,
        duration_s=first.duration_s + second.duration_s,
        energy_kwh=first.energy_kwh + second.energy_kwh,
        gpus=max(first.gpus, second.gpus),
        needs=tuple(dict.fromkeys(name for name in (*first.needs, *second.needs) if name != first.name)),
        output_gb=first.output_gb + second.output_gb,
        pausable=first.pausable and second.pausable,
        checkpoint_kwh=_most(first.checkpoint_kwh, second.checkpoint_kwh),
        restart_kwh=_most(first.restart_kwh, second.restart_kwh),
        checkpoint_s=_most(first.checkpoint_s, second.checkpoint_s),
        restart_s=_most(first.restart_s, second.restart_s),
        members=first.parts + second.parts,
    )
    kept = {name: task for name, task in groups.items() if name != second.name} | {first.name: joined}
    for name, task in kept.items():
        if second.name in task.needs:
            needs = (first.name if need == second.name else need for need in task.needs)
            kept[name] = replace(task, needs=tuple(dict.fromkeys(needs)))
    return kept


def _most(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


# --- from a table


def _known(row: dict) -> dict:
    """The row without what is missing in it."""
    return {str(key): value for key, value in row.items() if not pd.isna(value)}


def _names(rows: Sequence[dict]) -> list[str]:
    """`stage item` of each row; with a number where a foreign table has several of the same."""
    seen: dict[str, int] = {}
    names = []
    for row in rows:
        name = f"{row['stage']} {row['item']}"
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return names


def _in_a_row(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {name: (names[place - 1],) if place else () for place, name in enumerate(names)}


def _by_plan(names: Sequence[str], rows: Sequence[dict], plan: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    there = {(row["stage"], row["item"]): name for name, row in zip(names, rows, strict=True)}
    needs = {}
    for (stage, item), name in there.items():
        phase, key, control = phase_of(stage)
        if key not in plan.columns or item not in set(plan[key]):
            raise ValueError(f"the work has {stage} {item}, and the plan has no such {key}")
        users = plan[plan[key] == item]
        builds_on = [(upper, str(value)) for upper in KEYS[: KEYS.index(key)] for value in users[upper].unique()]
        earlier = list(STAGES)[: list(STAGES).index(stage)]
        working = [other for other in earlier if STAGES[other].phase != "audit"]
        found: list[str] = []
        for branch in (True, False) if control else (False,):
            stages = [other for other in working if STAGES[other].control == branch]
            found = found or _last(there, stages, [*builds_on, (key, item)])
        if phase == "audit" and not control:
            audits = [other for other in earlier if STAGES[other].phase == "audit"]
            found += [there[other, value] for other in audits for upper, value in builds_on
                      if STAGES[other].key == upper and (other, value) in there]  # fmt: skip
        needs[name] = tuple(dict.fromkeys(found))
    return needs


def _last(there: dict[tuple[str, str], str], stages: Sequence[str], artefacts: Sequence[tuple[str, str]]) -> list[str]:
    """The names of the last stage that made the nearest of these artefacts, (key, item) from far to near."""
    for key in dict.fromkeys(key for key, _ in reversed(artefacts)):
        items = [item for upper, item in artefacts if upper == key]
        made = [
            [there[stage, item] for item in items if (stage, item) in there]
            for stage in stages
            if STAGES[stage].key == key
        ]
        made = [names for names in made if names]
        if made:
            return made[-1]
    return []


def _task(name: str, row: dict, needs: tuple[str, ...], scale: float, output_gb: float, has_gpus: bool) -> Task:
    if not row.get("duration_s", 0) > 0:
        raise ValueError(f"{name}: has no duration, so it cannot be scheduled")
    duration_s, energy_kwh = float(row["duration_s"]), float(row["energy_kwh"])
    gpus = int(row.get("gpu_count", 0)) if has_gpus else int(row.get("devices", 1))
    attempts, checkpoints = int(row.get("attempts", 1)), int(row.get("checkpoints", 0))
    checkpoint_s = float(row["checkpoint_s"]) / checkpoints if checkpoints and "checkpoint_s" in row else None
    return Task(
        name=name,
        stage=str(row["stage"]),
        item=str(row["item"]),
        duration_s=duration_s * scale,
        energy_kwh=energy_kwh * scale,
        gpus=gpus,
        needs=needs,
        output_gb=output_gb,
        pausable=checkpoints > 0,
        # a checkpoint is taken to draw the mean power of its stage
        checkpoint_kwh=None if checkpoint_s is None else energy_kwh / duration_s * checkpoint_s,
        restart_kwh=float(row["startup_kwh"]) / attempts if "startup_kwh" in row else None,
        checkpoint_s=checkpoint_s,
        restart_s=float(row["startup_s"]) / attempts if "startup_s" in row else None,
    )
