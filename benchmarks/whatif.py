"""A million rows of work in all zones of the tables and all months: ours beside plain pandas, from the same file.

Each way reads the file and sums in a process of its own, so that its peak memory is its own. The plain ways that would
take too long do the first rows only, which is said, and that part of their time is taken per row.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, this file finds only its neighbours

from machine import machine, peak_mb, tell  # noqa: E402, tell

from emissions.grid.intensity import TypicalYearIntensity, intensity_of  # noqa: E402
from emissions.grid.local_time import by_local_hour  # noqa: E402
from emissions.grid.zones import data_table  # noqa: E402
from emissions.whatif import whatif  # noqa: E402
from emissions.work import read_work  # noqa: E402

YEAR = 2024
BEGIN = pd.Timestamp("2024-01-01T00:00Z")
SHORTEST_S, LONGEST_S = 1.0, 3 * 86_400.0
AIM_S, AIM_MB = 10.0, 2000.0
CHUNK_ROWS = 200  # of the work, in one cross join: with 352 zones and 12 months 845,000 rows
MONTHS, HOURS, SUMS, JOIN_MONTHS, JOIN_HOURS = (
    "ours, months", "ours, months and hours", "pandas, sum first", "pandas, months", "pandas, months and hours",
)  # fmt: skip
SAYS = {
    MONTHS: "read_work, whatif: totals, their 90 % bounds and where the intensities come from",
    HOURS: "the same with hours=range(24): the work begins at each local hour",
    SUMS: "energy added up before it meets the intensities; totals only, months only",
    JOIN_MONTHS: "cross join of rows and zone-months in chunks, groupby, sum; totals only",
    JOIN_HOURS: "each row cut into hours, merged with what it meets for each zone, month and start; totals only",
}
AGAINST = {SUMS: MONTHS, JOIN_MONTHS: MONTHS, JOIN_HOURS: HOURS}  # what each plain way is held against
QUICK_ZONES = ("DE", "SE-SE1", "IN-WE", "AU-TAS", "AE")  # the last has an annual value only
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Task:
    """How much is done. join_rows, join_hours_rows: the first rows that the plain ways join; ours does them all."""

    path: Path
    rows: int = 1_000_000
    zones: tuple[str, ...] | None = None  # None: all that have an annual value
    join_rows: int = 2000
    join_hours_rows: int = 20
    rounds: int = 3

    def zone_names(self) -> list[str]:
        return [str(zone) for zone in self.zones or data_table("annual_intensity.csv")["zone"]]


def ledger_like(rows: int, seed: int = 4) -> pd.DataFrame:
    """Work over a year, with times as a ledger has them; as many rows from one to two seconds as from one to two
    days."""
    draw = np.random.default_rng(seed)
    duration_ms = 1000 * np.exp(draw.uniform(math.log(SHORTEST_S), math.log(LONGEST_S), rows))
    started_ms = BEGIN.value // 10**6 + draw.integers(0, 366 * 86_400_000, rows)
    energy_kwh = duration_ms / 3.6e6 * draw.uniform(0.05, 0.7, rows)
    return pd.DataFrame(
        {
            "stage": draw.choice(["train_diffusion", "train_autoencoder", "sample", "evaluate"], rows),
            "item": [f"item-{number}" for number in range(rows)],
            "family": draw.choice(["ldm", "ddpm"], rows),
            "size": draw.choice(["small", "medium", "large"], rows),
            "started_at": _iso(started_ms),
            "ended_at": _iso(started_ms + duration_ms.astype(np.int64)),
            "duration_s": duration_ms.astype(np.int64) / 1000,
            "energy_kwh": energy_kwh,
            "energy_low_kwh": 0.8 * energy_kwh,
            "energy_high_kwh": 1.3 * energy_kwh,
        }
    )


def _iso(unix_ms: np.ndarray) -> pd.Series:
    return pd.Series(np.datetime_as_string(unix_ms.astype("datetime64[ms]"), unit="ms")).astype("str") + "Z"


# ---------------------------------------------------------------------------------------------------------- the ways


@dataclass(frozen=True)
class Done:
    """read_s: of the whole file; sum_s: for `rows` of it. totals_g: of the first rows, which every way does."""

    read_s: float
    sum_s: float
    rows: int
    totals_g: pd.Series


def ours(task: Task, hours: range | None, same_rows: int) -> Done:
    began = time.perf_counter()
    work = read_work(task.path)
    read = time.perf_counter()
    whatif(work, task.zone_names(), hours=hours, year=YEAR)
    ended = time.perf_counter()
    same = whatif(work.head(same_rows), task.zone_names(), hours=hours, year=YEAR)
    keys = ["zone", "month", *(["hour"] if hours is not None else [])]
    return Done(read - began, ended - read, len(work), same.set_index(keys)["emissions_g"])


def local_tables(task: Task) -> dict[str, np.ndarray]:
    """gCO2e/kWh by month and local hour, (12, 24), of each zone."""
    tables = {}
    for name in task.zone_names():
        signal = intensity_of(name, YEAR)
        if isinstance(signal, TypicalYearIntensity):
            tables[name] = by_local_hour(signal.table_g_per_kwh, signal.zone.timezone, YEAR)
        else:
            tables[name] = np.full((12, 24), signal.at(BEGIN))
    return tables


def zone_months(task: Task) -> pd.DataFrame:
    """zone, month, g_per_kwh: a row for each zone and month."""
    tables = local_tables(task)
    names = pd.Categorical(np.repeat(list(tables), 12), categories=list(tables))
    months = np.tile(np.arange(1, 13), len(tables))
    return pd.DataFrame({"zone": names, "month": months, "g_per_kwh": np.array(list(tables.values())).mean(2).ravel()})


def zone_month_starts(task: Task) -> pd.DataFrame:
    """zone, month, hour, since, g_per_kwh: what work that begins at that local hour meets `since` hours later."""
    tables = local_tables(task)
    place, month, hour, since = np.indices((len(tables), 12, 24, 24)).reshape(4, -1)
    values = np.array(list(tables.values()))[place, month, (hour + since) % 24]
    zones = pd.Categorical.from_codes(place, categories=list(tables))
    return pd.DataFrame({"zone": zones, "month": month + 1, "hour": hour, "since": since, "g_per_kwh": values})


def pandas_sum_first(task: Task) -> Done:
    intensities = zone_months(task)
    began = time.perf_counter()
    work = pd.read_parquet(task.path)
    read = time.perf_counter()
    intensities["emissions_g"] = work["energy_kwh"].sum() * intensities["g_per_kwh"]
    ended = time.perf_counter()
    same_kwh = work["energy_kwh"].head(task.join_rows).sum()
    totals = intensities.set_index(["zone", "month"])["g_per_kwh"] * same_kwh
    return Done(read - began, ended - read, len(work), totals)


def pandas_months(task: Task) -> Done:
    intensities = zone_months(task)
    began = time.perf_counter()
    work = pd.read_parquet(task.path)
    read = time.perf_counter()
    rows = work[["energy_kwh"]].head(task.join_rows)
    parts = []
    for first in range(0, len(rows), CHUNK_ROWS):
        joined = rows.iloc[first : first + CHUNK_ROWS].merge(intensities, how="cross")
        joined["emissions_g"] = joined["energy_kwh"] * joined["g_per_kwh"]
        parts.append(joined.groupby(["zone", "month"], observed=True)["emissions_g"].sum())
    totals = pd.concat(parts).groupby(["zone", "month"], observed=True).sum()
    return Done(read - began, time.perf_counter() - read, len(rows), totals)


def in_hours(row: Any, begin: pd.Timestamp) -> pd.DataFrame:
    """since, energy_kwh: one row's energy, evenly in time, in hours since all the work began, days upon each other."""
    first_h, last_h = ((pd.Timestamp(text) - begin).total_seconds() / 3600 for text in (row.started_at, row.ended_at))
    hours = np.arange(math.floor(first_h), math.ceil(last_h))
    inside_h = np.minimum(last_h, hours + 1) - np.maximum(first_h, hours)
    parts = pd.DataFrame({"since": hours % 24, "energy_kwh": row.energy_kwh * inside_h / (last_h - first_h)})
    return parts.groupby("since", as_index=False)["energy_kwh"].sum()


def pandas_hours(task: Task) -> Done:
    intensities = zone_month_starts(task)
    keys = ["zone", "month", "hour"]
    began = time.perf_counter()
    work = pd.read_parquet(task.path)
    read = time.perf_counter()
    rows = work.head(task.join_hours_rows)
    begin = pd.to_datetime(rows["started_at"], utc=True).min()
    parts = []
    for row in rows.itertuples():
        joined = in_hours(row, begin).merge(intensities, on="since")
        joined["emissions_g"] = joined["energy_kwh"] * joined["g_per_kwh"]
        parts.append(joined.groupby(keys, observed=True)["emissions_g"].sum())
    totals = pd.concat(parts).groupby(keys, observed=True).sum()
    return Done(read - began, time.perf_counter() - read, len(rows), totals)


def ours_months(task: Task) -> Done:
    return ours(task, None, task.join_rows)


def ours_hours(task: Task) -> Done:
    return ours(task, range(24), task.join_hours_rows)


WAYS: dict[str, Callable[[Task], Done]] = {
    MONTHS: ours_months,
    HOURS: ours_hours,
    SUMS: pandas_sum_first,
    JOIN_MONTHS: pandas_months,
    JOIN_HOURS: pandas_hours,
}


# -------------------------------------------------------------------------------------------------------- measurement


def write_file(task: Task) -> None:
    ledger_like(task.rows).to_parquet(task.path)


def timed(name: str, task: Task) -> tuple[Done, float]:
    """A way, and the peak memory of this process in MB."""
    done = WAYS[name](task)
    return done, peak_mb()


def alone(function: Callable[..., Kept], *arguments: Any) -> Kept:
    """A call in a new process, whose peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measured(task: Task) -> dict[str, Any]:
    """The report. Raises RuntimeError where a plain way finds other totals than ours."""
    alone(write_file, task)
    load_before = os.getloadavg()[0]
    runs: dict[str, list[tuple[Done, float]]] = {name: [] for name in WAYS}
    for turn in range(task.rounds):
        for name in WAYS:
            print(f"round {turn + 1} of {task.rounds}: {name} ...", file=sys.stderr, flush=True)
            runs[name].append(alone(timed, name, task))
    check_answers({name: found[0][0].totals_g for name, found in runs.items()})
    rows = {name: row(name, found, task.rows) for name, found in runs.items()}
    for name, each in rows.items():
        each["ratio"] = each["whole_s"] / rows[AGAINST.get(name, name)]["whole_s"]
    return {
        "benchmark": "whatif",
        **machine(load_before),
        "rows_of_work": task.rows,
        "zones": len(task.zone_names()),
        "file_mb": task.path.stat().st_size / 1e6,
        "rounds": task.rounds,
        "rows": list(rows.values()),
        "aim": {
            "at_most_s": AIM_S,
            "at_most_mb": AIM_MB,
            "met": all(rows[MONTHS][name] <= aim for name, aim in (("whole_s", AIM_S), ("peak_mb", AIM_MB))),
        },
    }


def row(name: str, runs: list[tuple[Done, float]], all_rows: int) -> dict[str, Any]:
    """whole_s: the file read once, and the rest scaled to all rows."""
    summed = runs[0][0].rows
    whole = [done.read_s + done.sum_s * all_rows / summed for done, _ in runs]
    return {
        "way": name,
        "says": SAYS[name],
        "summed_rows": summed,
        "read_s": statistics.median(done.read_s for done, _ in runs),
        "sum_s": statistics.median(done.sum_s for done, _ in runs),
        "whole_s": statistics.median(whole),
        "whole_s_min": min(whole),
        "whole_s_max": max(whole),
        "scaled": summed < all_rows,
        "peak_mb": max(peak_mb for _, peak_mb in runs),
    }


def check_answers(found: dict[str, pd.Series]) -> None:
    """Each plain way found the totals that ours found for the same rows. Raises RuntimeError."""
    for name, other in AGAINST.items():
        expected = found[other]
        totals = pd.Series(found[name].to_dict()).reindex(expected.index)
        if len(found[name]) != len(expected) or not np.allclose(totals, expected, rtol=1e-9):
            worst = float((totals / expected - 1).abs().max())
            raise RuntimeError(f"{name} found other totals than {other}: they differ by up to {100 * worst:.3g} %")


# ------------------------------------------------------------------------------------------------------------ output


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [
        "{rows_of_work:,} rows of work ({file_mb:.0f} MB of Parquet), {zones} zones, 12 months; {cores} cores".format(
            **report
        ),
        "Python {python}, numpy {numpy}, pandas {pandas}; medians of {rounds} rounds".format(**report),
        "load of the machine {load_before:.2f} before, {load_after:.2f} after".format(**report),
        "",
        f"{'':26}{'rows':>11}{'read, s':>9}{'sum, s':>9}{'all rows, s':>14}{'ratio':>11}{'peak, MB':>10}",
    ]
    for each in report["rows"]:
        whole = f"{each['whole_s']:,.2f}{'*' if each['scaled'] else ' '}"
        lines.append(
            f"{each['way']:26}{each['summed_rows']:>11,}{each['read_s']:>9.2f}{each['sum_s']:>9.2f}{whole:>14}"
            f"{each['ratio']:>9,.4g} x{each['peak_mb']:>10.0f}"
        )
    lines += [
        "",
        "* scaled from the rows that were summed. Ratios are to ours of the same result; all found the same totals",
    ]
    lines += [f"  {each['way']}: {each['says']}" for each in report["rows"]]
    first, aim = report["rows"][0], report["aim"]
    lines.append(
        f"aim: months in at most {aim['at_most_s']:g} s and {aim['at_most_mb']:g} MB; "
        f"{first['whole_s']:.1f} s and {first['peak_mb']:.0f} MB: {'met' if aim['met'] else 'missed'}"
    )
    return "\n".join(lines)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description="A million rows of work in 352 zones and 12 months: the time to read and sum them, and peak "
        "memory, beside plain pandas; about two minutes.",
        epilog="example: python benchmarks/whatif.py --rows 1000000 --json > whatif.json",
    )
    parser.add_argument("--rows", type=_count, default=1_000_000, metavar="N", help="of work (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="little of everything: to see that it runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.parquet"
        quick = Task(path, rows=500, zones=QUICK_ZONES, join_rows=40, join_hours_rows=5, rounds=1)
        report = measured(quick if arguments.quick else Task(path, rows=arguments.rows))
    tell(report, table, as_json=arguments.json, quick=arguments.quick)


if __name__ == "__main__":
    main()
