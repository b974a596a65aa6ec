"""Tasks of a study: what waits for what, what they take, and short ones in bundles."""

from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emissions.schedule.tasks import Task, bundled, gpus_at_once, ordered, tasks_of
from tests.emissions.studies import ENERGY_KWH, items_of, make_plan, make_record

SMALL = {"sizes": ("nano",), "dims": (2,), "resolutions": (32,), "samplers": (("ddim", 50),)}


def ledger_of(plan, **changes):
    return pd.DataFrame([make_record(stage, item, **changes) for stage, item in items_of(plan)])


def needs_of(tasks):
    return {task.name: set(task.needs) for task in tasks}


def test_the_needs_of_a_study_are_those_of_its_rules():
    tasks = tasks_of(ledger_of(make_plan(**SMALL)), make_plan(**SMALL))
    run, model = "unet-nano-ct-2d-32-x1-s0-ddim-50", "unet-nano-ct-2d-32-x1-s0"
    assert needs_of(tasks) == {
        "fetch_images ct": set(),
        "prepare_cohort ct-2d-32": {"fetch_images ct"},
        "extract_reference_features ct-2d-32": {"prepare_cohort ct-2d-32"},
        "train_autoencoder ct-2d-32-kl": {"prepare_cohort ct-2d-32"},
        "encode_latents ct-2d-32-kl": {"train_autoencoder ct-2d-32-kl"},
        f"train_diffusion {model}": {"encode_latents ct-2d-32-kl"},
        f"generate_samples {run}": {f"train_diffusion {model}"},
        f"audit_fidelity {run}": {f"generate_samples {run}", "extract_reference_features ct-2d-32"},
    }


def test_every_row_of_a_larger_study_is_a_task_after_what_it_needs():
    plan = make_plan(families=("unet", "dit"))
    tasks = tasks_of(ledger_of(plan).sample(frac=1, random_state=3), plan)
    assert len(tasks) == len(items_of(plan)) > 60
    assert sum(task.energy_kwh for task in tasks) == pytest.approx(
        sum(ENERGY_KWH[stage] for stage, _ in items_of(plan))
    )
    seen = set()
    for task in tasks:
        assert set(task.needs) <= seen
        seen.add(task.name)
    roots = [task.name for task in tasks if not task.needs]
    assert roots == ["fetch_images ct"]


def test_a_key_without_rows_is_stepped_over():
    plan = make_plan(**SMALL)
    ledger = ledger_of(plan)
    kept = ledger[~ledger["stage"].isin(["train_autoencoder", "encode_latents", "fetch_images"])]
    needs = needs_of(tasks_of(kept, plan))
    assert needs["train_diffusion unet-nano-ct-2d-32-x1-s0"] == {"prepare_cohort ct-2d-32"}
    assert needs["prepare_cohort ct-2d-32"] == set()


def test_without_a_plan_tasks_follow_each_other_as_they_started():
    rows = [
        {"stage": "job", "item": "b", "started_at": "2026-01-02T00:00:00Z", "duration_s": 60.0, "energy_kwh": 1.0},
        {"stage": "job", "item": "a", "started_at": "2026-01-01T00:00:00Z", "duration_s": 60.0, "energy_kwh": 2.0},
        {"stage": "job", "item": "b", "started_at": "2026-01-03T00:00:00Z", "duration_s": 60.0, "energy_kwh": 3.0},
    ]
    tasks = tasks_of(pd.DataFrame(rows))
    assert [task.energy_kwh for task in tasks] == [2.0, 1.0, 3.0]
    assert all(task.needs == (before.name,) for before, task in pairwise(tasks))


def test_energy_of_a_restart_and_of_a_checkpoint_is_what_was_measured():
    plan = make_plan(**SMALL)
    ledger = ledger_of(plan, attempts=2, startup_kwh=0.004, startup_s=6.0, energy_kwh=0.6, duration_s=7200.0)
    ledger["checkpoints"] = [4 if stage == "train_diffusion" else None for stage in ledger["stage"]]
    ledger["checkpoint_s"] = [24.0 if stage == "train_diffusion" else None for stage in ledger["stage"]]
    tasks = {task.stage: task for task in tasks_of(ledger, plan)}
    training, audit = tasks["train_diffusion"], tasks["audit_fidelity"]
    assert (training.restart_kwh, training.restart_s) == (0.002, 3.0)
    assert training.pausable and training.checkpoint_s == 6.0
    assert training.checkpoint_kwh == pytest.approx(0.3 * 6 / 3600)  # 0.6 kWh in 2 h are 300 W
    assert not audit.pausable and audit.checkpoint_kwh is None


def test_scale_makes_the_work_larger_and_not_its_restarts():
    plan = make_plan(**SMALL)
    ledger = ledger_of(plan)
    once, often = tasks_of(ledger, plan), tasks_of(ledger, plan, scale=100)
    for one, more in zip(once, often, strict=True):
        assert more.duration_s == pytest.approx(100 * one.duration_s)
        assert more.energy_kwh == pytest.approx(100 * one.energy_kwh)
        assert more.restart_kwh == one.restart_kwh


@pytest.mark.parametrize(
    ("gpu_count", "devices", "expected"),
    [([None, None], [None, 4], [1, 4]), ([0, 4], [None, 4], [0, 4]), ([0, 0], [1, 2], [1, 2])],
)
def test_gpus_are_those_that_were_held_or_places_on_a_machine_without(gpu_count, devices, expected):
    rows = [make_record("fetch_images", "ct"), make_record("train_diffusion", "unet-nano-ct-2d-32-x1-s0")]
    table = pd.DataFrame(rows).assign(gpu_count=gpu_count, devices=devices)
    assert [task.gpus for task in tasks_of(table)] == expected


def test_gpus_at_once_are_counted_where_the_measured_work_overlaps():
    hours = [(0, 2, 1), (1, 3, 2), (3, 4, 2)]  # start, end, GPUs; the last begins as the second ends
    rows = [
        make_record(
            "job", str(place), started_at=f"2026-01-01T0{start}:00:00Z", ended_at=f"2026-01-01T0{end}:00:00Z",
            duration_s=3600.0 * (end - start), gpu_count=gpus,
        )
        for place, (start, end, gpus) in enumerate(hours)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    assert gpus_at_once(table, tasks_of(table)) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage": "paint"}, "unknown stage 'paint'"),
        ({"item": "other"}, "the plan has no such images"),
        ({"duration_s": 0.0}, "fetch_images ct: has no duration"),
        ({"duration_s": None}, "fetch_images ct: has no duration"),
    ],
)
def test_work_that_does_not_go_with_the_plan_is_refused(change, words):
    table = pd.DataFrame([make_record("fetch_images", "ct") | change])
    with pytest.raises(ValueError, match=words):
        tasks_of(table, make_plan(**SMALL))


def test_no_work_and_a_scale_of_nothing_are_refused():
    table = pd.DataFrame([make_record("fetch_images", "ct")])
    with pytest.raises(ValueError, match="no rows"):
        tasks_of(table.iloc[:0])
    with pytest.raises(ValueError, match="--scale: 0 is not above zero"):
        tasks_of(table, scale=0)


def task(name, hours=1.0, needs=(), gpus=1, kwh=1.0):
    return Task(name, "job", name, 3600 * hours, kwh, gpus, tuple(needs))


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([task("a", needs="b"), task("b", needs="a")], "wait for each other: a -> b -> a"),
        ([task("a", needs="b")], "task a needs b, which is no task"),
        ([task("a"), task("a")], "task a is there twice"),
        ([task("a", hours=0)], "task a: needs a duration above zero"),
        ([task("a", kwh=-1.0)], "task a: needs a duration above zero, and energy"),
    ],
)
def test_tasks_that_cannot_be_ordered_are_refused(tasks, words):
    with pytest.raises(ValueError, match=words):
        ordered(tasks)


def parts_of(tasks):
    return [[part.name for part in group.parts] for group in bundled(tasks, 3600)]


def test_a_chain_of_short_tasks_is_one_task():
    assert parts_of([task("a", 0.1), task("b", 0.2, "a"), task("c", 0.3, "b")]) == [["a", "b", "c"]]


def test_a_short_task_that_several_long_ones_wait_for_stays_alone():
    tasks = [task("a", 0.1), task("b", 2, "a"), task("c", 2, "a"), task("d", 0.2, "bc")]
    assert parts_of(tasks) == [["a"], ["b"], ["c"], ["d"]]


def test_short_siblings_join_and_what_waited_for_one_waits_for_both():
    tasks = [task("a", 2), task("b", 0.3, "a"), task("c", 0.4, "a"), task("d", 2, "bc")]
    groups = bundled(tasks, 3600)
    assert parts_of(tasks) == [["a", "b", "c"], ["d"]]  # a and both, since nothing else waits for a
    assert groups[1].needs == (groups[0].name,)


def test_no_knot_is_tied_when_a_third_task_lies_between():
    tasks = [task("a", 0.5), task("b", 5, "a"), task("c", 5, "ab")]  # a with c would leave b before and after
    assert parts_of(tasks) == [["a", "b"], ["c"]]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bundles_keep_every_task_and_every_order(data):
    count = data.draw(st.integers(1, 12))
    tasks = []
    for place in range(count):
        needs = data.draw(st.sets(st.integers(0, place - 1))) if place else ()
        hours = data.draw(st.sampled_from([0.05, 0.2, 0.6, 1.0, 3.0]))
        tasks.append(task(f"t{place}", hours, [f"t{need}" for need in needs], data.draw(st.integers(0, 4))))
    groups = bundled(tasks, 3600)
    parts = [part for group in groups for part in group.parts]
    assert sorted(part.name for part in parts) == sorted(one.name for one in tasks)
    assert sum(group.energy_kwh for group in groups) == pytest.approx(sum(one.energy_kwh for one in tasks))
    group_of = {part.name: place for place, group in enumerate(groups) for part in group.parts}
    order = {part.name: place for place, part in enumerate(parts)}
    for group in groups:
        assert group.duration_s == pytest.approx(sum(part.duration_s for part in group.parts))
        assert group.gpus == max(part.gpus for part in group.parts)
    for one in tasks:
        for need in one.needs:
            inside = group_of[need] == group_of[one.name]
            assert order[need] < order[one.name]
            assert inside or groups[group_of[need]].name in groups[group_of[one.name]].needs


def test_tasks_without_links_fill_slots():
    groups = bundled([task(f"t{place}", 0.3) for place in range(100)], 3600)
    assert all(group.duration_s >= 3600 for group in groups[:-1]) and len(groups) <= 30
