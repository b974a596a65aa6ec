"""The ledger: every joule once, and every attempt kept."""

import json
import logging

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emissions.ledger import collect_attempts, collect_ledger, read_ledger, write_ledger
from emissions.records import LEDGER_COLUMNS, OUTCOMES, append_journal, read_journal, write_record
from emissions.retries import earlier_attempts, merge
from tests.emissions.studies import ENERGY_KWH, collect, items_of, make_plan, make_record, write_study
from tests.emissions.test_retries import left_behind

SMALL = {"dims": (2,), "resolutions": (32,), "sizes": ("nano",), "samplers": (("ddim", 50),)}


@pytest.fixture
def plan():
    return make_plan(**SMALL)


@pytest.fixture
def study(tmp_path, plan):
    return write_study(tmp_path, plan)


def attempt(number, outcome, **changes):
    return make_record(
        "train_diffusion",
        "unet-nano-ct-2d-32-x1-s0",
        attempt_id=f"attempt-{number}",
        outcome=outcome,
        started_at=f"2026-01-15T{number:02d}:00:00.000Z",
        ended_at=f"2026-01-15T{number:02d}:01:00.000Z",
        **changes,
    )


def ledger_with(tmp_path, plan, attempts, record):
    """The row of train_diffusion, after these attempts in the journal and this record on disk."""
    path = tmp_path / f"results/models/{record['item']}/emissions/train_diffusion.json"
    journal = tmp_path / "journal.jsonl"
    journal.unlink(missing_ok=True)
    for one in attempts:
        append_journal(journal, one)
    # as `stage` writes it when the attempt ends
    write_record(path, merge(earlier_attempts(read_journal(journal), record), record))
    row = collect_ledger(plan, [path]).iloc[0]
    counted = collect_attempts(plan, [path], journal)
    assert counted["energy_kwh"].sum() == pytest.approx(row["energy_kwh"])
    assert len(counted) == row["attempts"]
    return row


def test_a_row_per_stage_and_item_in_the_studys_order(tmp_path):
    plan = make_plan()
    ledger, attempts = collect(tmp_path, plan, write_study(tmp_path, plan)[::-1])
    assert tuple(ledger.columns) == LEDGER_COLUMNS
    assert list(zip(ledger["stage"], ledger["item"], strict=True)) == items_of(plan)
    assert ledger["energy_kwh"].sum() == pytest.approx(sum(ENERGY_KWH[stage] for stage, _ in items_of(plan)))
    assert len(attempts) == len(ledger)


def test_the_same_logs_twice_give_the_same_bytes(tmp_path, study):
    files = []
    for name in ("one", "two"):
        ledger, attempts = tmp_path / f"{name}.csv", tmp_path / f"{name}-attempts.csv"
        journal = tmp_path / "emissions/journal.jsonl"
        write_ledger(tmp_path / "plan.csv", study, journal, ledger, attempts)
        files.append((ledger.read_bytes(), attempts.read_bytes()))
    assert files[0] == files[1]


def test_reading_back_gives_the_same_table(tmp_path, plan, study):
    ledger, _ = collect(tmp_path, plan, study)
    write_ledger(
        tmp_path / "plan.csv",
        study,
        tmp_path / "emissions/journal.jsonl",
        tmp_path / "l.csv",
        tmp_path / "a.csv",
    )
    back = read_ledger(tmp_path / "l.csv")
    empty = ("warnings", "earlier_attempts")  # "" comes back as missing
    columns = [column for column in LEDGER_COLUMNS if column not in empty]
    pd.testing.assert_frame_equal(back[columns], ledger[columns])


def test_failed_and_interrupted_attempts_are_waste_of_the_row(tmp_path, plan):
    ok = attempt(5, "ok", energy_kwh=1.0)
    row = ledger_with(
        tmp_path,
        plan,
        [
            attempt(3, "failed", energy_kwh=0.25, warnings="hot"),
            attempt(4, "interrupted", energy_kwh=0.5),
            ok,
        ],
        ok,
    )
    assert (row["attempts"], row["energy_kwh"], row["wasted_kwh"]) == (3, 1.75, 0.75)
    assert row["energy_low_kwh"] == pytest.approx(0.9 * 1.75)
    assert row["duration_s"] == 180
    assert row["started_at"] == "2026-01-15T03:00:00.000Z"
    assert row["ended_at"] == "2026-01-15T05:01:00.000Z"
    assert (row["outcome"], row["warnings"]) == ("ok", "hot")


def test_attempts_before_the_previous_ok_one_belong_to_that_one(tmp_path, plan):
    attempts = [
        attempt(1, "failed"),
        attempt(2, "ok"),
        attempt(3, "failed", energy_kwh=0.25),
        attempt(4, "ok"),
    ]
    row = ledger_with(tmp_path, plan, attempts, attempts[-1])
    assert (row["attempts"], row["wasted_kwh"]) == (2, 0.25)


def test_attempts_after_the_record_do_not_count(tmp_path, plan):
    attempts = [attempt(1, "ok", energy_kwh=1.0), attempt(2, "failed")]
    assert ledger_with(tmp_path, plan, attempts, attempts[0])["energy_kwh"] == 1.0


def test_a_journal_line_that_is_there_twice_counts_once(tmp_path, plan):
    failed, ok = attempt(1, "failed", energy_kwh=0.5), attempt(2, "ok", energy_kwh=1.0)
    assert ledger_with(tmp_path, plan, [failed, failed, ok, ok], ok)["energy_kwh"] == 1.5


def test_a_record_whose_own_line_was_lost_still_finds_the_attempts_before_it(tmp_path, plan):
    row = ledger_with(tmp_path, plan, [attempt(1, "failed", energy_kwh=0.5)], attempt(2, "ok", energy_kwh=1.0))
    assert (row["energy_kwh"], row["attempts"]) == (1.5, 2)


def test_other_stages_and_items_keep_their_own_attempts(tmp_path, plan):
    other = make_record("train_diffusion", "another", attempt_id="x", outcome="failed")
    ok = attempt(20, "ok", energy_kwh=1.0)
    assert ledger_with(tmp_path, plan, [other, ok], ok)["energy_kwh"] == 1.0


def test_a_sum_with_an_unknown_part_is_unknown(tmp_path, plan):
    ok = attempt(2, "ok")
    row = ledger_with(tmp_path, plan, [attempt(1, "failed", codecarbon_kwh=None), ok], ok)
    assert pd.isna(row["codecarbon_kwh"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(OUTCOMES), st.floats(0, 10)),
        max_size=8,
    )
)
def test_every_joule_of_the_journal_is_counted_by_one_record_only(tmp_path_factory, history):
    """The rows that successive ok attempts make over time add up to everything up to the last of them."""
    folder, plan = tmp_path_factory.mktemp("history"), make_plan(**SMALL)
    attempts = [attempt(n, outcome, energy_kwh=kwh) for n, (outcome, kwh) in enumerate([*history, ("ok", 1.0)])]
    successes = [one for one in attempts if one["outcome"] == "ok"]
    rows = [ledger_with(folder, plan, attempts, record) for record in successes]
    total = sum(one["energy_kwh"] for one in attempts)
    assert sum(row["energy_kwh"] for row in rows) == pytest.approx(total)
    wasted = sum(one["energy_kwh"] for one in attempts if one["outcome"] != "ok")
    assert sum(row["wasted_kwh"] for row in rows) == pytest.approx(wasted)


def test_a_corrupt_journal_line_is_named_and_skipped(tmp_path, plan, study, caplog):
    journal = tmp_path / "emissions/journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    with caplog.at_level(logging.WARNING):
        attempts = collect_attempts(plan, study, journal)
    assert f"{journal}:2" in caplog.text
    assert len(attempts) == len(study)  # the record tells of the attempt whose line is lost
    assert attempts["energy_kwh"].sum() == pytest.approx(collect_ledger(plan, study)["energy_kwh"].sum())


def test_an_earlier_attempt_whose_line_is_lost_is_named(tmp_path, plan, caplog):
    earlier, ok = attempt(1, "killed", energy_kwh=0.5), attempt(2, "ok", energy_kwh=1.0)
    path = tmp_path / f"results/models/{ok['item']}/emissions/train_diffusion.json"
    write_record(path, merge([earlier], ok))
    with caplog.at_level(logging.WARNING):
        attempts = collect_attempts(plan, [path], tmp_path / "journal.jsonl")
    assert "has no line of attempt attempt-1" in caplog.text
    assert list(attempts["energy_kwh"]) == [1.5]  # nothing is lost: it is priced with the attempt that is known


def test_collecting_recovers_what_no_recorder_could_end(tmp_path, study):
    journal = tmp_path / "emissions/journal.jsonl"
    lines = len(read_journal(journal))
    left_behind(tmp_path / "emissions/attempts", journal)
    for _ in range(2):
        write_ledger(tmp_path / "plan.csv", study, journal, tmp_path / "l.csv", tmp_path / "a.csv")
    assert [line["outcome"] for line in read_journal(journal)[lines:]] == ["killed"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"stage": "train_diffusion"}'])
def test_a_missing_or_corrupt_record_is_named(tmp_path, plan, study, content):
    if content is None:
        study[3].unlink()
    else:
        study[3].write_text(content)
    with pytest.raises(ValueError) as error:
        collect_ledger(plan, study)
    assert str(study[3]) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_record_of_another_stage_a_failed_one_and_a_second_one_are_refused(tmp_path, plan, study):
    with pytest.raises(ValueError, match="second record"):
        collect_ledger(plan, [*study, study[0]])
    record = json.loads(study[5].read_text())
    study[5].write_text(json.dumps(record | {"outcome": "failed"}))
    with pytest.raises(ValueError, match="did not succeed"):
        collect_ledger(plan, study)
    study[5].write_text(study[4].read_text())
    with pytest.raises(ValueError, match="is a record of"):
        collect_ledger(plan, study)


def test_a_record_that_is_not_of_the_plan_is_refused(tmp_path, study):
    other = make_plan(**SMALL | {"sizes": ("tiny",)})
    with pytest.raises(ValueError, match="the plan has no such model"):
        collect_ledger(other, study)


def test_counts_stay_whole_and_very_many_flops_fit(tmp_path, plan):
    row = attempt(1, "ok", images_seen=120, flops=10**20)
    path = tmp_path / f"results/models/{row['item']}/emissions/train_diffusion.json"
    write_record(path, row)
    ledger = collect_ledger(plan, [path])
    text = ledger.to_csv(index=False)
    assert ",120," in text
    assert ledger["flops"].iloc[0] == 1e20


def test_a_table_that_is_no_ledger_is_named(tmp_path):
    path = tmp_path / "ledger.csv"
    with pytest.raises(FileNotFoundError, match=r"ledger\.csv"):
        read_ledger(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"ledger\.csv"):
        read_ledger(path)
    path.write_text("stage,item\na,b\n")
    with pytest.raises(ValueError, match="no column attempts"):
        read_ledger(path)
