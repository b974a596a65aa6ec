"""The ledger: one row per stage and item of the plan, from their records.

Each joule is in it once: a record holds all attempts at its stage since the last success (`emissions.retries`), and
a shared stage has one row however many runs use it. The journal has the single attempts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emissions import retries
from emissions.job import attempt_folders
from emissions.phases import STAGES, phase_of
from emissions.records import LEDGER_COLUMNS, LEDGER_DTYPES, Record, read_journal, read_record
from emissions.tables import read_table, write_table

logger = logging.getLogger(__name__)

ATTEMPT_COLUMNS = (
    "stage", "item", "attempt_id", "outcome", "started_at", "ended_at", "duration_s", "energy_kwh",
)  # fmt: skip


def collect_ledger(
    plan_rows: pd.DataFrame | Sequence[dict[str, Any]], record_paths: Iterable[str | Path]
) -> pd.DataFrame:
    """One row per record, in `LEDGER_COLUMNS`: stages in the study's order, items in the plan's.

    The same plan and records give the same table.

    Raises ValueError naming the record that is missing, corrupt, twice there or not of this plan.
    """
    rows = _records(pd.DataFrame(plan_rows), record_paths)
    return _typed(pd.DataFrame(rows, columns=list(LEDGER_COLUMNS)))


def collect_attempts(
    plan_rows: pd.DataFrame | Sequence[dict[str, Any]],
    record_paths: Iterable[str | Path],
    journal_path: str | Path,
) -> pd.DataFrame:
    """The attempts behind the ledger's rows, `ATTEMPT_COLUMNS`, so that each is priced at its own time.

    Those whose journal line is lost are missing, with a warning: their energy is in the record all the same. Raises
    as above.
    """
    journal = {attempt["attempt_id"]: attempt for attempt in read_journal(journal_path)}
    rows = []
    for record in _records(pd.DataFrame(plan_rows), record_paths):
        earlier = (record["earlier_attempts"] or "").split()
        for lost in (attempt_id for attempt_id in earlier if attempt_id not in journal):
            logger.warning("%s has no line of attempt %s of %s %s", journal_path, lost, record["stage"], record["item"])
        known = [journal[attempt_id] for attempt_id in earlier if attempt_id in journal]
        attempts = [*known, journal.get(record["attempt_id"]) or _own(record, known)]
        rows += [{column: attempt[column] for column in ATTEMPT_COLUMNS} for attempt in attempts]
    return pd.DataFrame(rows, columns=list(ATTEMPT_COLUMNS))


def _own(record: Record, earlier: Sequence[Record]) -> Record:
    """The record's own attempt, where the journal does not have it: the record without the earlier ones."""
    energy_kwh = record["energy_kwh"] - sum(attempt["energy_kwh"] for attempt in earlier)
    duration_s = record["duration_s"] - sum(attempt["duration_s"] for attempt in earlier)
    started_at = max([record["started_at"], *(attempt["ended_at"] for attempt in earlier)])
    return record | {"energy_kwh": max(energy_kwh, 0.0), "duration_s": duration_s, "started_at": started_at}


def write_ledger(
    plan_path: str | Path,
    record_paths: Iterable[str | Path],
    journal_path: str | Path,
    ledger_path: str | Path,
    attempts_path: str | Path,
) -> None:
    """Read the plan's table and write the ledger and its attempts as CSV. Raises ValueError or OSError.

    First, attempts that ended together with their recorder are put into the journal.
    """
    journal = Path(journal_path).absolute()
    retries.recover(journal, attempt_folders(journal))
    plan, paths = read_table(plan_path, required=("run",)), list(record_paths)
    write_table(collect_ledger(plan, paths), ledger_path)
    write_table(collect_attempts(plan, paths, journal_path), attempts_path)


def read_ledger(path: str | Path) -> pd.DataFrame:
    """A ledger (or a priced one) with the dtypes of `LEDGER_DTYPES`. Raises ValueError or OSError naming the
    file.
    """
    table = read_table(path, required=LEDGER_COLUMNS)
    try:
        return _typed(table)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a ledger ({error})") from error


def record_key(path: str | Path) -> tuple[str, str]:
    """Stage and item of a record's (or a trace's) path, `results/.../{item}/emissions/{stage}.json`."""
    return Path(path).name.split(".")[0], Path(path).parent.parent.name


def _records(plan: pd.DataFrame, record_paths: Iterable[str | Path]) -> list[Record]:
    """The records, stages in the study's order and items in the plan's."""
    records = {}
    for path in record_paths:
        record = _read(path)
        key = (record["stage"], record["item"])
        if key in records:
            raise ValueError(f"{path}: a second record of {key[0]} {key[1]}")
        records[key] = record
    order = _plan_order(plan)
    for stage, item in records:
        if (stage, item) not in order:
            raise ValueError(f"record of {stage} {item}: the plan has no such {phase_of(stage).key}")
    return [records[key] for key in sorted(records, key=order.__getitem__)]


def _read(path: str | Path) -> Record:
    try:
        record = read_record(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    found, expected = (record["stage"], record["item"]), record_key(path)
    if found != expected:
        raise ValueError(f"{path}: is a record of {' '.join(found)}, not of {' '.join(expected)}")
    if record["outcome"] != "ok":
        raise ValueError(f"{path}: its stage did not succeed ({record['outcome']}); delete it and run its stage again")
    return record


def _plan_order(plan: pd.DataFrame) -> dict[tuple[str, str], int]:
    """(stage, item) -> place in the ledger, for every stage and item that a plan can have."""
    keys = [
        (stage, str(item))
        for stage, phase in STAGES.items()
        if phase.key in plan.columns
        for item in plan[phase.key].unique()
    ]
    return {key: place for place, key in enumerate(keys)}


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    for column, dtype in LEDGER_DTYPES.items():
        try:
            table[column] = table[column].astype(dtype)  # type: ignore[call-overload]
        except OverflowError:  # FLOPs of a long training do not fit 64 bits
            table[column] = table[column].astype("Float64")
    return table
