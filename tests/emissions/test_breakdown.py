"""Parts of a ledger's energy, its overheads, and what was wasted: sums against hand-made rows."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from emissions import findings
from emissions.breakdown import codecarbon_sums, energy_parts, overheads, rest_percent
from emissions.charts import Section
from emissions.methods_section import methods_section
from emissions.waste import outcomes_text, waste_by_stage
from tests.emissions.studies import make_record


def ledger_of(*changes: dict) -> pd.DataFrame:
    """Rows of 1 kWh, by `studies.make_record`."""
    return pd.DataFrame(
        [make_record("train_diffusion", f"m{n}", energy_kwh=1.0) | row for n, row in enumerate(changes)]
    )


def test_parts_add_up_to_the_whole_and_keep_start_up_apart() -> None:
    parts = energy_parts(ledger_of({}, {})).set_index("part")
    assert list(parts.index) == ["cpu", "startup", "ram", "unseen", "whole"]
    assert parts.loc["whole", ["energy_kwh", "low_kwh", "high_kwh"]].tolist() == pytest.approx([2.0, 1.8, 2.2])
    assert parts.drop("whole")["energy_kwh"].sum() == pytest.approx(2.0)
    # 0.75 of CPU with 0.02 of start-up in it, of which half may be missing: 0.67 at least, with 0.01 of start-up.
    assert parts.loc["cpu", ["energy_kwh", "low_kwh", "high_kwh"]].tolist() == pytest.approx([1.46, 1.32, 1.536])
    assert parts.loc["startup", ["energy_kwh", "low_kwh", "high_kwh"]].tolist() == pytest.approx([0.04, 0.02, 0.06])
    assert parts.loc["unseen", "high_kwh"] == pytest.approx(0.08)
    assert parts.loc["cpu", "method"] == "rapl"


def test_a_bound_that_a_row_does_not_state_is_unknown() -> None:
    parts = energy_parts(ledger_of({}, {"ram_low_kwh": None})).set_index("part")
    assert math.isnan(parts.loc["ram", "low_kwh"]) and parts.loc["ram", "high_kwh"] == pytest.approx(0.572)
    assert parts.loc["cpu", "low_kwh"] == pytest.approx(1.32)


def test_what_is_not_there_is_no_part() -> None:
    bare = {"startup_kwh": None, "unseen_kwh": 0.0, "gpu_kwh": 0.0}
    assert energy_parts(ledger_of(bare))["part"].tolist() == ["cpu", "ram", "whole"]


def test_overheads_are_shares_of_the_rows_that_know_them() -> None:
    table = overheads(ledger_of({}, {"idle_kwh": None})).set_index("part")
    assert table.loc["idle"].tolist() == pytest.approx([0.3, 30.0, 1])
    assert table.loc["metering"].tolist() == pytest.approx([0.02, 1.0, 2])
    unknown = overheads(ledger_of({"idle_kwh": None})).set_index("part")
    assert unknown.loc["idle", ["energy_kwh", "share_percent"]].isna().all()
    assert "idle" not in findings.overheads(unknown.reset_index(), math.nan)


def test_the_rest_is_a_share_of_the_nodes_in_the_windows() -> None:
    assert rest_percent(ledger_of({}, {"node_kwh": 1.0, "rest_kwh": 0.5}, {"node_kwh": None})) == pytest.approx(20.0)
    assert math.isnan(rest_percent(ledger_of({"rest_kwh": None})))


def test_codecarbon_is_summed_over_the_rows_that_know_both() -> None:
    sums = codecarbon_sums(ledger_of({}, {"codecarbon_kwh": None}, {"codecarbon_node_kwh": None}))
    assert sums == pytest.approx({"rows": 1, "codecarbon_kwh": 1.8, "codecarbon_node_kwh": 2.0, "energy_kwh": 1.0})


def test_outcomes_are_told_in_their_own_order() -> None:
    ends = pd.Series(["killed", "failed", "killed", "terminated"])
    assert outcomes_text(ends, 4) == "1 failed, 1 terminated, 2 killed"
    assert outcomes_text(ends[:1], 3) == "1 killed, 2 unknown"
    assert outcomes_text(ends[:0], 0) == ""


def waste_of(wasted_kwh: float, *early: tuple[str, float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One stage of 10 kWh, with these attempts (outcome, energy) before the ok one."""
    by_stage = pd.DataFrame([{"stage": "train_diffusion", "energy_kwh": 10.0, "wasted_kwh": wasted_kwh}])
    rows = [*early, ("ok", 10.0 - sum(energy for _, energy in early))]
    attempts = pd.DataFrame(rows, columns=["outcome", "energy_kwh"]).assign(stage="train_diffusion")
    return waste_by_stage(by_stage, ledger_of({"attempts": len(rows)}), attempts), attempts


def test_waste_is_told_with_its_causes_and_with_what_a_checkpoint_kept() -> None:
    stages, attempts = waste_of(0.7, ("killed", 1.5), ("failed", 0.2), ("killed", 0.5))
    row = stages.iloc[0]
    assert (row["attempts"], row["ended_early"]) == (4, "1 failed, 2 killed")
    assert (row["kept_kwh"], row["wasted_percent"]) == pytest.approx((9.3, 7.0))
    text = findings.waste(stages, attempts)
    assert text.startswith(
        "7 % of the energy (700 Wh) went into 3 attempts that ended early and was lost: 1 failed, 2 "
    )
    assert "Another 1.5 kWh of theirs was kept" in text


def test_waste_without_a_checkpoint_or_without_waste_says_so() -> None:
    assert "kept" not in findings.waste(*waste_of(0.5, ("terminated", 0.5)))
    assert findings.waste(*waste_of(0.0)) == "No attempt ended early: nothing was wasted."
    kept = findings.waste(*waste_of(0.0, ("interrupted", 0.5)))
    assert kept.startswith("Nothing was lost in 1 attempt that ended early: 1 interrupted. Another 500 Wh")


def test_waste_is_told_though_the_journal_has_lost_the_attempt() -> None:
    by_stage = pd.DataFrame([{"stage": "train_diffusion", "energy_kwh": 10.0, "wasted_kwh": 1.0}])
    attempts = waste_of(0.0)[1]
    text = findings.waste(waste_by_stage(by_stage, ledger_of({"attempts": 2}), attempts), attempts)
    assert text == "10 % of the energy (1 kWh) went into 1 attempt that ended early and was lost: 1 unknown."


def section_of(ledger: pd.DataFrame) -> Section:
    tables = {
        "ledger": ledger,
        "attempts": waste_of(0.0)[1],
        "by_method": pd.DataFrame(columns=["component", "method", "present", "measured", "energy_kwh", "rows"]).assign(
            share_percent=[]
        ),
        "by_stage": pd.DataFrame([{"stage": "train_diffusion", "energy_kwh": 10.0, "wasted_kwh": 0.0}]),
    }
    return methods_section(tables)


def codecarbon_note(**changes: float | None) -> str:
    return next(chart.note for chart in section_of(ledger_of(changes)).charts if chart.id == "codecarbon")


def test_the_table_of_overheads_says_where_each_is_and_how_much_is_known() -> None:
    idle, startup, metering = section_of(ledger_of({}, {"idle_kwh": None})).tables[0].rows
    assert idle[:3] == ["Idle baseline", "300 Wh", "30"] and idle[3].endswith("(known in 1 of 2 rows)")
    assert startup[1:3] == ["40 Wh", "2"] and startup[3].startswith("inside") and "known" not in startup[3]
    assert metering[3].startswith("beside")


def test_totals_of_whole_machines_are_not_to_be_added_up() -> None:
    assert "CodeCarbon's totals are 1.8 times the jobs' own energy" in codecarbon_note()
    alone = codecarbon_note(codecarbon_node_kwh=1.0)
    assert "whole machine" in alone and "times" not in alone
    assert codecarbon_note(codecarbon_node_kwh=None) == ""
