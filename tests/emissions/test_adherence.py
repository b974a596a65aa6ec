"""Samples that follow masks: in totals, with figures of their own, and in nobody else's figure per sample."""

import pandas as pd
import pytest

from emissions import compare
from emissions.adherence import adherence
from emissions.adherence_section import adherence_section
from emissions.allocation import allocate
from emissions.dashboard import build_dashboard
from emissions.phases import STAGES
from emissions.places import by_zone
from emissions.pricing import price_ledger
from emissions.schedule.tasks import tasks_of
from emissions.summary import _phases
from emissions.tables import read_table, write_table
from tests.emissions.example_results import write_example
from tests.emissions.studies import IN_WINDOW, items_of, make_plan, make_record
from tests.emissions.test_compare import HUNDRED

CONTROL_KWH = {"train_control": 0.6, "generate_controlled": 0.2, "audit_adherence": 0.02}
SAMPLES = {"generate_samples": 8, "generate_controlled": 5}


@pytest.fixture(scope="module")
def plan():
    """Two models with two samplers each."""
    return make_plan(dims=(2,), resolutions=(32,))


def ledger_of(plan, control):
    """Every stage of a plan, with the three that follow masks or without."""
    items = items_of(plan)
    if control:
        items += [(stage, item) for stage in CONTROL_KWH for item in plan[STAGES[stage].key].unique()]
    records = []
    for stage, item in items:
        energy = {"energy_kwh": CONTROL_KWH[stage]} if stage in CONTROL_KWH else {}
        records.append(make_record(stage, item, samples=SAMPLES.get(stage), parameters=1000, **energy))
    return pd.DataFrame(records)


def shares_of(plan, control):
    return allocate(price_ledger(ledger_of(plan, control), HUNDRED, 1.0), plan)


def score(run, **changes):
    dice = {"dice_own": 0.6, "dice_other": 0.2, "dice_reconstruction": None}
    labels = {"soft-tissue": {"range": [-30, 130], **dice}, "bone": {"range": [130, None], **dice, "dice_own": 0.5}}
    return {
        "run": run,
        "samples": 5,
        "labels": labels,
        **dice,
        "followed": 0.8,
        "masks_heldout": 5,
        "not_computed": "",
    } | changes


def scores_of(plan):
    return {run: score(run) for run in plan["run"]}


EXTRA_KWH = 2 * 0.6 + 4 * (0.2 + 0.02)


def test_totals_have_all_and_figures_per_sample_only_what_is_theirs(plan):
    without, whole = shares_of(plan, False), shares_of(plan, True)
    totals = {"energy_kwh", "training_kwh", "generation_kwh"} | {f"emissions{b}_g" for b in ("", "_low", "_high")}
    for table in (compare.by_size, compare.by_resolution, compare.by_sampler, compare.by_devices):
        before, after = table(without), table(whole)
        assert after["energy_kwh"].sum() == pytest.approx(before["energy_kwh"].sum() + EXTRA_KWH)
        pd.testing.assert_frame_equal(after.drop(columns=totals), before.drop(columns=totals))
    pd.testing.assert_frame_equal(compare.by_model(whole), compare.by_model(without))
    fidelity = [compare.fidelity(shares, {run: {"fid": 1.0} for run in plan["run"]}) for shares in (without, whole)]
    pd.testing.assert_frame_equal(*fidelity)
    zones = [by_zone(shares, 2024, 1.0).set_index("zone").loc["DE"] for shares in (without, whole)]
    assert zones[1]["emissions_g_per_image"] == pytest.approx(zones[0]["emissions_g_per_image"])
    assert zones[1]["energy_kwh"] == pytest.approx(zones[0]["energy_kwh"] + EXTRA_KWH)


def test_by_stage_has_them_with_their_own_samples(plan):
    table = compare.by_stage(shares_of(plan, True)).set_index("stage")
    assert table["share_percent"].sum() == pytest.approx(100)
    controlled, own = table.loc["generate_controlled"], table.loc["generate_samples"]
    assert (controlled["samples"], own["samples"]) == (4 * 5, 4 * 8)
    assert controlled["generation_g_per_sample"] == pytest.approx(IN_WINDOW * 100 * 0.2 / 5)
    assert own["generation_g_per_sample"] == pytest.approx(IN_WINDOW * 100 * 0.1 / 8)
    assert table.loc["train_control", "training_kwh"] == pytest.approx(1.2)


def test_the_summary_compares_training_and_generation_without_them(plan):
    without, whole = (compare.by_stage(shares_of(plan, control)) for control in (False, True))
    assert _phases(whole) == _phases(without)


def test_a_row_per_run_with_what_masks_took(plan):
    table = adherence(shares_of(plan, True), scores_of(plan)).set_index("run")
    assert list(table.index) == list(plan["run"])
    row = table.iloc[0]
    assert row["control_training_kwh"] == pytest.approx(0.6)  # the whole of its model's
    assert row["control_training_g"] == pytest.approx(60)
    assert row["controlled_kwh_per_sample"] == pytest.approx(IN_WINDOW * 0.2 / 5)
    assert row["controlled_g_per_sample"] == pytest.approx(IN_WINDOW * 100 * 0.2 / 5)
    assert row["generation_g_per_sample"] == pytest.approx(IN_WINDOW * 100 * 0.1 / 8)
    assert (row["dice_own"], row["dice_own_bone"], row["dice_own_soft-tissue"]) == (0.6, 0.5, 0.6)
    assert (row["samples"], row["followed"], row["size"]) == (5, 0.8, "nano")


def test_a_run_without_a_score_is_named(plan):
    scores = scores_of(plan)
    missing = plan["run"].iloc[2]
    del scores[missing]
    with pytest.raises(ValueError, match=rf"run {missing} has no adherence\.json"):
        adherence(shares_of(plan, True), scores)


def test_the_section_has_a_row_per_run_and_one_per_label(plan):
    table = adherence(shares_of(plan, True), scores_of(plan))
    runs, labels = adherence_section(table).tables
    assert [row[0] for row in runs.rows] == list(plan["run"])
    heads = [column["name"] for column in runs.columns]
    assert runs.rows[0][heads.index("Dice, own mask")] == "0.60"
    assert runs.rows[0][heads.index("Dice, real image decoded")] == "\N{EN DASH}"
    assert runs.rows[0][heads.index("Fit their own better")] == "80 %"
    assert len(labels.rows) == 2 * len(plan)
    assert labels.rows[1][:3] == [plan["run"].iloc[0], "bone", "0.50"]


def test_stages_of_masks_wait_for_each_other_and_hold_nobody_up(plan):
    needs = {task.name: set(task.needs) for task in tasks_of(ledger_of(plan, True), plan)}
    without = {task.name: set(task.needs) for task in tasks_of(ledger_of(plan, False), plan)}
    assert {name: needs[name] for name in without} == without
    run, model = plan[["run", "model"]].iloc[0]
    assert needs[f"train_control {model}"] == {f"train_diffusion {model}"}
    assert needs[f"generate_controlled {run}"] == {f"train_control {model}"}
    assert needs[f"audit_adherence {run}"] == {f"generate_controlled {run}"}


def test_the_page_shows_them_where_the_study_has_them(tmp_path):
    example = write_example(tmp_path / "results", small=True)
    arguments = (example.tables, example.plan, example.cohorts, example.pictures, example.real_pictures, "title")
    build_dashboard(*arguments, tmp_path / "before.html")
    priced, runs = read_table(example.tables / "priced.csv"), read_table(example.plan)
    audits = priced[priced["stage"] == "audit_fidelity"].assign(stage="audit_adherence")
    whole = pd.concat([priced, audits])
    write_table(whole, example.tables / "priced.csv")
    write_table(adherence(allocate(whole, runs), scores_of(runs)), example.tables / "adherence.csv")
    build_dashboard(*arguments, tmp_path / "after.html", controlled_pictures=example.pictures)
    before, after = ((tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("before", "after"))
    for text in (
        'id="adherence"',
        "Do samples follow their masks?",
        "soft-tissue",
        "masks, and samples to follow them",
    ):
        assert text in after and text not in before
