"""Work that CodeCarbon measured, and our own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from emissions.work import read_work
from tests.emissions.studies import collect, make_plan, write_study


def codecarbon_csv(path: Path, **changes: list[object]) -> Path:
    """Rows in the columns that CodeCarbon 3.3.2 writes, as far as they are read."""
    columns = {
        "timestamp": ["2026-03-29T03:30:00", "2026-03-29T04:30:00"],
        "project_name": ["unet", "dit"],
        "run_id": ["a", "b"],
        "duration": [3600.0, 7200.0],
        "energy_consumed": [1.0, 2.0],
        "country_iso_code": ["NA", "DEU"],
    }
    pd.DataFrame(columns | changes).to_csv(path, index=False)
    return path


def test_codecarbons_time_is_when_the_run_stopped(tmp_path):
    work = read_work(codecarbon_csv(tmp_path / "emissions.csv"))
    assert list(work["ended_at"]) == ["2026-03-29T03:30:00.000Z", "2026-03-29T04:30:00.000Z"]
    assert list(work["started_at"]) == ["2026-03-29T02:30:00.000Z", "2026-03-29T02:30:00.000Z"]
    assert list(zip(work["stage"], work["item"], strict=True)) == [("unet", "a"), ("dit", "b")]
    assert work[["energy_low_kwh", "energy_high_kwh"]].isna().all(axis=None)


def test_codecarbons_time_is_local_and_summer_time_begins_in_the_middle_of_a_run(tmp_path):
    work = read_work(codecarbon_csv(tmp_path / "emissions.csv"), time_zone="Europe/Berlin")
    assert work["ended_at"][0] == "2026-03-29T01:30:00.000Z"  # 3:30 summer time
    assert work["started_at"][0] == "2026-03-29T00:30:00.000Z"  # 1:30 winter time


def test_a_run_that_was_flushed_three_times_counts_once(tmp_path):
    path = codecarbon_csv(
        tmp_path / "emissions.csv",
        timestamp=["2026-03-01T01:00:00", "2026-03-01T02:00:00"],
        run_id=["a", "a"],
        energy_consumed=[1.0, 3.0],
    )
    work = read_work(path)
    assert list(work["energy_kwh"]) == [3.0]


def test_rows_without_a_run_and_tasks_of_one_run_all_count(tmp_path):
    for changes in ({"run_id": [None, None]}, {"run_id": ["a", None]}, {"run_id": ["a", "a"], "task_name": ["t", "u"]}):
        work = read_work(codecarbon_csv(tmp_path / "emissions.csv", **changes))
        assert work["energy_kwh"].sum() == 3.0


def test_codecarbons_own_pue_is_taken_out_again(tmp_path):
    work = read_work(codecarbon_csv(tmp_path / "emissions.csv", pue=[1.25, 1.0]))
    assert list(work["energy_kwh"]) == pytest.approx([0.8, 2.0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"duration": [1.0, "long"]}, "row 3: duration is long"),
        ({"energy_consumed": [-1.0, 1.0]}, r"row 2: energy_consumed is -1\.0"),
        ({"pue": [0.0, 1.0]}, r"row 2: pue is 0\.0; expected a number of at least 1"),
        ({"timestamp": [None, "2026-03-01T02:00:00"]}, "row 2: timestamp is nan"),
        ({"timestamp": ["yesterday", "2026-03-01T02:00:00"]}, "row 2: timestamp is 'yesterday'"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, changes, said):
    path = codecarbon_csv(tmp_path / "emissions.csv", **changes)
    with pytest.raises(ValueError, match=said) as caught:
        read_work(path)
    assert str(path) in str(caught.value)


def test_other_tables_and_unknown_time_zones_are_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="neither a ledger nor CodeCarbon's"):
        read_work(tmp_path / "other.csv")
    with pytest.raises(ValueError, match="time zone 'Berlin' is unknown"):
        read_work(codecarbon_csv(tmp_path / "emissions.csv"), time_zone="Berlin")


def test_our_ledger_is_read_as_it_is_from_csv_and_parquet(tmp_path):
    plan = make_plan()
    ledger, _ = collect(tmp_path, plan, write_study(tmp_path, plan))
    ledger.to_csv(tmp_path / "ledger.csv", index=False)
    ledger.to_parquet(tmp_path / "ledger.parquet")
    for name in ("ledger.csv", "ledger.parquet"):
        work = read_work(tmp_path / name)
        assert work["energy_kwh"].sum() == pytest.approx(ledger["energy_kwh"].sum())
    ledger.drop(columns="energy_kwh").to_parquet(tmp_path / "ledger.parquet")
    with pytest.raises(ValueError, match="has no column energy_kwh"):
        read_work(tmp_path / "ledger.parquet")


def test_codecarbon_itself_writes_what_is_read(tmp_path):
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="DEU",
        output_dir=str(tmp_path),
        log_level="error",
        measure_power_secs=1,
        allow_multiple_runs=True,
    )
    tracker.start()
    tracker.flush()
    tracker.stop()
    rows = pd.read_csv(tmp_path / "emissions.csv")
    work = read_work(tmp_path / "emissions.csv")
    assert len(work) == 1
    assert work["energy_kwh"][0] == pytest.approx(rows["energy_consumed"].max())
