"""The record of one attempt at a stage, and the journal that keeps every attempt.

A record is a flat dictionary whose keys are `LEDGER_COLUMNS`, stored as JSON. The journal is an append-only
file with one record per line: it is what remains of attempts that failed or were interrupted, so it is never
rewritten. Unknown values are null, never 0. Energies are kWh, times ISO 8601 in UTC.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emissions.files import atomic_path

logger = logging.getLogger(__name__)

Record = dict[str, Any]

# failed: the work raised an error or the command returned one; interrupted, terminated: it was stopped by SIGINT,
# by SIGTERM; killed: it was gone without a word (SIGKILL, out of memory, a lost node).
OUTCOMES = ("ok", "failed", "interrupted", "terminated", "killed")

WORK_COLUMNS = ("images_seen", "samples", "voxels", "flops", "parameters")
# What the job says of its way there: images of earlier attempts, checkpoints written, and pauses for the grid's sake.
PROGRESS_COLUMNS = ("images_resumed", "checkpoints", "checkpoint_s", "paused_s", "paused_kwh")
FACTOR_COLUMNS = ("family", "size", "spatial_dims", "resolution", "sampler", "steps", "devices", "seed")

# Column -> pandas dtype, in the ledger's order. Nullable dtypes, so that an unknown count stays an integer
# column.
LEDGER_DTYPES: dict[str, str] = {
    "stage": "string",
    "item": "string",
    "attempts": "Int64",
    "outcome": "string",
    "started_at": "string",
    "ended_at": "string",
    "duration_s": "Float64",
    "node": "string",
    "cpu_model": "string",
    "gpu_model": "string",
    "gpu_count": "Int64",
    "cpu_kwh": "Float64",
    "gpu_kwh": "Float64",
    "ram_kwh": "Float64",
    "energy_kwh": "Float64",
    "energy_low_kwh": "Float64",
    "energy_high_kwh": "Float64",
    "cpu_method": "string",
    "gpu_method": "string",
    "ram_method": "string",
    "idle_kwh": "Float64",
    "wasted_kwh": "Float64",
    "codecarbon_kwh": "Float64",
    **dict.fromkeys(WORK_COLUMNS, "Int64"),
    "family": "string",
    "size": "string",
    "spatial_dims": "Int64",
    "resolution": "Int64",
    "sampler": "string",
    "steps": "Int64",
    "devices": "Int64",
    "seed": "Int64",
    "cpu_low_kwh": "Float64",
    "cpu_high_kwh": "Float64",
    "gpu_low_kwh": "Float64",
    "gpu_high_kwh": "Float64",
    "ram_low_kwh": "Float64",
    "ram_high_kwh": "Float64",
    "unseen_kwh": "Float64",  # at most, beyond what the sensors see; inside energy_high_kwh
    "startup_s": "Float64",
    "startup_kwh": "Float64",  # of CPU time before the window; inside cpu_kwh
    "metering_kwh": "Float64",  # of the recorder and CodeCarbon, beside energy_kwh
    "cpu_s": "Float64",  # CPU seconds of the job's processes in the window
    "node_kwh": "Float64",  # the whole node's energy in the window
    "rest_kwh": "Float64",  # the part of node_kwh that no metered job and no meter owns
    "psys_kwh": "Float64",  # RAPL's platform domain, which holds packages and more: for comparison only
    "gpu_integral_kwh": "Float64",  # integrated power beside the energy counter
    "gpu_utilisation_percent": "Float64",
    "gpu_memory_gb": "Float64",  # highest sum over the job's GPUs
    "gpu_detail": "string",  # JSON: the figures of each GPU by its UUID
    "codecarbon_node_kwh": "Float64",  # what our meters read in CodeCarbon's own window, of what it reads
    "images_resumed": "Int64",  # of images_seen, those of earlier attempts
    "checkpoints": "Int64",  # written by the last attempt
    "checkpoint_s": "Float64",  # in which it wrote them, in sum
    "paused_s": "Float64",  # told to pause, by all attempts
    "paused_kwh": "Float64",  # used in the pauses; inside energy_kwh
    "warnings": "string",
    "attempt_id": "string",
    "earlier_attempts": "string",  # ids of the attempts whose energy is in this row too
}

LEDGER_COLUMNS: tuple[str, ...] = tuple(LEDGER_DTYPES)

REQUIRED_COLUMNS = (
    "stage",
    "item",
    "attempts",
    "outcome",
    "started_at",
    "ended_at",
    "duration_s",
    "energy_kwh",
    "energy_low_kwh",
    "energy_high_kwh",
    "cpu_method",
    "gpu_method",
    "ram_method",
    "warnings",
    "attempt_id",
)

_JSON_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "Int64": (int,), "Float64": (int, float)}


def is_measured(method: str | None) -> bool:
    """Whether a method reads a sensor.

    `model:...` is an estimate; `none` means that the hardware is not present, `simulated` that its watts were given.
    """
    return bool(method) and method not in ("none", "simulated") and not str(method).startswith("model:")


def utc_text(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and a "Z"; raises ValueError for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError(f"time {moment.isoformat()} has no time zone; use datetime.now(UTC)")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_utc(text: str) -> datetime:
    """The inverse of `utc_text`; raises ValueError unless the text is an ISO 8601 time with a zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no time zone")
    return moment.astimezone(UTC)


def validate_record(record: Mapping[str, Any], source: str) -> Record:
    """A copy with exactly `LEDGER_COLUMNS` as keys, in order; nullable columns that are absent become None.

    Keys that are not columns are dropped: a journal outlives versions of this package.
    Raises ValueError with one line that names `source` and the key.
    """
    for key in REQUIRED_COLUMNS:
        if record.get(key) is None:
            raise ValueError(f"{source}: {key!r} is missing")
    clean: Record = {}
    for key, dtype in LEDGER_DTYPES.items():
        value = record.get(key)
        clean[key] = value if value is None else _checked_value(key, value, dtype, source)
    if clean["outcome"] not in OUTCOMES:
        raise ValueError(f"{source}: 'outcome' is {clean['outcome']!r}; it must be one of {', '.join(OUTCOMES)}")
    for key in ("started_at", "ended_at"):
        try:
            parse_utc(clean[key])
        except ValueError as error:
            raise ValueError(f"{source}: {key!r} is {clean[key]!r}, not an ISO 8601 time in UTC") from error
    if not clean["energy_low_kwh"] <= clean["energy_kwh"] <= clean["energy_high_kwh"]:
        raise ValueError(f"{source}: 'energy_kwh' lies outside energy_low_kwh..energy_high_kwh")
    return clean


def _checked_value(key: str, value: Any, dtype: str, source: str) -> str | int | float:
    wanted: Any = _JSON_TYPES[dtype]  # Any, so that the type checker does not narrow `value` to object
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise ValueError(f"{source}: {key!r} is {value!r}; expected {dtype.lower()}")
    if isinstance(value, str):
        return value
    if not math.isfinite(value) or (value < 0 and key != "seed"):
        raise ValueError(f"{source}: {key!r} is {value!r}; expected a finite number of at least 0")
    return float(value) if dtype == "Float64" else value


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write one record atomically.

    Raises ValueError for keys that are not columns or bad values, OSError on a full disk.
    """
    unknown = sorted(set(record) - set(LEDGER_COLUMNS))
    if unknown:
        raise ValueError(f"{path}: not a column of the ledger: {', '.join(unknown)}")
    text = json.dumps(validate_record(record, str(path)), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_record(path: str | Path) -> Record:
    """Read and validate one record. Raises FileNotFoundError or ValueError with one line naming the file."""
    path = Path(path)
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such record; run the stage that writes it") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a JSON record ({error}); delete it and run its stage again") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a JSON object with the ledger's columns as keys")
    return validate_record(loaded, str(path))


def append_journal(path: str | Path, record: Mapping[str, Any], *, once: bool = False) -> None:
    """Append one attempt to the journal: locked, in one write, flushed to the disk before the lock is
    released.

    once: only if the journal has no line of this attempt yet. A partial write (full disk) is taken back, so
    the journal never keeps half a line of ours. Raises ValueError or OSError.
    """
    path = Path(path)
    line = json.dumps(validate_record(record, str(path)), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        # flock and not lockf: POSIX locks belong to the process, so two threads would not exclude each other.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if once and json.dumps(record["attempt_id"]).encode() in os.pread(descriptor, size, 0):
            return
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # someone was killed half-way; only their line is lost
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(f"{path}: journal line cut short at {written} of {len(line)} bytes; is the disk full?")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)  # releases the lock


def read_journal(path: str | Path) -> list[Record]:
    """All attempts in the order they ended; no journal is an empty list.

    Corrupt lines are skipped with a warning. A later line of the same attempt corrects the earlier one: a job
    that said "ok" was killed before its process had ended.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    attempts: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            loaded = json.loads(line)
            if not isinstance(loaded, dict):
                raise ValueError("not a JSON object")
            attempt = validate_record(loaded, f"{path}:{number}")
            attempts[attempt["attempt_id"]] = attempt
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            reason = str(error).removeprefix(f"{path}:{number}: ")
            logger.warning("%s:%d: corrupt journal line skipped (%s)", path, number, reason)
    return list(attempts.values())
