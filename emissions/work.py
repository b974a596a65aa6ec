"""Measured work, whoever measured it: our ledger, or an `emissions.csv` that CodeCarbon wrote."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd

from emissions.ledger import read_ledger
from emissions.records import LEDGER_COLUMNS
from emissions.tables import read_table

CODECARBON_COLUMNS = ("timestamp", "duration", "energy_consumed")


def read_work(path: str | Path, time_zone: str = "UTC") -> pd.DataFrame:
    """A row per piece of work, with at least `stage, item, started_at, ended_at, duration_s, energy_kwh,
    energy_low_kwh, energy_high_kwh`; energies are of the computers, before PUE.

    A ledger, or a priced one, is read as it is (CSV or Parquet). Of CodeCarbon's rows, the project is the stage and the
    run the item, with its task where it wrote tasks. It appends a run's totals so far at each flush, so that the
    longest row of a run stands for it; its energies are divided by the PUE that it had multiplied them by (a file of
    tasks does not tell it); its time is when the run stopped, naive and local, and is read as of `time_zone`. It
    knows no interval: low and high are missing.

    Raises FileNotFoundError, or ValueError naming the file, and the row where one is wrong.
    """
    if Path(path).suffix == ".parquet":
        return _read_parquet(Path(path))
    table = read_table(path)
    if set(LEDGER_COLUMNS) <= set(table.columns):
        return read_ledger(path)
    missing = [column for column in CODECARBON_COLUMNS if column not in table.columns]
    if missing:
        raise ValueError(f"{path}: neither a ledger nor CodeCarbon's emissions.csv: has no column {missing[0]}")
    return _codecarbon(table, Path(path), time_zone)


def _read_parquet(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    try:
        table = pd.read_parquet(path)
    except ValueError as error:  # pyarrow's errors are ValueErrors
        raise ValueError(f"{path}: not a Parquet table ({str(error).splitlines()[0]})") from error
    needed = (
        "stage",
        "item",
        "started_at",
        "ended_at",
        "duration_s",
        "energy_kwh",
        "energy_low_kwh",
        "energy_high_kwh",
    )
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise ValueError(f"{path}: has no column {', '.join(missing)}")
    return table


def _codecarbon(table: pd.DataFrame, path: Path, time_zone: str) -> pd.DataFrame:
    if table.empty:
        raise ValueError(f"{path}: has no rows")
    duration_s = _numbers(table, "duration", path)
    energy_kwh = _numbers(table, "energy_consumed", path)
    pue = _numbers(table, "pue", path, least=1.0) if "pue" in table.columns else pd.Series(1.0, index=table.index)
    ended = _instants(table["timestamp"], path, time_zone)
    work = pd.DataFrame(
        {
            "stage": table.get("project_name", pd.Series("codecarbon", index=table.index))
            .fillna("codecarbon")
            .astype(str),
            "item": _items(table),
            "started_at": _texts(ended - pd.to_timedelta(duration_s, unit="s")),
            "ended_at": _texts(ended),
            "duration_s": duration_s,
            "energy_kwh": energy_kwh / pue,
            "energy_low_kwh": np.nan,
            "energy_high_kwh": np.nan,
        }
    )
    longest = work.groupby("item")["duration_s"].idxmax()
    return work.loc[sorted(longest)].reset_index(drop=True)


def _items(table: pd.DataFrame) -> pd.Series:
    """The run of each row, with its task in CodeCarbon's file of tasks; a row without a run is one of its own."""
    items = pd.Series([f"row {place + 2}" for place in range(len(table))], index=table.index)
    if "run_id" in table.columns:
        items = table["run_id"].astype("string").fillna(items.astype("string"))
    if "task_name" in table.columns:
        items = items + " " + table["task_name"].fillna("").astype("string")
    return items.astype("string")


def _numbers(table: pd.DataFrame, column: str, path: Path, least: float = 0.0) -> pd.Series:
    numbers = pd.to_numeric(table[column], errors="coerce")
    wrong = table.index[~(numbers >= least) | np.isinf(numbers)]
    if len(wrong):
        # the header is the file's first row
        found = table[column][wrong[0]]
        raise ValueError(f"{path}: row {wrong[0] + 2}: {column} is {found}; expected a number of at least {least:g}")
    return numbers.astype(float)


def _instants(column: pd.Series, path: Path, time_zone: str) -> pd.Series:
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"time zone {time_zone!r} is unknown: use a name such as Europe/Berlin") from error
    texts = column.astype(str)
    aware = texts.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$")
    times = pd.Series(pd.NaT, index=column.index, dtype="datetime64[ns, UTC]")
    times[aware] = pd.to_datetime(texts[aware], errors="coerce", format="ISO8601", utc=True)
    naive = pd.to_datetime(texts[~aware], errors="coerce", format="ISO8601")
    first = np.ones(len(naive), dtype=bool)  # the hour that a clock shows twice in autumn is taken to be the first
    times[~aware] = naive.dt.tz_localize(zone, ambiguous=first, nonexistent="shift_forward").dt.tz_convert("UTC")
    wrong = times.index[times.isna()]
    if len(wrong):
        raise ValueError(f"{path}: row {wrong[0] + 2}: timestamp is {column[wrong[0]]!r}; expected a time")
    return times


def _texts(times: pd.Series) -> pd.Series:
    return times.dt.strftime("%Y-%m-%dT%H:%M:%S.%f").str[:-3] + "Z"
