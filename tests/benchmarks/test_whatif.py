"""The benchmark of what-if totals: it runs, plain pandas finds the same, and other totals are not passed over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/whatif.py"
WAYS = ["ours, months", "ours, months and hours", "pandas, sum first", "pandas, months", "pandas, months and hours"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import whatif

    return whatif


@pytest.fixture
def task(bench: ModuleType, tmp_path: Path) -> object:
    task = bench.Task(tmp_path / "work.parquet", rows=60, zones=bench.QUICK_ZONES, join_rows=45, join_hours_rows=7)
    bench.write_file(task)
    return task


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120, check=False)


def test_a_quick_run_tells_all(bench: ModuleType) -> None:
    finished = run("--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert report["quick"] is True
    assert (report["rows_of_work"], report["zones"], report["rounds"]) == (500, 5, 1)
    assert [row["way"] for row in report["rows"]] == WAYS
    assert [row["scaled"] for row in report["rows"]] == [False, False, False, True, True]
    for row in report["rows"]:
        whole_s = row["read_s"] + row["sum_s"] * 500 / row["summed_rows"]
        assert row["whole_s"] == pytest.approx(whole_s) and row["whole_s_min"] <= whole_s <= row["whole_s_max"] + 1e-9
        assert row["peak_mb"] > 20  # an interpreter alone takes as much
    assert [report["rows"][place]["ratio"] for place in (0, 1)] == [1, 1]
    text = bench.table(report)
    assert all(way in text for way in WAYS) and "aim: months in at most 10 s and 2000 MB" in text and "*" in text


def test_the_work_is_what_a_ledger_has(bench: ModuleType, task: object) -> None:
    work = bench.read_work(task.path)
    length_s = (pd.to_datetime(work["ended_at"]) - pd.to_datetime(work["started_at"])).dt.total_seconds()
    assert length_s.to_numpy() == pytest.approx(work["duration_s"].to_numpy())
    assert length_s.min() < 60 and length_s.max() > 86_400
    assert (work["energy_low_kwh"] < work["energy_kwh"]).all() and (work["energy_kwh"] < work["energy_high_kwh"]).all()
    pd.testing.assert_frame_equal(bench.ledger_like(60), bench.ledger_like(60))


def test_pandas_finds_the_same(bench: ModuleType, task: object) -> None:
    found = {name: way(task).totals_g for name, way in bench.WAYS.items()}
    assert len(found[bench.MONTHS]) == 5 * 12 and len(found[bench.HOURS]) == 5 * 12 * 24
    assert found[bench.HOURS].loc["DE"].nunique() == 12 * 24  # hours differ, so that a shift would show
    bench.check_answers(found)


@pytest.mark.parametrize("way", WAYS[2:])
def test_other_totals_are_an_error(bench: ModuleType, task: object, way: str) -> None:
    found = {name: way(task).totals_g for name, way in bench.WAYS.items()}
    last = found[way].index[-1]
    found[way].loc[last] *= 1.01
    with pytest.raises(RuntimeError, match=f"{way} found other totals than ours, .* up to 1 %"):
        bench.check_answers(found)


def test_a_part_is_not_mistaken_for_the_whole(bench: ModuleType, task: object) -> None:
    found = {name: way(task).totals_g for name, way in bench.WAYS.items()}
    found[bench.JOIN_MONTHS] = bench.pandas_months(replace(task, join_rows=44)).totals_g
    with pytest.raises(RuntimeError, match="pandas, months found other totals"):
        bench.check_answers(found)


def test_chunks_do_not_change_the_sum(bench: ModuleType, task: object, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.pandas_months(task).totals_g
    monkeypatch.setattr(bench, "CHUNK_ROWS", 7)
    assert bench.pandas_months(task).totals_g.to_numpy() == pytest.approx(whole.to_numpy())


def test_time_is_scaled_by_rows_and_reading_is_not(bench: ModuleType) -> None:
    runs = [(bench.Done(2.0, sum_s, 100, pd.Series(dtype=float)), 300.0) for sum_s in (3.0, 1.0, 8.0)]
    row = bench.row(bench.JOIN_MONTHS, runs, 1000)
    assert row["whole_s"] == 32 and (row["whole_s_min"], row["whole_s_max"]) == (12, 82)
    assert row["scaled"] and row["sum_s"] == 3 and row["peak_mb"] == 300


def test_a_child_has_its_own_peak_memory(bench: ModuleType, task: object) -> None:
    small = bench.alone(bench.timed, bench.SUMS, task)[1]
    large = replace(task, path=task.path.with_name("large.parquet"), rows=200_000)
    bench.alone(bench.write_file, large)
    assert bench.alone(bench.timed, bench.SUMS, large)[1] > small + 10


@pytest.mark.parametrize("rows", ["0", "many"])
def test_a_bad_number_of_rows_is_one_line_and_status_2(rows: str) -> None:
    finished = run("--rows", rows)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].endswith(f"argument --rows: {rows!r} is not a number of rows")


def test_help_has_an_example() -> None:
    assert "example: python benchmarks/whatif.py" in " ".join(run("--help").stdout.split())
