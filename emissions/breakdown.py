"""Where a ledger's energy and its interval come from, and what of it is no work of a job."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from emissions.uncertainty import STARTUP_ERROR


def energy_parts(ledger: pd.DataFrame) -> pd.DataFrame:
    """A row per part of the energy, `low_kwh` and `high_kwh` its interval: cpu, startup, gpu, ram, unseen, whole.

    `cpu` is without the start-up, which errs for its own reasons; `unseen` is at most `high_kwh` and at least
    nothing. Parts that are not there or unknown are left out; a bound is NaN where a row does not state it.
    """
    if ledger.empty:
        return pd.DataFrame(columns=["part", "method", "energy_kwh", "low_kwh", "high_kwh"])
    startup = _numbers(ledger, "startup_kwh").fillna(0.0)
    rows: list[dict[str, Any]] = []
    for part in ("cpu", "gpu", "ram"):
        energy, low, high = (_numbers(ledger, f"{part}{bound}_kwh") for bound in ("", "_low", "_high"))
        if part == "cpu":
            energy, low, high = (
                values - share * startup
                for values, share in ((energy, 1.0), (low, 1 - STARTUP_ERROR), (high, 1 + STARTUP_ERROR))
            )
        known = energy.notna()
        methods = ledger.loc[known, f"{part}_method"]
        rows.append(
            {
                "part": part,
                "method": ", ".join(dict.fromkeys(methods[methods != "none"])),
                "energy_kwh": energy.sum(),
                "low_kwh": low[known].sum(skipna=False),
                "high_kwh": high[known].sum(skipna=False),
            }
        )
        if part == "cpu":
            whole = float(startup.sum())
            bounds = {"low_kwh": (1 - STARTUP_ERROR) * whole, "high_kwh": (1 + STARTUP_ERROR) * whole}
            rows.append({"part": "startup", "method": "CPU time before the window", "energy_kwh": whole, **bounds})
    rows = [row for row in rows if row["energy_kwh"] > 0]
    unseen = float(_numbers(ledger, "unseen_kwh").sum(skipna=False))
    if unseen > 0:
        rows.append(
            {"part": "unseen", "method": "at most", "energy_kwh": 0.0, "low_kwh": 0.0, "high_kwh": unseen},
        )
    bounds = {f"{name}_kwh": _numbers(ledger, f"energy_{name}_kwh").sum(skipna=False) for name in ("low", "high")}
    rows.append({"part": "whole", "method": "", "energy_kwh": _numbers(ledger, "energy_kwh").sum(), **bounds})
    return pd.DataFrame(rows)


def overheads(ledger: pd.DataFrame) -> pd.DataFrame:
    """A row per overhead, over the ledger's rows that know it: `idle` and `startup` inside their energy,
    `metering` beside it. `share_percent` is of the energy of those rows, NaN where none knows."""
    energy = _numbers(ledger, "energy_kwh")
    rows = []
    for part in ("idle", "startup", "metering"):
        values = _numbers(ledger, f"{part}_kwh")
        known = values.notna()
        total, of = float(values.sum(min_count=1)), float(energy[known].sum())
        share = 100 * total / of if of > 0 else math.nan
        rows.append({"part": part, "energy_kwh": total, "share_percent": share, "rows": int(known.sum())})
    return pd.DataFrame(rows)


def rest_percent(ledger: pd.DataFrame) -> float:
    """Of the nodes' energy in the jobs' windows, what neither a job nor the metering owns; NaN where unknown.

    A ratio and no sum: windows of jobs that ran side by side hold the same rest.
    """
    known = ledger.dropna(subset=["node_kwh", "rest_kwh"])
    node = float(_numbers(known, "node_kwh").sum())
    return 100 * float(_numbers(known, "rest_kwh").sum()) / node if node > 0 else math.nan


def codecarbon_sums(ledger: pd.DataFrame) -> dict[str, float]:
    """CodeCarbon's energy and that of our meters for the same machines and windows, over the rows that know both
    (`rows`), beside the jobs' own energy in these rows."""
    known = ledger.dropna(subset=["codecarbon_kwh", "codecarbon_node_kwh"])
    columns = ("codecarbon_kwh", "codecarbon_node_kwh", "energy_kwh")
    return {"rows": len(known)} | {column: float(_numbers(known, column).sum()) for column in columns}


def _numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """A column as plain floats with NaN: a ledger's nullable types and a CSV's alike."""
    return table[column].astype("float64")
