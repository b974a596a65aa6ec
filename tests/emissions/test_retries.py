"""What belongs to a stage's earlier attempts, how much of it was kept, and attempts that nobody could end."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emissions import retries
from emissions.attempt_file import AttemptFile
from emissions.meters.base import J_PER_KWH
from emissions.processes import started
from emissions.records import Record, append_journal, read_journal
from emissions.retries import earlier_attempts, kept_kwh, merge, recover
from tests.emissions.studies import make_record
from tests.emissions.test_attempt_file import header, steady

ITEM = "unet-nano-ct-2d-32-x1-s0"


def attempt(number: int, outcome: str = "killed", **changes: Any) -> Record:
    """One attempt of a minute at hour `number`."""
    return make_record(
        "train_diffusion", changes.pop("item", ITEM), attempt_id=f"attempt-{number}", outcome=outcome,
        started_at=f"2026-01-15T{number:02d}:00:00.000Z", ended_at=f"2026-01-15T{number:02d}:01:00.000Z", **changes,
    )  # fmt: skip


def ids(attempts: list[Record]) -> list[str]:
    return [one["attempt_id"] for one in attempts]


def test_attempts_since_the_last_success_belong_to_the_next() -> None:
    journal = [attempt(1), attempt(2, "ok"), attempt(3, "failed"), attempt(4, "terminated"), attempt(5, item="other")]
    final = attempt(6, "ok")
    assert ids(earlier_attempts([*journal, final], final)) == ["attempt-3", "attempt-4"]
    assert earlier_attempts(journal, attempt(2, "ok")) == [journal[0]]


def test_they_are_found_by_time_wherever_their_lines_are() -> None:
    late = [attempt(4), attempt(1, "ok"), attempt(3)]  # recovered from their files after others had ended
    assert ids(earlier_attempts(late, attempt(5, "ok"))) == ["attempt-3", "attempt-4"]


def test_a_merged_record_holds_everything_and_says_what_was_wasted() -> None:
    earlier = [attempt(1, energy_kwh=0.25, warnings="hot"), attempt(2, "failed", energy_kwh=0.5)]
    merged = merge(earlier, attempt(3, "ok", energy_kwh=1.0, images_seen=100), kept_kwh=0.2)
    assert (merged["attempts"], merged["energy_kwh"]) == (3, 1.75)
    assert merged["wasted_kwh"] == pytest.approx(0.55)
    assert merged["images_seen"] == 100 and merged["warnings"] == "hot"
    assert (merged["started_at"], merged["ended_at"]) == ("2026-01-15T01:00:00.000Z", "2026-01-15T03:01:00.000Z")
    assert merged["earlier_attempts"] == "attempt-1 attempt-2" and merged["attempt_id"] == "attempt-3"
    assert merged["energy_low_kwh"] == pytest.approx(0.9 * 1.75)


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    merged = merge([attempt(1, codecarbon_kwh=None)], attempt(2, "ok"))
    assert merged["codecarbon_kwh"] is None and merged["energy_kwh"] > 0


@settings(max_examples=50)
@given(st.lists(st.floats(1e-9, 10), min_size=1, max_size=6), st.floats(0, 1))
def test_waste_and_what_was_kept_are_the_earlier_energy(energies: list[float], share: float) -> None:
    earlier = [attempt(number, energy_kwh=energy) for number, energy in enumerate(energies[:-1])]
    kept = share * sum(energies[:-1])
    merged = merge(earlier, attempt(9, "ok", energy_kwh=energies[-1]), kept)
    assert merged["energy_kwh"] == pytest.approx(sum(energies))
    assert merged["wasted_kwh"] + kept + energies[-1] == pytest.approx(merged["energy_kwh"])


def traced(folder: Path, number: int, seconds: int, outcome: str = "killed") -> Record:
    """An attempt with its file: 58 W for so many seconds from hour `number` on."""
    one = attempt(number, outcome, energy_kwh=58 * seconds / J_PER_KWH)
    file = AttemptFile([folder], header(attempt_id=one["attempt_id"], started_at=one["started_at"]))
    for second in range(1, seconds + 1):
        file.write(steady(second).row())
    file.close(remove=False)
    return one


def test_each_attempt_keeps_its_energy_up_to_the_checkpoint_that_was_resumed_from(tmp_path: Path) -> None:
    chain = [traced(tmp_path, number, 60) for number in (1, 2, 3)]
    lineage = ["2026-01-15T01:00:20.000Z", "2026-01-15T03:00:50.500Z"]  # the second attempt saved nothing
    kept_j = kept_kwh(chain, lineage, [tmp_path / "nowhere", tmp_path]) * J_PER_KWH
    assert kept_j == pytest.approx(58 * (20 + 50.5))


def test_a_checkpoint_after_the_last_reading_keeps_all_that_was_read(tmp_path: Path) -> None:
    one = traced(tmp_path, 1, 30)  # killed with its recorder, a moment after it had saved
    assert kept_kwh([one], ["2026-01-15T01:00:30.900Z"], [tmp_path]) == pytest.approx(one["energy_kwh"])


def test_without_a_lineage_or_a_trace_everything_is_waste(tmp_path: Path) -> None:
    one = traced(tmp_path, 1, 30)
    assert kept_kwh([one], [], [tmp_path]) == 0
    assert kept_kwh([one], ["2026-01-15T01:00:20.000Z"], [tmp_path / "nowhere"]) == 0
    assert kept_kwh([one], ["2026-01-14T01:00:20.000Z"], [tmp_path]) == 0  # saved before any of them began


# --- attempts that ended with their recorder ----------------------------------------------------------------


def left_behind(folder: Path, journal: Path, **changes: Any) -> Path:
    """The file of an attempt whose job and recorder are gone."""
    about = {"journal": str(journal), "pid": 2**22 + 1, "pid_started": 1, "node": platform.node()} | changes
    file = AttemptFile([folder], header(**about))
    file.write(steady(7).row())
    file.close(remove=False)
    assert file.path is not None
    return file.path


def test_an_attempt_that_was_left_behind_is_recovered_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, folder = tmp_path / "journal.jsonl", tmp_path / "attempts"
    path = left_behind(folder, journal)
    with path.open("ab") as file:
        file.write(b"[8.0,40")  # killed while writing
    with caplog.at_level(logging.WARNING):
        assert recover(journal, [folder]) == 1
    (line,) = read_journal(journal)
    assert (line["outcome"], line["duration_s"], line["attempt_id"]) == ("killed", 7, "a1")
    assert "train_diffusion unet" in caplog.text and "recorder was ended" in line["warnings"]
    assert recover(journal, [folder]) == 0 and len(read_journal(journal)) == 1


def test_one_that_is_in_the_journal_already_is_not_doubled(tmp_path: Path) -> None:
    journal, folder = tmp_path / "journal.jsonl", tmp_path / "attempts"
    left_behind(folder, journal)
    append_journal(journal, attempt(1) | {"attempt_id": "a1"})  # its recorder died between journal and file
    recover(journal, [folder])
    assert len(read_journal(journal)) == 1


def test_an_attempt_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    journal, folder = tmp_path / "journal.jsonl", tmp_path / "attempts"
    ours = {"pid": os.getpid(), "pid_started": started(os.getpid())}
    left_behind(folder, journal, **ours)
    assert recover(journal, [folder]) == 0
    left_behind(folder, journal, attempt_id="a2", pid=os.getpid(), pid_started=1)  # its pid is another process by now
    assert recover(journal, [folder]) == 1


def test_one_whose_recorder_holds_it_is_left_alone(tmp_path: Path) -> None:
    journal, folder = tmp_path / "journal.jsonl", tmp_path / "attempts"
    with left_behind(folder, journal).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert recover(journal, [folder]) == 0
    assert recover(journal, [folder]) == 1


def test_one_of_another_journal_or_a_node_that_writes_yet_is_left_alone(tmp_path: Path) -> None:
    journal, folder = tmp_path / "journal.jsonl", tmp_path / "attempts"
    left_behind(folder, tmp_path / "other.jsonl")
    path = left_behind(folder, journal, attempt_id="a2", node="another")
    assert recover(journal, [folder]) == 0
    os.utime(path, (1e9, 1e9))
    assert recover(journal, [folder]) == 1


def test_a_file_that_is_none_is_a_warning_and_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, folder = tmp_path / "journal.jsonl", tmp_path / "attempts"
    left_behind(folder, journal)
    (folder / "0.jsonl").write_text("what?\n")
    (folder / "1.jsonl").touch()
    with caplog.at_level(logging.WARNING):
        assert recover(journal, [folder, tmp_path / "nowhere"]) == 1
    assert "0.jsonl" in caplog.text and "1.jsonl" not in caplog.text


def test_elsewhere_stale_is_longer_than_the_longest_interval() -> None:
    assert retries.ELSEWHERE_STALE_S > 10 * 10
