"""The file that grows while an attempt is metered, from which the attempt can be told whatever ends it.

JSON lines. The first is the header: what is metered, where, since when. Then one array a reading, the job's
cumulative figures in the order of `FIELDS`, and objects for what happens once (`{"warning": ...}`,
`{"codecarbon": ...}`, `{"end": ...}`). A line is written whole or taken back; a last line without its end is not
read. The recorder holds a lock on the file as long as it lives.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from emissions.meters.base import J_PER_KWH
from emissions.records import PROGRESS_COLUMNS, WORK_COLUMNS, Record, parse_utc, utc_text
from emissions.uncertainty import STARTUP_ERROR, Interval, combine, unseen

END_BYTES = 4_096  # of a file's end, which hold a few readings
MOST_PENDING = 36_000  # lines that wait in memory for a disk that is full: ten hours at 1 Hz


@dataclass
class Totals:
    """What one attempt has used since its window opened. Joules of a component are None where unknown."""

    t_s: float = 0.0
    cpu_j: float | None = 0.0
    gpu_j: float | None = 0.0
    ram_j: float | None = 0.0
    cpu_low_j: float = 0.0
    cpu_high_j: float = 0.0
    gpu_low_j: float = 0.0
    gpu_high_j: float = 0.0
    ram_low_j: float = 0.0
    ram_high_j: float = 0.0
    idle_j: float | None = 0.0
    startup_j: float = 0.0
    metering_j: float = 0.0
    rest_j: float = 0.0
    node_j: float = 0.0
    psys_j: float | None = 0.0
    cpu_s: float = 0.0
    gpu_integral_j: float | None = 0.0
    gpu_busy_s: float | None = 0.0  # utilisation integrated over time, mean of the GPUs held
    gpu_memory_gb: float | None = 0.0  # highest sum over the GPUs held
    codecarbon_node_j: float | None = None

    def row(self) -> list[float | None]:
        return [_rounded(getattr(self, name)) for name in FIELDS]


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Totals))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True)
class Attempt:
    """An attempt file, read."""

    path: Path
    header: dict[str, Any]
    rows: list[Totals]
    events: list[dict[str, Any]]

    @property
    def totals(self) -> Totals:
        return self.rows[-1] if self.rows else Totals()

    @property
    def warnings(self) -> list[str]:
        return [event["warning"] for event in self.events if "warning" in event]

    @property
    def ended(self) -> bool:
        return any("end" in event for event in self.events)

    @property
    def energy_kwh(self) -> float:
        """Up to the last reading."""
        return _energy_kwh(self.totals)

    def energy_until_kwh(self, moment: datetime) -> float:
        """Energy from the start of the window to a moment in it, between readings by proportion."""
        seconds = (moment - parse_utc(self.header["started_at"])).total_seconds()
        before_s, before_kwh = 0.0, _energy_kwh(self.rows[0], self.rows[0].startup_j) if self.rows else 0.0
        for row in self.rows:
            after_kwh = _energy_kwh(row)
            if row.t_s >= seconds:
                share = (seconds - before_s) / (row.t_s - before_s) if row.t_s > before_s else 1.0
                return before_kwh + max(share, 0.0) * (after_kwh - before_kwh)
            before_s, before_kwh = row.t_s, after_kwh
        return before_kwh


def _energy_kwh(totals: Totals, joules: float | None = None) -> float:
    if joules is None:
        joules = sum(part or 0.0 for part in (totals.cpu_j, totals.gpu_j, totals.ram_j)) + totals.startup_j
    return joules / J_PER_KWH


class AttemptFile:
    """Writes an attempt file. A folder or a disk that refuses costs the trace and never more."""

    def __init__(self, folders: Iterable[Path], header: Mapping[str, Any]) -> None:
        """Opens `{attempt_id}.jsonl` in the first folder that can be written to."""
        self.path: Path | None = None
        self.problem = ""
        self._descriptor = -1
        self._pending: deque[bytes] = deque(maxlen=MOST_PENDING)
        for folder in folders:
            path = folder / f"{header['attempt_id']}.jsonl"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                self.path = path
                break
            except OSError as error:
                self.problem = self.problem or f"the trace cannot be kept in {folder} ({error.strerror})"
        self.write(header)

    def write(self, line: Mapping[str, Any] | Sequence[Any]) -> None:
        """Append a line, and the lines that a full disk has refused so far."""
        self._pending.append(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        if self._descriptor < 0:
            return
        try:
            while self._pending:
                self._append(self._pending[0])
                self._pending.popleft()
        except OSError as error:
            self.problem = self.problem or f"the trace cannot be written to {self.path} ({error.strerror})"

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, size)
            raise OSError(28, "No space left on device")

    def close(self, *, remove: bool) -> None:
        if remove and self.path is not None:
            self.path.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_attempt(path: Path) -> Attempt:
    """Read an attempt file as far as it goes. Raises ValueError naming the file if its header is not whole, OSError."""
    rows: list[Totals] = []
    events: list[dict[str, Any]] = []
    first, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    header = _header(first, path)
    for number, line in enumerate(lines, start=2):
        try:
            content = json.loads(line)
            if isinstance(content, list):
                rows.append(_row(header, content))
            else:
                events.append(dict(content))
        except (ValueError, TypeError, KeyError):
            events.append({"warning": f"{path.name}:{number}: a reading could not be read and is passed over"})
    return Attempt(path, header, rows, events)


def read_end(path: Path) -> Attempt:
    """The header and the last readings alone: quick, however long the attempt has run. Raises as `read_attempt`."""
    with path.open("rb") as file:
        first = file.readline()
        file.seek(max(len(first), os.fstat(file.fileno()).st_size - END_BYTES))
        last = file.read().split(b"\n")
    header = _header(first, path)
    whole = [json.loads(line) for line in last[:-1] if line.startswith(b"[") and line.endswith(b"]")]
    return Attempt(path, header, [_row(header, content) for content in whole], [])


def _header(line: bytes, path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(line)
        parse_utc(header["started_at"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not an attempt's file ({error or 'empty'})") from error
    return header


def _row(header: Mapping[str, Any], content: list[float | None]) -> Totals:
    return Totals(**dict(zip(header["fields"], content, strict=True)))


def record_of(
    header: Mapping[str, Any],
    totals: Totals,
    *,
    outcome: str,
    work: Mapping[str, Any] | None = None,
    codecarbon: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> Record:
    """The record of one attempt, for the journal: the header's facts and the totals in the ledger's columns.

    codecarbon: its row of figures, or None where it has none.
    """
    parts = {
        "cpu": Interval(totals.cpu_j or 0.0, totals.cpu_low_j, totals.cpu_high_j),
        "gpu": Interval(totals.gpu_j or 0.0, totals.gpu_low_j, totals.gpu_high_j),
        "ram": Interval(totals.ram_j or 0.0, totals.ram_low_j, totals.ram_high_j),
    }
    start = totals.startup_j
    startup = Interval(start, (1 - STARTUP_ERROR) * start, (1 + STARTUP_ERROR) * start)
    unseen_j = 0.0 if header["simulated"] else unseen(sum(part.energy for part in (*parts.values(), startup)))
    whole = combine([*parts.values(), startup], unseen_j)
    started = parse_utc(header["started_at"])
    gpu_count, work = len(header["gpus"]), dict(work or {})
    mean_busy = 100 * totals.gpu_busy_s / totals.t_s if totals.gpu_busy_s is not None and totals.t_s > 0 else None
    energies_j = {
        "cpu_kwh": None if totals.cpu_j is None else totals.cpu_j + start,
        "gpu_kwh": totals.gpu_j,
        "ram_kwh": totals.ram_j,
        "energy_kwh": whole.energy,
        "energy_low_kwh": whole.low,
        "energy_high_kwh": whole.high,
        "idle_kwh": totals.idle_j,
        "wasted_kwh": 0.0 if outcome == "ok" else whole.energy,
        "cpu_low_kwh": parts["cpu"].low + startup.low,
        "cpu_high_kwh": parts["cpu"].high + startup.high,
        "gpu_low_kwh": parts["gpu"].low,
        "gpu_high_kwh": parts["gpu"].high,
        "ram_low_kwh": parts["ram"].low,
        "ram_high_kwh": parts["ram"].high,
        "unseen_kwh": unseen_j,
        "startup_kwh": start,
        "metering_kwh": totals.metering_j,
        "node_kwh": totals.node_j,
        "rest_kwh": max(totals.rest_j, 0.0),
        "psys_kwh": totals.psys_j if header["psys"] else None,
        "gpu_integral_kwh": totals.gpu_integral_j if gpu_count else None,
        "codecarbon_node_kwh": totals.codecarbon_node_j if codecarbon else None,
    }
    return {
        "stage": header["stage"],
        "item": header["item"],
        "attempts": 1,
        "outcome": outcome,
        "started_at": utc_text(started),
        "ended_at": utc_text(started + timedelta(seconds=totals.t_s)),
        "duration_s": totals.t_s,
        "node": header["node"],
        "cpu_model": header["cpu_model"],
        "gpu_model": " + ".join(dict.fromkeys(gpu["model"] for gpu in header["gpus"])) or None,
        "gpu_count": gpu_count,
        **{column: None if joules is None else joules / J_PER_KWH for column, joules in energies_j.items()},
        **{f"{part}_method": header["methods"][part] for part in ("cpu", "gpu", "ram")},
        "codecarbon_kwh": float(codecarbon["energy_consumed"]) if codecarbon else None,
        **{column: work.get(column) for column in (*WORK_COLUMNS, *PROGRESS_COLUMNS)},
        **header["factors"],
        "startup_s": header["startup_s"],
        "cpu_s": totals.cpu_s,
        "gpu_utilisation_percent": mean_busy if gpu_count else None,
        "gpu_memory_gb": totals.gpu_memory_gb if gpu_count else None,
        "gpu_detail": json.dumps(header["gpu_detail"]) if header.get("gpu_detail") else None,
        "warnings": "; ".join(dict.fromkeys(warnings)),
        "attempt_id": header["attempt_id"],
        "earlier_attempts": "",
    }


@dataclass(frozen=True)
class TraceRow:
    """Mean power of the job in watts since the previous row; `time` is the end of the interval. None: unknown."""

    time: datetime
    cpu_w: float | None
    gpu_w: float | None
    ram_w: float | None
    gpu_utilisation_percent: float | None


def trace_of(attempt: Attempt) -> list[TraceRow]:
    """Power between the readings of an attempt. A last interval under half the sampling interval is joined to the
    one before it: a counter that advances every 100 ms makes no sense over a few milliseconds."""
    rows, interval_s = list(attempt.rows), attempt.header["interval_s"]
    if len(rows) > 1 and rows[-1].t_s - rows[-2].t_s < interval_s / 2:
        del rows[-2]
    started = parse_utc(attempt.header["started_at"])
    trace: list[TraceRow] = []
    before = Totals()
    for row in rows:
        seconds = row.t_s - before.t_s
        if seconds <= 0:
            continue
        busy = _rate(before.gpu_busy_s, row.gpu_busy_s, seconds) if attempt.header["gpus"] else None
        trace.append(
            TraceRow(
                time=started + timedelta(seconds=row.t_s),
                cpu_w=_rate(before.cpu_j, row.cpu_j, seconds),
                gpu_w=_rate(before.gpu_j, row.gpu_j, seconds),
                ram_w=_rate(before.ram_j, row.ram_j, seconds),
                gpu_utilisation_percent=None if busy is None else 100 * busy,
            )
        )
        before = row
    return trace


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None else max(after - before, 0.0) / seconds


def write_trace(path: str | Path, trace: Sequence[TraceRow]) -> None:
    """Write the trace as Parquet, atomically: `time` (UTC, microseconds), `cpu_w, gpu_w, ram_w,
    gpu_utilisation_percent` (float64, nullable)."""
    import pyarrow as pa  # here, since neither the recorder nor a job that fails needs 0.1 s of import
    import pyarrow.parquet as pq

    from emissions.files import atomic_path

    columns = {"time": pa.array([row.time for row in trace], pa.timestamp("us", tz="UTC"))}
    for field in fields(TraceRow)[1:]:
        columns[field.name] = pa.array([getattr(row, field.name) for row in trace], pa.float64())
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def now_utc() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)
