"""Prices: from energy to emissions, with the symbols of ISO/IEC 21031 (Software Carbon Intensity).

    O = E x I            operational emissions, gCO2e: E energy after PUE, kWh; I carbon intensity, gCO2e/kWh
    SCI = (O + M) / R    per functional unit R (a sample, an image): M embodied emissions, gCO2e

Energy is measured once; only this step and what follows it know a zone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from emissions.acting.starts import read_starts
from emissions.grid.choice import chosen_intensity, intensity_behind
from emissions.grid.intensity import HOUR, CarbonIntensity, slots_of
from emissions.grid.series import write_intensity
from emissions.ledger import read_ledger, record_key
from emissions.records import parse_utc
from emissions.tables import read_table, write_table

Numbers = TypeVar("Numbers", float, np.ndarray)
Key = tuple[str, str]  # stage, item
Window = tuple[datetime, datetime, float]  # start, end, energy_kwh

PRICE_COLUMNS = (
    "zone", "pue", "carbon_intensity_g_per_kwh", "intensity_source", "intensity_kind", "intensity_hash",
    "emissions_g", "emissions_low_g", "emissions_high_g",
)  # fmt: skip


def operational_emissions_g(energy_kwh: Numbers, pue: float, carbon_intensity_g_per_kwh: Numbers) -> Numbers:
    """O = E x I in gCO2e, with E = energy_kwh x PUE (ISO/IEC 21031)."""
    return energy_kwh * pue * carbon_intensity_g_per_kwh


def software_carbon_intensity_g(operational_g: float, embodied_g: float, functional_units: float) -> float:
    """SCI = (O + M) / R in gCO2e per functional unit (ISO/IEC 21031). Raises ValueError unless R is above
    zero.
    """
    if not functional_units > 0:
        raise ValueError(f"functional_units is {functional_units}; R must be above zero")
    return (operational_g + embodied_g) / functional_units


def energy_by_slot_kwh(
    start: datetime,
    end: datetime,
    energy_kwh: float,
    trace: pd.DataFrame | None = None,
    step: pd.Timedelta = HOUR,
) -> pd.Series:
    """The energy of [start, end) in each UTC slot that it touches, by the slot's start; the sum is `energy_kwh`.

    Spread along the power trace (columns `time`, `cpu_w`, `gpu_w`, `ram_w`; a row holds the mean power since
    the row before), which gives the shape and not the amount. Without a trace, or with one that shows no
    power, evenly in time. Raises ValueError when the end comes before the start.
    """
    slots = slots_of(start, end, step)
    first, last = pd.Timestamp(start).tz_convert("UTC"), pd.Timestamp(end).tz_convert("UTC")
    if len(slots) == 1:  # nothing is left to spread
        share = np.ones(1)
    else:
        edges = pd.DatetimeIndex([*slots, slots[-1] + step])
        cuts_s = np.clip(
            (edges - first).total_seconds().to_numpy(), 0.0, (last - first).total_seconds()
        )  # (slots + 1,)
        knots_s, joules = _cumulative_energy(first, last, trace)
        share = np.diff(np.interp(cuts_s, knots_s, joules)) / joules[-1]
    return pd.Series(energy_kwh * share, index=slots, name="energy_kwh")


def _cumulative_energy(
    first: pd.Timestamp, last: pd.Timestamp, trace: pd.DataFrame | None
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since `first`, (K,), and a measure of the energy used up to each, (K,): piecewise linear."""
    duration_s = (last - first).total_seconds()
    flat = np.array([0.0, duration_s]), np.array([0.0, duration_s])
    if trace is None or trace.empty:
        return flat
    readings = trace.sort_values("time")
    time_s = (pd.to_datetime(readings["time"], utc=True) - first).dt.total_seconds().to_numpy(dtype=float)
    power_w = readings[["cpu_w", "gpu_w", "ram_w"]].astype("float64").fillna(0.0).sum(axis=1).to_numpy()
    # Power holds until the next reading, and the last one until the end; what lies outside the job is cut
    # off.
    knots_s = np.concatenate([[0.0], np.clip(time_s, 0.0, duration_s), [duration_s]])
    power_w = np.concatenate([power_w, power_w[-1:]])
    joules = np.concatenate([[0.0], np.cumsum(np.diff(knots_s) * power_w)])
    return (knots_s, joules) if joules[-1] > 0 else flat


def mean_intensity_g_per_kwh(
    intensity: CarbonIntensity, start: datetime, end: datetime, trace: pd.DataFrame | None = None
) -> float:
    """The mean of I over [start, end), weighted by energy: sum(E_h x I_h) / sum(E_h) over the slots h.

    Raises GapError where the signal has no value.
    """
    energy = energy_by_slot_kwh(start, end, 1.0, trace, intensity.step)
    return _weighted_mean(intensity.values_at(pd.DatetimeIndex(energy.index)), energy.to_numpy())


def price_ledger(
    ledger: pd.DataFrame,
    intensity: CarbonIntensity,
    pue: float,
    traces: Mapping[Key, pd.DataFrame] | None = None,
    attempts: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The ledger with `PRICE_COLUMNS`: each job at the hours it ran, along its trace where `traces` has one.

    attempts: `ledger.collect_attempts`; with it, a failed attempt is priced at its own time and not at that
    of the attempt that succeeded. The low and high columns price the energy's interval; the intensity's own
    error is not in them. Raises ValueError for a PUE below 1, GapError where the signal has no value.
    """
    check_pue(pue)
    windows = _windows(ledger, attempts)
    priced = ledger.copy()
    priced["zone"] = intensity.zone.zone
    priced["pue"] = float(pue)
    priced["carbon_intensity_g_per_kwh"] = [
        _row_intensity(intensity, windows[key], (traces or {}).get(key)) for key in _keys(ledger)
    ]
    priced["intensity_source"] = [_row_source(intensity, windows[key]) for key in _keys(ledger)]
    priced["intensity_kind"] = intensity.kind
    priced["intensity_hash"] = intensity.data_hash
    for bound in ("", "_low", "_high"):
        energy_kwh = ledger[f"energy{bound}_kwh"].to_numpy(dtype=float, na_value=np.nan)  # (rows,)
        intensities = priced["carbon_intensity_g_per_kwh"].to_numpy(dtype=float)
        priced[f"emissions{bound}_g"] = operational_emissions_g(energy_kwh, pue, intensities)
    return priced


def sources_text(priced: pd.DataFrame) -> str:
    """Where the intensities of a priced ledger come from, each source once."""
    texts = priced["intensity_source"].astype(str)
    return "; ".join(dict.fromkeys(part for text in texts for part in text.split("; ")))


def check_pue(pue: float) -> float:
    """The PUE as it is; raises ValueError unless it is a number of at least 1."""
    if isinstance(pue, bool) or not isinstance(pue, (int, float)) or not (math.isfinite(pue) and pue >= 1):
        raise ValueError(f"carbon.pue is {pue!r}; power usage effectiveness is a number of at least 1.0")
    return float(pue)


def _keys(table: pd.DataFrame) -> list[Key]:
    return list(zip(table["stage"], table["item"], strict=True))


def _windows(ledger: pd.DataFrame, attempts: pd.DataFrame | None) -> dict[Key, list[Window]]:
    """(stage, item) -> (start, end, energy_kwh) of each attempt, the one that succeeded last."""
    windows: dict[Key, list[Window]] = {key: [] for key in _keys(ledger)}
    table = ledger if attempts is None else attempts
    for key, row in zip(_keys(table), table.to_dict("records"), strict=True):
        if key in windows:
            window = parse_utc(row["started_at"]), parse_utc(row["ended_at"]), float(row["energy_kwh"])
            windows[key].append(window)
    empty = [" ".join(key) for key, found in windows.items() if not found]
    if empty:
        raise ValueError(f"the table of attempts has none for {', '.join(empty)}: collect the ledger again")
    return windows


def _row_intensity(intensity: CarbonIntensity, windows: list[Window], trace: pd.DataFrame | None) -> float:
    """Energy-weighted mean over the attempts; the trace is of the last one."""
    means = [mean_intensity_g_per_kwh(intensity, start, end) for start, end, _ in windows[:-1]]
    start, end, _ = windows[-1]
    means.append(mean_intensity_g_per_kwh(intensity, start, end, trace))
    weights = [energy_kwh for *_, energy_kwh in windows]
    return _weighted_mean(np.array(means), np.array(weights))


def _row_source(intensity: CarbonIntensity, windows: list[Window]) -> str:
    """Where the row's intensities come from, and what stood in for the source at its hours."""
    slots = [slots_of(start, end, intensity.step) for start, end, _ in windows]
    return intensity.source_at(pd.DatetimeIndex(slots[0].append(slots[1:]).unique()))


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Mean of N values, (N,), evenly where no weight is above zero; exact where all values are the same."""
    weights = weights if weights.sum() > 0 else np.ones(len(values))
    return float(values[0] + ((values - values[0]) * weights).sum() / weights.sum())


def read_traces(
    ledger: pd.DataFrame, trace_paths: Iterable[str | Path], step: pd.Timedelta = HOUR
) -> dict[Key, pd.DataFrame]:
    """The traces of the jobs that touch more than one slot; no other trace can change a price.

    Raises ValueError or OSError naming the file.
    """
    started, ended = (pd.to_datetime(ledger[name], utc=True).dt.floor(step) for name in ("started_at", "ended_at"))
    long = set(_keys(ledger[started != ended]))
    traces = {}
    for path in trace_paths:
        if record_key(path) not in long:
            continue
        try:
            traces[record_key(path)] = pd.read_parquet(path, columns=["time", "cpu_w", "gpu_w", "ram_w"])
        except ValueError as error:  # pyarrow's errors are ValueErrors
            raise ValueError(f"{path}: not a power trace ({str(error).splitlines()[0]})") from error
    return traces


def write_prices(
    ledger_path: str | Path,
    attempts_path: str | Path,
    trace_paths: Iterable[str | Path],
    priced_path: str | Path,
    carbon: Mapping[str, Any],
    intensity_path: str | Path | None = None,
) -> None:
    """Price a ledger as the config's `carbon` says: by the tables, a file, or what was fetched from a live source.

    intensity_path: where the signal of a file or a live source is; None for the tables.

    Raises ValueError for an unknown zone, a PUE below 1 or a gap that nothing may fill, OSError for what cannot
    be read or written.
    """
    ledger = read_ledger(ledger_path)
    attempts = read_table(attempts_path, required=("stage", "item", "started_at", "ended_at", "energy_kwh"))
    intensity = chosen_intensity(carbon, intensity_path)
    traces = read_traces(ledger, trace_paths, intensity.step)
    write_table(price_ledger(ledger, intensity, carbon["pue"], traces, attempts), priced_path)


def write_live_intensity(
    ledger_path: str | Path,
    attempts_path: str | Path,
    starts_path: str | Path,
    carbon: Mapping[str, Any],
    intensity_path: str | Path,
) -> None:
    """Fetch the signal of the live source that `carbon` names over the hours that the ledger's attempts ran or waited.

    starts_path: of the study's planned starts, which need not be there (`acting.starts`).

    Only here does a study use the network for its prices. Where the config allows it, the tables stand in for what
    the source does not have, and the file says so slot by slot.

    Raises ValueError with one line naming source and zone when the source fails and nothing may stand in for it.
    """
    table = pd.concat([read_ledger(ledger_path), read_table(attempts_path, required=("started_at", "ended_at"))])
    started, ended = (pd.to_datetime(table[name], utc=True) for name in ("started_at", "ended_at"))
    requested = [parse_utc(start["requested_at"]) for start in read_starts(Path(starts_path))]
    span = min([started.min(), *requested]), ended.max()
    intensity = intensity_behind(carbon, *span)
    write_intensity(intensity, slots_of(*span, intensity.step), intensity_path)
