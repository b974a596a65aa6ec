"""Attempts that belong together: what a stage's earlier attempts used, and how much of it was wasted.

A row of the ledger holds every attempt at a stage since its last success. Of an attempt that a later one resumed
from, the energy up to the checkpoint was kept, and what came after it is waste; of all other attempts everything is.
"""

from __future__ import annotations

import fcntl
import logging
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from emissions.attempt_file import Attempt, read_attempt, record_of
from emissions.processes import started
from emissions.records import Record, append_journal, parse_utc

logger = logging.getLogger(__name__)

# Sums over the attempts of a row. Hardware is that of the attempt that succeeded.
SUMMED_COLUMNS = (
    "duration_s", "startup_s", "cpu_s", "cpu_kwh", "gpu_kwh", "ram_kwh", "energy_kwh", "energy_low_kwh",
    "energy_high_kwh", "cpu_low_kwh", "cpu_high_kwh", "gpu_low_kwh", "gpu_high_kwh", "ram_low_kwh", "ram_high_kwh",
    "unseen_kwh", "idle_kwh", "startup_kwh", "metering_kwh", "node_kwh", "rest_kwh", "psys_kwh", "gpu_integral_kwh",
    "codecarbon_kwh", "codecarbon_node_kwh", "paused_s", "paused_kwh",
)  # fmt: skip
ELSEWHERE_STALE_S = 300.0  # an attempt of another node is over when its file has not grown for so long


def earlier_attempts(journal: Iterable[Record], record: Mapping[str, Any]) -> list[Record]:
    """The attempts at the record's stage and item that ended without success, since the success before it."""
    pending: list[Record] = []
    for attempt in sorted(journal, key=lambda attempt: attempt["started_at"]):
        if (attempt["stage"], attempt["item"]) != (record["stage"], record["item"]):
            continue
        if attempt["attempt_id"] == record["attempt_id"] or attempt["started_at"] > record["started_at"]:
            break
        pending = [] if attempt["outcome"] == "ok" else [*pending, attempt]
    return pending


def merge(earlier: Sequence[Record], record: Record, kept_kwh: float = 0.0) -> Record:
    """The record with everything that its earlier attempts used; `kept_kwh` of theirs was not wasted.

    A sum is null when a part of it is unknown: a partly known sum would pass for a whole one.
    """
    merged = dict(record)
    attempts = [*earlier, record]
    for column in SUMMED_COLUMNS:
        values = [attempt[column] for attempt in attempts]
        merged[column] = None if None in values else sum(values)
    merged["attempts"] = len(attempts)
    merged["started_at"] = attempts[0]["started_at"]
    merged["wasted_kwh"] = max(sum(attempt["energy_kwh"] for attempt in earlier) - kept_kwh, 0.0)
    merged["warnings"] = "; ".join(dict.fromkeys(attempt["warnings"] for attempt in attempts if attempt["warnings"]))
    merged["earlier_attempts"] = " ".join(attempt["attempt_id"] for attempt in earlier)
    return merged


def kept_kwh(earlier: Sequence[Record], resumed_from: Iterable[str], folders: Sequence[Path]) -> float:
    """Energy of earlier attempts whose work was kept: up to the checkpoint that a later one resumed from.

    Args:
        earlier: attempts without success.
        resumed_from: when the checkpoints in the final training's lineage were saved, UTC.
        folders: where the attempts' files are; an attempt without one is taken to be wasted.
    """
    kept_until: dict[str, datetime] = {}
    for moment in sorted(parse_utc(text) for text in resumed_from):
        # not "in the attempt's window": one that was killed with its recorder may have saved after its last reading
        begun = [attempt for attempt in earlier if parse_utc(attempt["started_at"]) <= moment]
        if begun:
            kept_until[max(begun, key=lambda attempt: attempt["started_at"])["attempt_id"]] = moment
    return sum(_energy_until_kwh(attempt_id, moment, folders) for attempt_id, moment in kept_until.items())


def _energy_until_kwh(attempt_id: str, moment: datetime, folders: Sequence[Path]) -> float:
    files = [path for folder in folders if (path := folder / f"{attempt_id}.jsonl").is_file()]
    return read_attempt(files[0]).energy_until_kwh(moment) if files else 0.0


def recover(journal: Path, folders: Iterable[Path]) -> int:
    """Put attempts into the journal that ended together with their recorder; returns how many.

    A scheduler that ends a whole job, or a lost node, takes the recorder too: the attempt is rebuilt from its file
    and is "killed". Never raises for a file: one that cannot be read is a warning.
    """
    recovered = 0
    for path in sorted(path for folder in folders if folder.is_dir() for path in folder.glob("*.jsonl")):
        try:
            recovered += _recover(path, journal)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("an attempt could not be recovered: %s", error)
    return recovered


def _recover(path: Path, journal: Path) -> bool:
    if path.stat().st_size == 0:
        return False  # its recorder is about to write to it
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # its recorder lives
        attempt = read_attempt(path)
        if attempt.ended or Path(attempt.header["journal"]) != journal or not _is_over(attempt):
            return False
        record = _record_of(attempt)
        append_journal(journal, record, once=True)
        # the last line may be half a line of a recorder that was killed while writing
        file.write(b'\n{"end":"' + record["outcome"].encode() + b'"}\n')
    logger.warning("%s %s: an earlier attempt is in the journal now", record["stage"], record["item"])
    return True


def _record_of(attempt: Attempt) -> Record:
    """As the recorder could not write it into the journal, or of an attempt that was killed with its recorder."""
    for event in attempt.events:
        if "record" in event:
            return dict(event["record"])
    lost = "the recorder was ended with the job: what came after the last reading is missing"
    warnings = [*attempt.warnings, lost]
    return record_of(attempt.header, attempt.totals, outcome="killed", warnings=warnings)


def _is_over(attempt: Attempt) -> bool:
    header = attempt.header
    if any("record" in event for event in attempt.events):
        return True
    if header["node"] == platform.node():
        return started(header["pid"]) != header["pid_started"]
    return time.time() - attempt.path.stat().st_mtime > ELSEWHERE_STALE_S
