"""What waiting and pausing saved, against the same work at once: `results/emissions/savings.csv`.

The counterfactual is the very work that was measured, without its pauses and as early as it could have been: every
attempt is moved forward by the wait for the planned start, and by the pauses of other jobs that had ended before it
began; its own pauses are cut out of it. Energy used in a pause (of a process that idles, and of its checkpoint) is in
what was emitted and not in the counterfactual, which makes the saving smaller and not larger. Both are priced by the
same signal, PUE and power trace.

Energy of a pause whose training was killed in it is not known: it is taken as that of the attempt's mean power, which
takes too much from the counterfactual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emissions.acting.pauses import Pause, read_pauses
from emissions.acting.starts import read_starts
from emissions.grid.choice import chosen_intensity
from emissions.grid.intensity import CarbonIntensity
from emissions.ledger import read_ledger
from emissions.pricing import check_pue, mean_intensity_g_per_kwh, operational_emissions_g, read_traces
from emissions.records import parse_utc, utc_text
from emissions.tables import read_table, write_table

SAVINGS_COLUMNS = (
    "stage", "item", "attempt_id", "started_at", "at_once_started_at", "moved_h", "pauses", "paused_h", "energy_kwh",
    "paused_kwh", "carbon_intensity_g_per_kwh", "at_once_g_per_kwh", "emissions_g", "at_once_g", "saved_g", "zone",
    "pue", "intensity_kind", "intensity_hash",
)  # fmt: skip


@dataclass(frozen=True)
class Own:
    """The pauses of one attempt, each with an end, and with their energy."""

    spans: tuple[tuple[datetime, datetime], ...]
    energy_kwh: float

    @property
    def length(self) -> timedelta:
        return sum((end - begin for begin, end in self.spans), timedelta())


def measure_savings(
    attempts: pd.DataFrame,
    intensity: CarbonIntensity,
    pue: float,
    starts: Sequence[Mapping[str, Any]] = (),
    pauses: Sequence[Pause] = (),
    traces: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """A row per attempt with `SAVINGS_COLUMNS`: what it emitted, and what it would have at once.

    attempts: with `stage, item, attempt_id, started_at, ended_at, energy_kwh`. starts: `starts.read_starts`. traces: of
    attempts that have one, by their id; others used their energy evenly.

    Raises ValueError for a PUE below 1, GapError where the signal has no value.
    """
    check_pue(pue)
    rows = []
    for row in attempts.to_dict("records"):
        start, end, energy_kwh = parse_utc(row["started_at"]), parse_utc(row["ended_at"]), float(row["energy_kwh"])
        own = _own(row["attempt_id"], start, end, energy_kwh, pauses)
        others = [pause for pause in pauses if pause.attempt_id != row["attempt_id"]]
        moved = _moved(start, starts, others)
        trace = (traces or {}).get(row["attempt_id"])
        mean_g = mean_intensity_g_per_kwh(intensity, start, end, trace)
        at_once = start - moved, max(end - moved - own.length, start - moved)
        at_once_g = mean_intensity_g_per_kwh(intensity, *at_once, _at_once_trace(trace, own.spans, moved))
        rows.append(
            {
                **{key: row[key] for key in ("stage", "item", "attempt_id", "started_at")},
                "at_once_started_at": utc_text(at_once[0]),
                "moved_h": moved.total_seconds() / 3600,
                "pauses": len(own.spans),
                "paused_h": own.length.total_seconds() / 3600,
                "energy_kwh": energy_kwh,
                "paused_kwh": own.energy_kwh,
                "carbon_intensity_g_per_kwh": mean_g,
                "at_once_g_per_kwh": at_once_g,
                "emissions_g": operational_emissions_g(energy_kwh, pue, mean_g),
                "at_once_g": operational_emissions_g(energy_kwh - own.energy_kwh, pue, at_once_g),
            }
        )
    table = pd.DataFrame(rows, columns=list(SAVINGS_COLUMNS))
    table["saved_g"] = table["at_once_g"] - table["emissions_g"]
    kinds = {"intensity_kind": intensity.kind, "intensity_hash": intensity.data_hash}
    return table.assign(zone=intensity.zone.zone, pue=float(pue), **kinds)


def _own(attempt_id: str, start: datetime, end: datetime, energy_kwh: float, pauses: Sequence[Pause]) -> Own:
    spans, paused_kwh = [], 0.0
    for pause in pauses:
        if pause.attempt_id != attempt_id:
            continue
        span = max(pause.began_at, start), min(pause.ended_at or end, end)
        if span[1] <= span[0]:
            continue
        spans.append(span)
        evenly_kwh = energy_kwh * ((span[1] - span[0]) / (end - start))
        paused_kwh += evenly_kwh if pause.energy_kwh is None else pause.energy_kwh
    return Own(tuple(spans), min(paused_kwh, energy_kwh))


def _moved(start: datetime, starts: Sequence[Mapping[str, Any]], others: Iterable[Pause]) -> timedelta:
    """By how much earlier an attempt would have begun: the wait of its request, and pauses that ended before it."""
    requested: datetime | None = None  # one that asks for nothing does not wait, and does not pause
    moved = timedelta()
    for plan in starts:
        asked, done = parse_utc(plan["requested_at"]), plan.get("done_at")
        if asked <= start and not (done and parse_utc(done) <= start):
            requested, moved = asked, min(start, parse_utc(plan["planned_start"])) - asked
    if requested is None:
        return moved
    covered = requested  # pauses of two jobs at the same time are one wait for what comes after them
    for pause in sorted(others, key=lambda pause: pause.began_at):
        if pause.ended_at is not None and covered < pause.ended_at <= start:
            moved += pause.ended_at - max(pause.began_at, covered)
            covered = pause.ended_at
    return moved


def _at_once_trace(
    trace: pd.DataFrame | None, pauses: Sequence[tuple[datetime, datetime]], moved: timedelta
) -> pd.DataFrame | None:
    """The power trace with the pauses cut out, at the times of the counterfactual."""
    if trace is None or trace.empty:
        return None
    time = pd.to_datetime(trace["time"], utc=True)
    keep = np.ones(len(trace), dtype=bool)
    shift = pd.Series(pd.Timedelta(moved), index=trace.index)
    for begin, end in pauses:
        keep &= ~((time > begin) & (time <= end)).to_numpy()
        shift += (time > end).map({True: pd.Timedelta(end - begin), False: pd.Timedelta(0)})
    return trace.assign(time=time - shift)[keep]


def write_savings(
    ledger_path: str | Path,
    attempts_path: str | Path,
    trace_paths: Iterable[str | Path],
    starts_path: str | Path,
    pauses_path: str | Path,
    savings_path: str | Path,
    carbon: Mapping[str, Any],
    intensity_path: str | Path | None = None,
) -> None:
    """Read a study's attempts, planned starts and pauses, and write what these saved.

    intensity_path: as `pricing.write_prices` has it. Raises ValueError or OSError naming what is missing or wrong.
    """
    ledger = read_ledger(ledger_path)
    attempts = read_table(attempts_path, required=("attempt_id", "started_at", "ended_at", "energy_kwh"))
    intensity = chosen_intensity(carbon, intensity_path)
    last = dict(zip(zip(ledger["stage"], ledger["item"], strict=True), ledger["attempt_id"], strict=True))
    traces = {last[key]: trace for key, trace in read_traces(ledger, trace_paths, intensity.step).items()}
    starts, pauses = read_starts(Path(starts_path)), read_pauses(Path(pauses_path))
    write_table(measure_savings(attempts, intensity, carbon["pue"], starts, pauses, traces), savings_path)


def savings_text(savings: Mapping[str, float], mass_text: Callable[[float], str]) -> str:
    """What `savings_of` says, in one line."""
    saved = f"{mass_text(abs(savings['saved_g']))} {'saved' if savings['saved_g'] >= 0 else 'lost'}"
    did = [f"waited {_span(savings['waited_h'])}"] if savings["waited_h"] else []
    if savings["pauses"]:
        did.append(f"{savings['pauses']:.0f} pause{'s' * (savings['pauses'] > 1)} of {_span(savings['paused_h'])}")
    return f"{', '.join(did)}: {saved} ({savings['saved_percent']:+.1f} %) against the same work at once"


def _span(hours: float) -> str:
    seconds = 3600 * hours
    return f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def savings_of(table: pd.DataFrame) -> dict[str, float]:
    """A study's sums: `moved_h` is that of its first attempt that was moved, the wait for the start."""
    sums = {name: float(table[name].sum()) for name in ("pauses", "paused_h", "emissions_g", "at_once_g", "saved_g")}
    moved = table.loc[table["moved_h"] > 0].sort_values("started_at")["moved_h"]
    percent = 100 * sums["saved_g"] / sums["at_once_g"] if sums["at_once_g"] > 0 else float("nan")
    return sums | {"waited_h": float(moved.iloc[0]) if len(moved) else 0.0, "saved_percent": percent}
