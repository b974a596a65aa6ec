"""The whole DAG: the solver against brute force, what every plan has to hold, and what cannot be done."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emissions.grid.intensity import typical_intensity_of
from emissions.schedule import listed
from emissions.schedule.dag import best_single_start, schedule_dag, solve_problem, start_now
from emissions.schedule.policies import START_COLUMNS, compare, starts_table
from emissions.schedule.problem import DagSite, Problem
from emissions.schedule.slots import Slots
from emissions.schedule.tasks import Task, tasks_of
from tests.emissions.studies import items_of, make_plan, make_record

START = pd.Timestamp("2026-11-25T08:00Z")
HOUR_S = 3600


def hours(count):
    return pd.Timedelta(hours=count)


def site(values, gpus=1, pue=1.0, name="DE", step_s=HOUR_S, kind="average lifecycle", start=START):
    values = np.asarray(values, dtype=float)
    return DagSite(name, Slots(name, start, step_s, values, kind, "made up", "0"), gpus, pue)


def task(name, duration_h=1.0, needs=(), gpus=1, energy_kwh=1.0, **more):
    return Task(name, "job", name, HOUR_S * duration_h, energy_kwh, gpus, tuple(needs), **more)


def emitted_g(one, where, start_h):
    """A task's emissions, minute by minute."""
    minutes = np.arange(0, one.duration_s, 60) / HOUR_S + start_h
    slots = (minutes * HOUR_S / where.slots.step_s + 1e-9).astype(int)
    return one.energy_kwh * where.pue * where.slots.values_g_per_kwh[slots].mean()


def holds(plan, tasks, sites, deadline):
    """Precedence, capacity, deadline, and every task once: from the plan's times alone."""
    placed = {one.task.name: one for one in plan.placed}
    assert sorted(placed) == sorted(one.name for one in tasks)
    for one in tasks:
        here = placed[one.name]
        assert here.start >= START and here.end <= deadline
        assert (here.end - here.start).total_seconds() == pytest.approx(one.duration_s, abs=1e-3)
        assert all(placed[need].end <= here.start + pd.Timedelta("1ms") for need in one.needs)
    for place in sites:
        here = [one for one in plan.placed if one.site.site == place.site]
        for moment in [one.start for one in here]:
            running = [one for one in here if one.start <= moment < one.end - pd.Timedelta("1ms")]
            assert sum(one.task.gpus for one in running) <= place.gpus
    total_g = sum(one.emissions_g for one in plan.placed) + plan.transfer_g
    assert plan.emissions_g == pytest.approx(total_g)


def brute_force_g(tasks, sites, slots, home_gb=0.0, kwh_per_gb=0.0):
    """The least of all plans in whole hours; None when there is none."""
    place = {one.name: number for number, one in enumerate(tasks)}
    length = [int(np.ceil(one.duration_s / HOUR_S)) for one in tasks]
    means = [where.pue * where.slots.values_g_per_kwh[:slots].mean() for where in sites]
    best_g = None
    for starts in itertools.product(*[range(slots - held + 1) for held in length]):
        if any(
            starts[i] < starts[place[need]] + length[place[need]] for i, one in enumerate(tasks) for need in one.needs
        ):
            continue
        for where in itertools.product(range(len(sites)), repeat=len(tasks)):
            held = np.zeros((len(sites), slots), dtype=int)
            for i, one in enumerate(tasks):
                held[where[i], starts[i] : starts[i] + length[i]] += one.gpus
            if (held.max(axis=1) > [one.gpus for one in sites]).any():
                continue
            total_g = sum(emitted_g(one, sites[where[i]], starts[i]) for i, one in enumerate(tasks))
            moves = {(0, where[i], -1, home_gb) for i, one in enumerate(tasks) if not one.needs}
            for i, one in enumerate(tasks):
                moves |= {(where[place[need]], where[i], need, tasks[place[need]].output_gb) for need in one.needs}
            total_g += sum(gb * kwh_per_gb * (means[a] + means[b]) / 2 for a, b, _, gb in moves if a != b)
            best_g = total_g if best_g is None else min(best_g, total_g)
    return best_g


@pytest.mark.parametrize("seed", range(40))
def test_the_solver_finds_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    count, slots = (int(rng.integers(2, 5)), 6) if seed % 2 else (3, 8)
    tasks = [
        task(
            f"t{place}", float(rng.choice([1.0, 1.5, 2.0])),
            [f"t{need}" for need in range(place) if rng.random() < 0.4],
            int(rng.integers(0, 3)), float(rng.uniform(0.1, 5)), output_gb=float(rng.uniform(0, 2)),
        )
        for place in range(count)
    ]  # fmt: skip
    sites = [
        site(rng.uniform(20, 800, slots), int(rng.integers(2, 4)), float(rng.uniform(1, 1.5)), name)
        for name in ("DE", "SE")[: 1 + seed % 2]
    ]
    moving = {"home_gb": float(rng.uniform(0, 3)), "kwh_per_gb": 0.1}
    expected_g = brute_force_g(tasks, sites, slots, **moving)
    deadline = START + hours(slots)
    if expected_g is None:
        with pytest.raises(ValueError, match="deadline"):
            schedule_dag(tasks, sites, START, deadline, step_s=HOUR_S, **moving)
        return
    plan = schedule_dag(tasks, sites, START, deadline, step_s=HOUR_S, gap=0.0, **moving)
    assert plan.emissions_g == pytest.approx(expected_g, rel=1e-6)
    assert plan.status == "optimal" and 0 <= plan.gap <= 1e-6
    assert plan.bound_g == pytest.approx(expected_g, rel=1e-6)
    holds(plan, tasks, sites, deadline)


CHAIN = [task("a", 1), task("b", 2, "a", energy_kwh=3.0), task("c", 1, "a"), task("d", 1, "bc")]


def test_a_falling_signal_puts_all_last():
    plan = schedule_dag(CHAIN, [site(np.linspace(900, 100, 24), 2)], START, START + hours(24), step_s=HOUR_S)
    ends = {one.task.name: one.end - START for one in plan.placed}
    assert ends == {"a": hours(21), "b": hours(23), "c": hours(23), "d": hours(24)}


def test_a_rising_signal_and_a_constant_one_change_nothing():
    for values in (np.linspace(100, 900, 24), np.full(24, 300.0)):
        problem = Problem.of(CHAIN, [site(values)], START, START + hours(24))
        now, plan = start_now(problem), solve_problem(problem)
        assert plan.starts == now.starts and plan.emissions_g == now.emissions_g
        assert plan.gap <= 1e-4


def test_work_waits_only_where_it_gains():
    """Two tasks without links: each hour costs the same but one, and only one of them fits in it."""
    values = np.full(12, 300.0)
    values[5] = 50
    plan = schedule_dag([task("a"), task("b")], [site(values)], START, START + hours(12), step_s=HOUR_S)
    assert sorted(plan.starts.values()) == [START, START + hours(5)]


def test_the_whole_dag_is_never_above_one_start_and_neither_below_each_task_alone():
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = rng.uniform(100, 600, 30)
        problem = Problem.of(CHAIN, [site(values)], START, START + hours(30), step_s=HOUR_S)
        now, single, plan = start_now(problem), best_single_start(problem), solve_problem(problem)
        alone_g = sum(
            min(emitted_g(one, problem.sites[0], start) for start in range(30 - int(one.duration_s / HOUR_S) + 1))
            for one in CHAIN
        )
        assert alone_g <= plan.bound_g * (1 + 1e-9)
        assert plan.bound_g <= plan.emissions_g <= single.emissions_g <= now.emissions_g


def test_a_clean_site_far_away_wins_until_the_data_are_heavy():
    sites = [site(np.full(12, 400.0)), site(np.full(12, 40.0), name="SE")]

    def plan_with(gb):
        tasks = [task("a", 2, energy_kwh=2.0, output_gb=gb), task("b", 2, "a", energy_kwh=2.0)]
        return schedule_dag(tasks, sites, START, START + hours(12), home_gb=gb, kwh_per_gb=0.05)

    where = {gb: set(plan_with(gb).site_of.values()) for gb in (0, 10, 1000)}
    assert where == {0: {"SE"}, 10: {"SE"}, 1000: {"DE"}}
    plan = plan_with(10)
    assert plan.transfer_g == pytest.approx(10 * 0.05 * 220)  # at the mean of both sites
    assert plan.emissions_g == pytest.approx(4 * 40 + 110)


def test_a_result_moves_once_to_a_site_however_many_need_it_there():
    """Only home has the GPUs for the first task; its result serves three at the other site."""
    sites = [site(np.full(8, 400.0), gpus=4), site(np.full(8, 40.0), gpus=1, name="SE")]
    tasks = [task("a", gpus=4, output_gb=10.0), *(task(name, needs="a", energy_kwh=1.0) for name in "bcd")]
    plan = schedule_dag(tasks, sites, START, START + hours(8), kwh_per_gb=0.1, gap=0.0)
    assert plan.site_of == {"a": "DE", "b": "SE", "c": "SE", "d": "SE"}
    assert plan.transfer_g == pytest.approx(10 * 0.1 * 220)
    assert plan.emissions_g == pytest.approx(400 + 3 * 40 + 220)


def test_all_of_an_item_can_be_kept_at_one_site():
    sites = [site(np.linspace(100, 900, 8)), site(np.linspace(900, 100, 8), name="SE")]
    tasks = [replace(task("a"), item="x"), replace(task("b", needs="a"), item="x")]
    free = schedule_dag(tasks, sites, START, START + hours(8))
    kept = schedule_dag(tasks, sites, START, START + hours(8), one_site_per_item=True)
    assert free.site_of["a"] != free.site_of["b"]
    assert kept.site_of["a"] == kept.site_of["b"]
    assert kept.emissions_g > free.emissions_g
    holds(kept, tasks, sites, START + hours(8))


def test_half_hour_signals_are_planned_by_the_half_hour():
    values = np.full(48, 400.0)
    values[[9, 10, 11]] = 100  # 12:30 to 14:00
    tasks = [task("a", 0.5, energy_kwh=0.5), task("b", 1, "a", energy_kwh=1.0)]
    problem = Problem.of(tasks, [site(values, step_s=1800)], START, START + hours(24), step_s=1800)
    plan = solve_problem(problem, gap=0.0)
    assert plan.starts == {"a": START + hours(4.5), "b": START + hours(5)}
    assert plan.emissions_g == pytest.approx(150)


def test_slots_are_shorter_than_the_signals_for_short_work_and_energy_is_kept():
    tasks = [task(f"t{place}", 0.05, [f"t{place - 1}"] if place else []) for place in range(20)]
    problem = Problem.of(tasks, [site(np.linspace(900, 100, 24))], START, START + hours(24))
    assert problem.step_s == 300
    plan = solve_problem(problem)
    holds(plan, tasks, problem.sites, START + hours(24))
    assert sum(one.task.energy_kwh for one in plan.placed) == 20
    assert problem.excess_s == pytest.approx(sum(problem.program.length) * 300 - 3600)


def test_each_task_of_a_bundle_is_priced_at_its_own_time():
    """Waiting takes no energy; what follows it does, and is in the clean half hour only from the second hour on."""
    tasks = [task("waits", 0.5, energy_kwh=0.0), task("works", 0.5, ["waits"], energy_kwh=1.0)]
    where = site([100, 500, 500, 100, 500, 500], step_s=1800)
    plan = schedule_dag(tasks, [where], START, START + hours(3), step_s=HOUR_S)
    assert plan.starts == {"waits": START + hours(1), "works": START + hours(1.5)}
    assert plan.emissions_g == pytest.approx(100)


def test_starting_now_takes_the_longest_chain_first():
    tasks = [task("a"), task("b"), task("c"), task("d", needs="c"), task("e", needs="d")]
    problem = Problem.of(tasks, [site(np.full(6, 300.0), 2)], START, START + hours(6), step_s=HOUR_S)
    now = start_now(problem)
    assert now.ends == START + hours(3)
    assert now.starts["c"] == START


def test_a_plan_that_begins_off_the_hour_is_priced_by_the_minute():
    values = [100, 300, 100, 100]
    plan = schedule_dag([task("a")], [site(values)], START + hours(0.5), START + hours(1.5), step_s=300)
    assert plan.emissions_g == pytest.approx(200)


def test_a_large_program_gets_longer_slots_and_says_so():
    tasks = [task(f"t{place}", 2) for place in range(4)]
    problem = Problem.of(tasks, [site(np.full(96, 300.0))], START, START + hours(96), max_binaries=100)
    assert problem.step_s > HOUR_S and problem.program.binaries <= 100
    assert "instead of" in problem.notes[0]


SIGNAL = np.full(24, 300.0)


@pytest.mark.parametrize(
    ("tasks", "sites", "deadline_h", "words"),
    [
        (
            CHAIN,
            [site(SIGNAL)],
            3,
            "the deadline leaves 3 h, and the longest chain of tasks takes 4 h: 60 min too little",
        ),
        (
            [task("a", gpus=3)],
            [site(SIGNAL, 2)],
            3,
            "a needs 3 GPUs or places at once, and no site has more than 2 [(]DE[)]",
        ),
        (
            [task("a", 2), task("b", 2)],
            [site(SIGNAL)],
            3,
            "no plan ends before the deadline.*DE by 2026-11-25 12:00 UTC",
        ),
        ([task("a")], [site(SIGNAL)], 0, "is not after the earliest start"),
        ([task("a")], [site(SIGNAL)], 25, "zone DE: made up covers .* not all from"),
        ([task("a")], [], 3, "no site"),
        ([task("a")], [site(SIGNAL, pue=0.9)], 3, "pue"),
        ([task("a")], [site(SIGNAL), site(SIGNAL, name="SE", kind="marginal direct")], 3, "of several kinds"),
        ([task("a", needs="b")], [site(SIGNAL)], 3, "a needs b, which is no task"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tasks, sites, deadline_h, words):
    with pytest.raises(ValueError, match=words) as refused:
        schedule_dag(tasks, sites, START, START + hours(deadline_h), step_s=HOUR_S)
    assert "\n" not in str(refused.value)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        schedule_dag(CHAIN, [site(SIGNAL)], START.tz_localize(None), START + hours(10))


def numbers(rng, slots=10):
    """Three or four tasks on two sites, as numbers alone."""
    count = int(rng.integers(3, 5))
    tasks = [
        task(f"t{place}", int(rng.integers(1, 3)), [f"t{need}" for need in range(place) if rng.random() < 0.4])
        for place in range(count)
    ]
    sites = [site(rng.uniform(20, 800, slots), int(rng.integers(1, 3)), name=name) for name in ("DE", "SE")]
    return Problem.of(tasks, sites, START, START + hours(slots), step_s=HOUR_S).program


@pytest.mark.parametrize("seed", range(20))
def test_one_by_one_is_the_best_of_all_plans_in_that_order(seed):
    rng = np.random.default_rng(seed)
    program = numbers(rng)
    order, where = np.arange(len(program.length)), rng.integers(0, 2, len(program.length))
    slots, best_g = program.cost_g.shape[2], np.inf
    for starts in itertools.product(*[range(slots - length + 1) for length in program.length]):
        if all(here + length <= later for here, later, length in zip(starts, starts[1:], program.length, strict=False)):
            best_g = min(best_g, sum(program.cost_g[place, where[place], start] for place, start in enumerate(starts)))
    start = listed.one_by_one(program, order, where)
    assert (start[:-1] + program.length[:-1] <= start[1:]).all()
    assert listed.plan_cost_g(program, start, where) == pytest.approx(best_g)
    assert (
        listed.one_by_one(replace(program, cost_g=program.cost_g[:, :, :3], last=program.last - 7), order, where)
        is None
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_near_the_wanted_one_and_an_improved_one_hold(seed):
    rng = np.random.default_rng(seed)
    program = numbers(rng)
    where = rng.integers(0, 2, len(program.length))
    wanted = np.sort(rng.uniform(program.first, program.last))
    start = listed.near(program, wanted, where)
    if start is None:
        return
    better = listed.improved(program, start, where)
    assert listed.plan_cost_g(program, better, where) <= listed.plan_cost_g(program, start, where)
    for plan in (start, better):
        assert (plan >= program.first).all() and (plan <= program.last).all()
        assert all(plan[before] + program.length[before] <= plan[after] for before, after in program.edges)
        held = np.zeros((2, program.cost_g.shape[2]), dtype=int)
        for place, length in enumerate(program.length):
            held[where[place], plan[place] : plan[place] + length] += program.gpus[place]
        assert (held <= program.capacity[:, None]).all()


# --- beside its alternatives


def study(scale=100):
    plan = make_plan()
    return tasks_of(pd.DataFrame([make_record(stage, item) for stage, item in items_of(plan)]), plan, scale=scale)


def typical(zone, span_h, gpus=1):
    return DagSite(zone, Slots.of(typical_intensity_of(zone), START, START + hours(span_h)), gpus)


def test_a_study_is_planned_in_time_with_its_gap():
    tasks, sites = study(scale=60), [typical("DE", 96, gpus=2)]
    assert len(tasks) == 57
    found = compare(tasks, sites, START, START + hours(96), step_s=HOUR_S, time_limit_s=4)
    by_name = {policy.policy: policy for policy in found.policies}
    dag, single, now = by_name["whole DAG"], by_name["best single start"], by_name["now"]
    assert dag.bound_g <= dag.emissions_g <= single.emissions_g <= now.emissions_g
    assert dag.gap == pytest.approx(1 - dag.bound_g / dag.emissions_g) and dag.gap < 0.1
    assert dag.seconds < 10
    assert dag.saving_percent == pytest.approx(100 * (1 - dag.emissions_g / now.emissions_g))
    for policy in found.policies:
        holds(policy.plan, tasks, sites, START + hours(96))


def test_little_time_for_the_solver_gives_the_best_plan_so_far_and_its_gap():
    tasks, sites = study(), [typical("DE", 96, gpus=2)]
    found = schedule_dag(tasks, sites, START, START + hours(96), step_s=HOUR_S, time_limit_s=0.01, gap=0.0)
    assert found.status == "time limit" and 0 < found.gap < 0.2
    holds(found, tasks, sites, START + hours(96))


def test_a_forecast_is_judged_by_what_became_of_it():
    """The forecast promises a clean hour that does not come; perfect foresight knows of another."""
    promised, real = np.full(12, 400.0), np.full(12, 400.0)
    promised[4], real[8] = 100, 200
    found = compare([task("a")], [site(promised)], START, START + hours(12), actual=[site(real)], step_s=HOUR_S)
    rows = {policy.policy: policy for policy in found.policies}
    assert list(rows) == ["now", "best single start", "whole DAG", "perfect foresight"]
    assert (rows["whole DAG"].emissions_g, rows["whole DAG"].actual_g) == (100, 400)
    assert (rows["perfect foresight"].actual_g, rows["perfect foresight"].saving_percent) == (200, 50)
    assert rows["whole DAG"].saving_percent == 0


def test_starting_now_that_misses_the_deadline_is_told():
    """List scheduling takes the long chain first; only another order ends in time."""
    tasks = [task("a", 3, gpus=1), task("b", 2, gpus=2), task("c", 2, gpus=1), task("d", 1, "c")]
    sites = [site(SIGNAL, 2)]
    found = compare(tasks, sites, START, START + hours(5), step_s=HOUR_S)
    now = [policy for policy in found.policies if policy.policy == "now"]
    assert bool(now) != any("would end after the deadline" in note for note in found.notes)
    holds(found.policies[-1].plan, tasks, sites, START + hours(5))


def test_the_proposed_starts_have_a_row_per_policy_and_task():
    sites = [site(np.linspace(900, 100, 24)), site(np.linspace(500, 50, 24), name="SE")]
    found = compare(CHAIN, sites, START, START + hours(24), step_s=HOUR_S)
    table = starts_table(found)
    assert tuple(table.columns) == START_COLUMNS
    assert table.groupby("policy").size().to_dict() == dict.fromkeys(
        ["now", "best single start", "best site", "whole DAG"], len(CHAIN)
    )
    now = table[table["policy"] == "now"]
    assert (now["saved_g"] == 0).all() and now["planned_start"].iloc[0] == "2026-11-25T08:00:00Z"
    sums = table.groupby("policy")["emissions_g"].sum()
    for policy in found.policies:
        assert sums[policy.policy] + policy.plan.transfer_g == pytest.approx(policy.emissions_g)
    solved = table[table["policy"] == "whole DAG"]
    assert solved["solver_gap"].notna().all() and now["solver_gap"].isna().all()
    assert solved["saved_g"].sum() == pytest.approx(now["emissions_g"].sum() - solved["emissions_g"].sum())
