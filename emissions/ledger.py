"""The ledger: one row per stage and item of the plan, from the records and the journal of attempts.

Each joule is in it once: an attempt counts for one row, by its `attempt_id`, and a shared stage has one row
however many runs use it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emissions.phases import STAGES, phase_of
from emissions.records import LEDGER_COLUMNS, LEDGER_DTYPES, Record, read_journal, read_record
from emissions.tables import read_table, write_table

logger = logging.getLogger(__name__)

# Sums over the attempts of a row. Work done and hardware are those of the attempt that succeeded.
SUMMED_COLUMNS = (
    "duration_s", "startup_s", "cpu_kwh", "gpu_kwh", "ram_kwh", "energy_kwh", "energy_low_kwh",
    "energy_high_kwh", "idle_kwh", "codecarbon_kwh",
)  # fmt: skip
ATTEMPT_COLUMNS = (
    "stage", "item", "attempt_id", "outcome", "started_at", "ended_at", "duration_s", "energy_kwh",
)  # fmt: skip


def collect_ledger(
    plan_rows: pd.DataFrame | Sequence[dict[str, Any]],
    record_paths: Iterable[str | Path],
    journal_path: str | Path,
) -> pd.DataFrame:
    """One row per record, in `LEDGER_COLUMNS`: stages in the study's order, items in the plan's.

    A row adds the attempts that failed or were interrupted since the item's previous ok one: energies and
    durations are sums, `wasted_kwh` is what those attempts took, `started_at` is the first attempt's. A sum
    is null when a part of it is unknown. The same plan, records and journal give the same table.

    Raises ValueError naming the record that is missing, corrupt, twice there or not of this plan.
    """
    plan = pd.DataFrame(plan_rows)
    rows = [_merge(attempts) for attempts in _counted(plan, record_paths, journal_path)]
    return _typed(pd.DataFrame(rows, columns=list(LEDGER_COLUMNS)))


def collect_attempts(
    plan_rows: pd.DataFrame | Sequence[dict[str, Any]],
    record_paths: Iterable[str | Path],
    journal_path: str | Path,
) -> pd.DataFrame:
    """The attempts behind the ledger's rows, `ATTEMPT_COLUMNS`, so that each is priced at its own time.
    Raises as above.
    """
    counted = _counted(pd.DataFrame(plan_rows), record_paths, journal_path)
    rows = [{column: attempt[column] for column in ATTEMPT_COLUMNS} for attempts in counted for attempt in attempts]
    return pd.DataFrame(rows, columns=list(ATTEMPT_COLUMNS))


def write_ledger(
    plan_path: str | Path,
    record_paths: Iterable[str | Path],
    journal_path: str | Path,
    ledger_path: str | Path,
    attempts_path: str | Path,
) -> None:
    """Read the plan's table and write the ledger and its attempts as CSV. Raises ValueError or OSError."""
    plan, paths = read_table(plan_path, required=("run",)), list(record_paths)
    write_table(collect_ledger(plan, paths, journal_path), ledger_path)
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


def _counted(plan: pd.DataFrame, record_paths: Iterable[str | Path], journal_path: str | Path) -> list[list[Record]]:
    """For each row of the ledger its attempts by start, the ok one last."""
    journal = {attempt["attempt_id"]: attempt for attempt in read_journal(journal_path)}
    attempts: dict[tuple[str, str], list[Record]] = {}
    for attempt in journal.values():
        attempts.setdefault((attempt["stage"], attempt["item"]), []).append(attempt)
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
    return [_attempts_of(records[key], attempts.get(key, [])) for key in sorted(records, key=order.__getitem__)]


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


def _attempts_of(record: Record, journal: list[Record]) -> list[Record]:
    """The failed and interrupted attempts since the previous ok one, then the record's own.

    By time and not by line, so that a record whose own journal line was lost still finds the attempts before
    it.
    """
    pending: list[Record] = []
    for attempt in sorted(journal, key=lambda attempt: attempt["started_at"]):
        if attempt["attempt_id"] == record["attempt_id"] or attempt["started_at"] > record["started_at"]:
            break
        pending = [] if attempt["outcome"] == "ok" else [*pending, attempt]
    return [*pending, record]


def _merge(attempts: list[Record]) -> Record:
    *wasted, final = attempts
    row = dict(final)
    for column in SUMMED_COLUMNS:
        values = [attempt[column] for attempt in attempts]
        row[column] = None if None in values else sum(values)  # a partly known sum would pass for a whole one
    row["attempts"] = len(attempts)
    row["started_at"] = attempts[0]["started_at"]
    row["wasted_kwh"] = float(sum(attempt["energy_kwh"] for attempt in wasted))
    row["warnings"] = "; ".join(dict.fromkeys(attempt["warnings"] for attempt in attempts if attempt["warnings"]))
    return row


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    for column, dtype in LEDGER_DTYPES.items():
        try:
            table[column] = table[column].astype(dtype)  # type: ignore[call-overload]
        except OverflowError:  # FLOPs of a long training do not fit 64 bits
            table[column] = table[column].astype("Float64")
    return table
