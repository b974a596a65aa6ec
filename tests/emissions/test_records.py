from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions import records


def example(**changes: Any) -> dict[str, Any]:
    record = {
        "stage": "train_diffusion",
        "item": "unet-nano",
        "attempts": 1,
        "outcome": "ok",
        "started_at": "2026-01-02T03:04:05.678Z",
        "ended_at": "2026-01-02T03:05:05.678Z",
        "duration_s": 60.0,
        "cpu_kwh": 0.001,
        "energy_kwh": 0.002,
        "energy_low_kwh": 0.001,
        "energy_high_kwh": 0.003,
        "cpu_method": "model:load x TDP",
        "gpu_method": "none",
        "ram_method": "model:W per DIMM",
        "samples": 10,
        "warnings": "",
        "attempt_id": "a1",
    }
    return record | changes


@pytest.mark.parametrize(
    ("method", "measured"),
    [
        ("rapl", True),
        ("rapl:dram", True),
        ("nvml:energy-counter", True),
        ("nvml:power-integral", True),
        ("model:load x TDP", False),
        ("model:W per DIMM", False),
        ("none", False),
        ("simulated", False),
        ("amdsmi:energy-counter", True),
        ("", False),
        (None, False),
    ],
)
def test_only_sensors_count_as_measured(method: str | None, measured: bool) -> None:
    assert records.is_measured(method) is measured


def test_record_survives_the_disk_with_every_column_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    records.write_record(path, example())
    read = records.read_record(path)
    assert tuple(read) == records.LEDGER_COLUMNS
    assert {key: read[key] for key in example()} == example()
    assert read["gpu_kwh"] is None and read["voxels"] is None
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"stage": None}, "'stage' is missing"),
        ({"outcome": "fine"}, "'outcome' is 'fine'"),
        ({"energy_kwh": float("nan")}, "'energy_kwh'"),
        ({"energy_kwh": -1.0}, "'energy_kwh'"),
        ({"energy_kwh": "much"}, "'energy_kwh'"),
        ({"samples": 1.5}, "'samples'"),
        ({"samples": True}, "'samples'"),
        ({"started_at": "yesterday"}, "'started_at'"),
        ({"started_at": "2026-01-02T03:04:05"}, "'started_at'"),
        ({"energy_high_kwh": 0.0015}, "'energy_kwh' lies outside"),
        ({"colour": "green"}, "colour"),
    ],
)
def test_bad_record_is_refused_in_one_line_and_leaves_no_file(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(ValueError) as caught:
        records.write_record(path, example(**changes))
    message = str(caught.value)
    assert word in message and str(path) in message and "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "x"}'])
def test_unreadable_record_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"record\.json"):
        records.read_record(path)


def test_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such record"):
        records.read_record(tmp_path / "record.json")


def test_columns_of_a_later_version_do_not_lose_a_journal_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(example(colour="green")) + "\n")
    assert [line["attempt_id"] for line in records.read_journal(path)] == ["a1"]


def test_missing_journal_is_empty(tmp_path: Path) -> None:
    assert records.read_journal(tmp_path / "journal.jsonl") == []


def test_corrupt_lines_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.jsonl"
    records.append_journal(path, example(attempt_id="a1"))
    with path.open("ab") as journal:
        journal.write(b"\xff\xfe\n" + b"3\n" + b'{"stage": "train_diff')  # the last: killed while writing
    records.append_journal(path, example(attempt_id="a2"))
    with caplog.at_level(logging.WARNING):
        assert [line["attempt_id"] for line in records.read_journal(path)] == ["a1", "a2"]
    assert [f"{path}:{number}:" in caplog.text for number in (2, 3, 4)] == [True] * 3
    assert len(caplog.records) == 3


def test_a_cut_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    records.append_journal(path, example(attempt_id="a1"))
    before = path.read_bytes()
    write = records.os.write
    monkeypatch.setattr(records.os, "write", lambda descriptor, line: write(descriptor, line[:20]))
    with pytest.raises(OSError, match="cut short"):
        records.append_journal(path, example(attempt_id="a2"))
    assert path.read_bytes() == before


def _append(path: Path, worker: int, count: int) -> None:
    for number in range(count):
        records.append_journal(path, example(attempt_id=f"{worker}-{number}", warnings="x" * 20_000))


def test_a_thousand_parallel_appends_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    context = get_context("fork")
    workers = [context.Process(target=_append, args=(path, worker, 200)) for worker in range(4)]
    for worker in workers:
        worker.start()
    with ThreadPoolExecutor(4) as pool:  # threads too: POSIX locks would not keep these apart
        list(pool.map(lambda worker: _append(path, worker, 50), range(4, 8)))
    for worker in workers:
        worker.join()
    found = [line["attempt_id"] for line in records.read_journal(path)]
    expected = [(w, n) for w in range(4) for n in range(200)] + [(w, n) for w in range(4, 8) for n in range(50)]
    assert len(found) == 1000 and sorted(found) == sorted(f"{worker}-{number}" for worker, number in expected)


def test_a_line_is_appended_once_where_two_may_want_to(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for attempt_id in ("a1", "a2", "a1"):
        records.append_journal(path, example(attempt_id=attempt_id), once=True)
    assert [line["attempt_id"] for line in records.read_journal(path)] == ["a1", "a2"]


def test_a_later_line_of_an_attempt_corrects_the_earlier(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for attempt_id, outcome in (("a1", "ok"), ("a2", "ok"), ("a1", "killed")):
        records.append_journal(path, example(attempt_id=attempt_id, outcome=outcome))
    assert [(line["attempt_id"], line["outcome"]) for line in records.read_journal(path)] == [
        ("a1", "killed"),
        ("a2", "ok"),
    ]


@given(st.datetimes(timezones=st.just(UTC)), st.integers(-12, 12))
def test_times_are_written_in_utc_whatever_their_zone(moment: datetime, hours: int) -> None:
    if (
        not datetime.min.replace(tzinfo=UTC) + timedelta(days=1)
        < moment
        < datetime.max.replace(tzinfo=UTC) - timedelta(days=1)
    ):
        return
    text = records.utc_text(moment.astimezone(timezone(timedelta(hours=hours))))
    assert text.endswith("Z") and abs(records.parse_utc(text) - moment) < timedelta(milliseconds=1)


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        records.utc_text(datetime(2026, 1, 1))
