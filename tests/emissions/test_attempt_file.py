"""The file of an attempt, from which everything can be told whatever ended it."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emissions.attempt_file import FIELDS, AttemptFile, Totals, read_attempt, record_of, trace_of, write_trace
from emissions.meters.base import J_PER_KWH
from emissions.records import FACTOR_COLUMNS, parse_utc, validate_record

STARTED_AT = "2026-01-15T10:00:00.000Z"


def header(**changes: Any) -> dict[str, Any]:
    return {
        "attempt_id": "a1", "stage": "train_diffusion", "item": "unet", "factors": dict.fromkeys(FACTOR_COLUMNS),
        "started_at": STARTED_AT, "startup_s": 3.0, "node": "bench", "cpu_model": "CPU", "gpus": [], "interval_s": 1.0,
        "methods": {"cpu": "rapl", "gpu": "none", "ram": "model:W per DIMM"}, "simulated": False, "psys": False,
        "fields": FIELDS, "pid": 1, "pid_started": 1, "journal": "/journal.jsonl",
    } | changes  # fmt: skip


def steady(seconds: float, **changes: Any) -> Totals:
    """50 W of CPU and 8 W of RAM, +-5 % and +-50 %."""
    cpu_j, ram_j = 50 * seconds, 8 * seconds
    values = {
        "t_s": seconds, "cpu_j": cpu_j, "ram_j": ram_j, "cpu_low_j": 0.95 * cpu_j, "cpu_high_j": 1.05 * cpu_j,
        "ram_low_j": 0.5 * ram_j, "ram_high_j": 1.5 * ram_j, "node_j": cpu_j + ram_j, "cpu_s": seconds,
    } | changes  # fmt: skip
    return Totals(**values)


def written(folder: Path, *lines: Any, **changes: Any) -> Path:
    file = AttemptFile([folder], header(**changes))
    for line in lines:
        file.write(line.row() if isinstance(line, Totals) else line)
    file.close(remove=False)
    assert file.path is not None
    return file.path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    attempt = read_attempt(written(tmp_path, steady(1), {"warning": "hot"}, steady(2), {"end": "failed"}))
    assert attempt.header["attempt_id"] == "a1" and attempt.totals == steady(2)
    assert attempt.warnings == ["hot"] and attempt.ended


def test_a_line_that_was_cut_by_a_crash_costs_that_line(tmp_path: Path) -> None:
    path = written(tmp_path, steady(1), steady(2))
    content = path.read_bytes()
    for cut in range(1, 40):
        path.write_bytes(content[:-cut])
        assert read_attempt(path).totals == steady(1)
    path.write_bytes(content[:-5] + b"\n")  # and it went on: half a line, then whole ones
    attempt = read_attempt(path)
    assert attempt.totals == steady(1) and "could not be read" in attempt.warnings[0]


def test_every_prefix_of_a_file_can_be_read_or_is_refused_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, steady(1), {"warning": "hot"}, steady(2))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            attempt = read_attempt(path)
        except ValueError as error:
            assert b"\n" not in content[:length] and str(path) in str(error)
        else:
            assert attempt.totals.t_s in (0, 1, 2)


def test_a_later_version_may_know_more_fields_and_an_earlier_file_fewer(tmp_path: Path) -> None:
    path = written(tmp_path, fields=["t_s", "cpu_j"])
    with path.open("a") as file:
        file.write("[3.0,150.0]\n")
    assert read_attempt(path).totals == Totals(t_s=3.0, cpu_j=150.0)


def test_a_folder_that_refuses_costs_nothing_if_there_is_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = AttemptFile([tmp_path / "file" / "below", tmp_path / "other"], header())
    file.write(steady(1).row())
    assert file.path == tmp_path / "other" / "a1.jsonl" and read_attempt(file.path).totals == steady(1)
    file.close(remove=True)
    assert not list((tmp_path / "other").iterdir())


def test_no_folder_at_all_is_a_problem_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = AttemptFile([tmp_path / "file"], header())
    file.write(steady(1).row())
    assert file.path is None and "cannot be kept" in file.problem


def test_a_disk_that_is_full_for_a_while_gets_its_lines_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AttemptFile([tmp_path], header())
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:7]))
    file.write(steady(1).row())
    file.write(steady(2).row())
    assert file.path is not None and read_attempt(file.path).rows == []
    monkeypatch.setattr(os, "write", write)
    file.write(steady(3).row())
    file.close(remove=False)
    assert read_attempt(file.path).rows == [steady(1), steady(2), steady(3)]
    assert "No space left" in file.problem


def test_the_record_has_the_totals_in_kwh_and_their_interval() -> None:
    totals = steady(60, startup_j=30.0, metering_j=2.0, rest_j=5.0)
    record = validate_record(record_of(header(), totals, outcome="ok", work={"images_seen": 9}), "test")
    assert record["cpu_kwh"] == pytest.approx((3000 + 30) / J_PER_KWH)
    assert record["energy_kwh"] == pytest.approx(3510 / J_PER_KWH)
    below = (150**2 + 240**2 + 15**2) ** 0.5
    assert record["energy_low_kwh"] == pytest.approx((3510 - below) / J_PER_KWH)
    unseen_j = 3510 * 0.37 / 0.63
    assert record["unseen_kwh"] == pytest.approx(unseen_j / J_PER_KWH)
    assert record["energy_high_kwh"] == pytest.approx((3510 + below + unseen_j) / J_PER_KWH)
    assert (record["startup_kwh"], record["metering_kwh"]) == (30 / J_PER_KWH, 2 / J_PER_KWH)
    assert (record["images_seen"], record["wasted_kwh"], record["gpu_kwh"], record["psys_kwh"]) == (9, 0, 0, None)
    assert record["ended_at"] == "2026-01-15T10:01:00.000Z"


def test_an_attempt_without_success_is_all_waste() -> None:
    record = record_of(header(), steady(60), outcome="killed")
    assert record["wasted_kwh"] == record["energy_kwh"] > 0


def test_what_is_unknown_stays_unknown() -> None:
    record = record_of(header(), steady(60, gpu_j=None, idle_j=None), outcome="ok")
    assert record["gpu_kwh"] is None and record["idle_kwh"] is None
    assert record["energy_kwh"] == pytest.approx(58 * 60 / J_PER_KWH)


def test_simulated_hardware_has_no_wall() -> None:
    record = record_of(header(simulated=True), steady(60), outcome="ok")
    assert record["unseen_kwh"] == 0


def test_energy_until_a_moment_is_between_the_readings_by_proportion(tmp_path: Path) -> None:
    attempt = read_attempt(written(tmp_path, steady(10), steady(20, cpu_j=500.0)))  # the CPU rests after 10 s

    def until(seconds: float) -> float:
        return attempt.energy_until_kwh(parse_utc(STARTED_AT) + timedelta(seconds=seconds)) * J_PER_KWH

    assert [until(s) for s in (0, 5, 10, 15, 20)] == pytest.approx([0, 290, 580, 620, 660])
    assert until(-5) == 0 and until(99) == pytest.approx(660)


def test_an_attempt_without_a_reading_has_used_nothing_that_is_known(tmp_path: Path) -> None:
    assert read_attempt(written(tmp_path)).energy_until_kwh(parse_utc(STARTED_AT)) == 0


def test_the_trace_is_the_mean_power_between_readings(tmp_path: Path) -> None:
    rows = [steady(1), steady(2, cpu_j=150.0, gpu_j=None), steady(2.2)]
    trace = trace_of(read_attempt(written(tmp_path, *rows)))
    assert [row.cpu_w for row in trace] == pytest.approx([50, 60 / 1.2])  # the short last interval is joined
    assert [row.ram_w for row in trace] == pytest.approx([8, 8])
    assert [(row.time - parse_utc(STARTED_AT)).total_seconds() for row in trace] == [1.0, 2.2]


def test_unknown_power_is_null_in_the_parquet_and_times_are_utc(tmp_path: Path) -> None:
    gpu = {"index": 0, "uuid": "GPU-0", "model": "one"}
    rows = [steady(1, gpu_j=None, gpu_busy_s=0.25), steady(2, gpu_j=None, gpu_busy_s=1.25)]
    path = tmp_path / "stage.power.parquet"
    write_trace(path, trace_of(read_attempt(written(tmp_path, *rows, gpus=[gpu]))))
    table = pq.read_table(path)
    assert table.column_names == ["time", "cpu_w", "gpu_w", "ram_w", "gpu_utilisation_percent"]
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"
    assert table["gpu_w"].null_count == 2 and table["gpu_utilisation_percent"].to_pylist() == [25, 100]


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"no": "header"}) + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl"):
        read_attempt(path)
