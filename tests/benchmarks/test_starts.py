"""The benchmark of best starts: it runs, all ways agree, and a wrong answer is not passed over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import starts

    return starts


def test_a_quick_run_tells_all() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/starts.py"), "--quick", "--json"]
    finished = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert report["quick"] is True
    assert (report["jobs"], report["hours"], report["zones"]) == (300, 480, 3)
    ways = [row["way"] for row in report["rows"]]
    assert ways[:4] == ["ours", "ours, own rooms", "pandas, job by job", "pandas, by whole hours"]
    assert ("CATS" in ways) != bool(report["missing"])
    assert [row["scaled"] for row in report["rows"]][:4] == [False, False, True, False]
    for row in report["rows"]:
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert 0 < row["before_mb"] <= row["peak_mb"]
        assert row["whole_s"] == pytest.approx(row["s_per_million"] * 300 * 3 / 1e6)


def test_pandas_finds_the_same(starts: ModuleType) -> None:
    work = starts.Work(jobs=50, hours=200, zones=4, pandas_jobs=12, cats_jobs=12, cats_zones=4)
    means = starts.ours(work)[3]
    for way in (starts.pandas_by_job, starts.pandas_by_hours):
        assert way(work)[3] == pytest.approx(means)


def test_cats_finds_the_same(starts: ModuleType) -> None:
    work = starts.Work(jobs=50, hours=200, zones=4, cats_jobs=12, cats_zones=4)
    assert starts.cats(work)[3] == pytest.approx(starts.ours(work)[3])


def test_other_optima_are_an_error(starts: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="CATS found other optima"):
        starts.check_answers({"ours": np.ones((2, 2)), "CATS": np.full((2, 2), 1.01)})


def test_the_report_says_what_is_left_out(starts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"way": "ours", "version": None, "says": "so", "jobs": 5, "zones": 2, "seconds": 1.0, "s_per_million": 1e5,
           "whole_s": 1.0, "scaled": False, "ratio": 1.0, "peak_mb": 100.0}  # fmt: skip
    report = {"jobs": 5, "hours": 10, "zones": 2, "cores": 2, "python": "3", "numpy": "2", "pandas": "3", "rounds": 1,
              "load_before": 0.0, "load_after": 0.0, "rows": [row, row | {"scaled": True}], "missing": ["CATS: no"],
              "aim": {"at_most_s": 30.0, "met": True}}  # fmt: skip
    text = starts.table(report)
    assert "left out: CATS: no" in text
    assert "1*" in text
    assert "met" in text
