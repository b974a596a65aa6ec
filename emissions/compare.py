"""Comparisons: the tables that answer what size, resolution, sampler, devices and stages cost.

All are pure functions of the shares (`allocation.allocate`): tables in, table out. Totals of a row are of all
its runs and add up to the ledger. Figures per sample, and the ratio, compare like with like: they rest on the
runs whose other factors occur in every row of the same dimension (`compared_runs`; where there are none, on
all runs, and `matched` is false). Figures per sample are sums over sums, so that a mean is weighted by
samples. They are of a run's own samples: what was trained and made to follow masks is in totals, has its own rows
by stage, and its own table (`adherence_section`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emissions.adherence import adherence
from emissions.allocation import allocate, without_control
from emissions.ledger import read_ledger
from emissions.places import by_hour, by_season, by_zone
from emissions.pricing import PRICE_COLUMNS
from emissions.records import FACTOR_COLUMNS, is_measured
from emissions.tables import read_table, write_table

EXTRAPOLATED_SAMPLES = 10_000  # as the Latent Pollution Model generated (arXiv 2407.14892)

_GENERATED = {"kwh": "energy_kwh", "g": "emissions_g"}
_TOTALS = (
    "energy_kwh",
    "training_kwh",
    "generation_kwh",
    "emissions_g",
    "emissions_low_g",
    "emissions_high_g",
)


def by_size(shares: pd.DataFrame) -> pd.DataFrame:
    """A row per spatial_dims, family and size, with the parameters of the denoiser."""
    table = _by_factor(shares, ["spatial_dims", "family", "size"])
    trained = shares[shares["stage"] == "train_diffusion"]
    parameters = trained.groupby(["spatial_dims", "family", "size"])["parameters"].max()
    keys = pd.MultiIndex.from_frame(table[["spatial_dims", "family", "size"]])
    table.insert(3, "parameters", parameters.reindex(keys).to_numpy())
    return table.astype({"parameters": "Int64"})


def by_resolution(shares: pd.DataFrame) -> pd.DataFrame:
    """A row per spatial_dims and resolution."""
    return _by_factor(shares, ["spatial_dims", "resolution"])


def by_devices(shares: pd.DataFrame) -> pd.DataFrame:
    """A row per spatial_dims and number of devices."""
    return _by_factor(shares, ["spatial_dims", "devices"])


def by_sampler(shares: pd.DataFrame) -> pd.DataFrame:
    """A row per spatial_dims, sampler and steps. The ratio is of generation alone."""
    return _by_factor(shares, ["spatial_dims", "sampler", "steps"], ratio_of="generation_g_per_sample")


def by_stage(shares: pd.DataFrame) -> pd.DataFrame:
    """A row per stage and spatial_dims, in the study's order; `share_percent` is of the study's energy.

    `wasted_kwh` and `startup_kwh` are inside `energy_kwh`, `metering_kwh` is beside it; each is unknown as soon
    as one of its rows is. Per sample: this stage's energy over all samples of the dimension, or over all that followed
    masks where the stage is one of theirs. The ratio is to the smallest stage of the dimension.
    """
    stages = {stage: place for place, stage in enumerate(dict.fromkeys(shares["stage"]))}
    made = shares.groupby(["spatial_dims", "control"])["samples"].sum()
    rows = []
    for (stage, dims), group in _groups(shares, ["stage", "spatial_dims"]):
        phase, samples = group["phase"].iloc[0], made[dims, group["control"].iloc[0]]
        totals = _totals(group)
        rows.append(
            {
                "stage": stage,
                "phase": phase,
                "spatial_dims": dims,
                "sample_kind": group["sample_kind"].iloc[0],
                "items": group["item"].nunique(),
                "runs": group["run"].nunique(),
                "duration_s": group["duration_s"].sum(),
                # A sum with an unknown part would pass for a whole one.
                **{column: group[column].sum(skipna=False) for column in ("wasted_kwh", "startup_kwh", "metering_kwh")},
                "share_percent": 100 * _over(totals["energy_kwh"], shares["energy_kwh"].sum()),
                **totals,
                "samples": int(samples),
                **_per_sample(totals | {"generation_g": _generation(group, "emissions_g")}, samples),
            }
        )
    table = pd.DataFrame(rows)
    table = table.sort_values(["stage", "spatial_dims"], key=lambda c: c.map(stages) if c.name == "stage" else c)
    return _with_ratio(table.reset_index(drop=True), "emissions_g")


def by_model(shares: pd.DataFrame) -> pd.DataFrame:
    """A row per trained model, sampler and steps: how many samples cost as much energy as training did.

    `training_kwh` is the model's whole training, with its part of the autoencoder, and stands in each of its
    rows. Figures per sample leave starting up out, which a run pays once however many samples it makes; columns that
    start with `extrapolated_` assume that the rest grows linearly with them. Without what follows masks.
    """
    shares = without_control(shares)
    factors = ["model", "family", "size", "spatial_dims", "sample_kind", "resolution", "devices", "seed"]
    training = shares[shares["phase"] == "training"].groupby("model")[["energy_kwh", "emissions_g"]].sum()
    made = shares[shares["phase"] == "generation"]
    made = made.assign(**{f"window_{unit}": _in_window(made, column) for unit, column in _GENERATED.items()})
    table = made.groupby([*factors, "sampler", "steps"], sort=False, as_index=False)[
        ["energy_kwh", "emissions_g", "samples", "window_kwh", "window_g"]
    ].sum()
    table = table.rename(columns={"energy_kwh": "generation_kwh", "emissions_g": "generation_g"})
    table["training_kwh"] = training["energy_kwh"].reindex(table["model"]).to_numpy()
    table["training_g"] = training["emissions_g"].reindex(table["model"]).to_numpy()
    samples = table["samples"].where(table["samples"] > 0)
    table["generation_kwh_per_sample"] = table.pop("window_kwh") / samples
    table["generation_g_per_sample"] = table.pop("window_g") / samples
    per_sample = table["generation_kwh_per_sample"].where(table["generation_kwh_per_sample"] > 0)
    table["break_even_samples"] = table["training_kwh"] / per_sample
    table["training_over_generation"] = table["training_kwh"] / table["generation_kwh"].where(samples > 0)
    many = f"{EXTRAPOLATED_SAMPLES}_samples"
    table[f"extrapolated_generation_kwh_{many}"] = per_sample * EXTRAPOLATED_SAMPLES
    table[f"extrapolated_training_over_generation_{many}"] = table["break_even_samples"] / EXTRAPOLATED_SAMPLES
    return table.astype({"samples": "Int64"})


def by_method(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger's energy by component and the method behind it: what was measured and what was estimated."""
    pieces = [
        ledger[[f"{part}_method", f"{part}_kwh"]].set_axis(["method", "energy_kwh"], axis=1).assign(component=part)
        for part in ("cpu", "gpu", "ram")
    ]
    parts = pd.concat(pieces, ignore_index=True).astype({"energy_kwh": "float64"})
    table = parts.groupby(["component", "method"], sort=False, as_index=False).agg(
        energy_kwh=("energy_kwh", "sum"), rows=("energy_kwh", "size")
    )
    table["present"] = table["method"] != "none"
    table["measured"] = table["method"].map(is_measured)
    table["share_percent"] = 100 * table["energy_kwh"] / (table["energy_kwh"].sum() or np.nan)
    return table


def fidelity(shares: pd.DataFrame, scores: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Energy and quality of each run in one row: its factors, per-sample figures and every scalar of its
    score.

    scores: run -> the content of its fidelity.json. Raises ValueError naming a run without scores.
    """
    rows = []
    for run, group in shares.groupby("run", sort=False):
        if run not in scores:
            raise ValueError(f"run {run} has no fidelity.json: run audit_fidelity")
        group = without_control(group)
        totals, samples = _totals(group), group["samples"].sum()
        first = group.iloc[0]
        ours = {
            "run": run,
            **{column: first[column] for column in ("model", *FACTOR_COLUMNS)},
            "sample_kind": first["sample_kind"],
            "samples": int(samples),
            "generation_kwh_per_sample": _over(_generation(group, "energy_kwh"), samples),
            **_per_sample(totals | {"generation_g": _generation(group, "emissions_g")}, samples),
        }
        theirs = {name: value for name, value in scores[str(run)].items() if name not in ours}
        rows.append(ours | {name: value for name, value in theirs.items() if not isinstance(value, (list, dict))})
    return pd.DataFrame(rows)


def motion(plan: pd.DataFrame, scores: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """How the sequences of each run move: its factors and what its motion.json says.

    scores: run -> the content of its motion.json. Raises ValueError naming a run without scores.
    """
    if missing := [run for run in plan["run"] if run not in scores]:
        raise ValueError(f"run {missing[0]} has no motion.json: run audit_motion")
    factors = ["run", "model", "cohort", *FACTOR_COLUMNS]
    return pd.DataFrame([{**scores[row["run"]], **row} for row in plan[factors].to_dict("records")])


def write_comparisons(
    priced_path: str | Path,
    plan_path: str | Path,
    fidelity_paths: Iterable[str | Path],
    outputs: Mapping[str, str | Path],
    year: int,
    pue: float,
    motion_paths: Iterable[str | Path] = (),
    adherence_paths: Iterable[str | Path] = (),
) -> None:
    """Read the priced ledger, the plan and the scores, and write each table to its path in `outputs`, by its
    name.

    motion_paths: motion.json of each run, in a study of sequences. adherence_paths: adherence.json of each run, in a
    study with masks. Raises ValueError or OSError naming the file.
    """
    ledger = read_ledger(priced_path)
    missing = [column for column in PRICE_COLUMNS if column not in ledger.columns]
    if missing:
        raise ValueError(f"{priced_path}: has no column {', '.join(missing)}")
    plan = read_table(plan_path, required=("run", "model", *FACTOR_COLUMNS))
    shares = allocate(ledger, plan)
    tables = {
        "by_size": by_size(shares),
        "by_resolution": by_resolution(shares),
        "by_stage": by_stage(shares),
        "by_sampler": by_sampler(shares),
        "by_devices": by_devices(shares),
        "by_model": by_model(shares),
        "by_method": by_method(ledger),
        "by_zone": by_zone(shares, year, pue),
        "by_season": by_season(shares, year, pue),
        "by_hour": by_hour(shares, year, pue),
        "fidelity": fidelity(shares, read_scores(fidelity_paths)),
    }
    if scores := read_scores(motion_paths, "audit_motion"):
        tables["motion"] = motion(plan, scores)
    if scores := read_scores(adherence_paths, "audit_adherence"):
        tables["adherence"] = adherence(shares, scores)
    for name, table in tables.items():
        write_table(table, outputs[name])


def read_scores(paths: Iterable[str | Path], stage: str = "audit_fidelity") -> dict[str, dict[str, Any]]:
    """Run -> content of its file, `{run}/fidelity.json` or another, that a stage wrote.

    Raises ValueError or OSError naming the file.
    """
    scores = {}
    for path in map(Path, paths):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not text
            raise ValueError(f"{path}: not JSON ({error}); delete it and run {stage} again") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object with the run's scores")
        scores[path.parent.name] = content
    return scores


def _by_factor(shares: pd.DataFrame, levels: list[str], ratio_of: str = "emissions_g_per_sample") -> pd.DataFrame:
    rows = []
    for _, of_dims in _groups(shares, ["spatial_dims"]):
        compared, matched = _comparable_runs(of_dims, levels)
        for values, group in _groups(of_dims, levels):
            own = without_control(group)
            alike = own[own["run"].isin(compared)]
            samples, totals = alike["samples"].sum(), _totals(alike)
            bounds = {f"generation{b}_g": _generation(alike, f"emissions{b}_g") for b in ("", "_low", "_high")}
            made = alike[alike["phase"] == "generation"]
            rows.append(
                {
                    **dict(zip(levels, values, strict=True)),
                    "sample_kind": group["sample_kind"].iloc[0],
                    "runs": group["run"].nunique(),
                    "compared_runs": alike["run"].nunique(),
                    "matched": matched,
                    **_totals(group),
                    "samples": int(own["samples"].sum()),
                    "seconds_per_sample": _over(made["duration_s"].sum(), samples),
                    "energy_kwh_per_sample": _over(totals["energy_kwh"], samples),
                    "generation_kwh_per_sample": _over(_generation(alike, "energy_kwh"), samples),
                    **_per_sample(totals | bounds, samples),
                }
            )
    return _with_ratio(pd.DataFrame(rows), ratio_of)


def _comparable_runs(of_dims: pd.DataFrame, levels: Sequence[str]) -> tuple[set[str], bool]:
    """The runs whose other factors occur in every level, and whether there are any (else all runs)."""
    runs = of_dims.drop_duplicates("run")
    others = [factor for factor in FACTOR_COLUMNS if factor not in levels]
    blocks = pd.Series(list(runs[others].itertuples(index=False, name=None)), index=runs.index)
    of_level = [set(blocks[group.index]) for _, group in runs.groupby(list(levels))]
    common = set.intersection(*of_level)
    if not common:
        return set(runs["run"]), False
    return set(runs.loc[blocks.isin(list(common)), "run"]), True


def _totals(group: pd.DataFrame) -> dict[str, float]:
    phase_kwh = group.groupby("phase")["energy_kwh"].sum()
    phases = {f"{phase}_kwh": float(phase_kwh.get(phase, 0.0)) for phase in ("training", "generation")}
    return {column: phases[column] if column in phases else float(group[column].sum()) for column in _TOTALS}


def _generation(group: pd.DataFrame, column: str) -> float:
    """A column's sum over the windows of generation: without starting up, which does not grow with the samples."""
    return float(_in_window(group[group["phase"] == "generation"], column).sum())


def _in_window(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows[column] * rows["in_window"]


def _per_sample(totals: Mapping[str, float], samples: float) -> dict[str, float]:
    """Grams per sample of generation (with its bounds where given) and of everything."""
    names = [name for name in ("generation_g", "generation_low_g", "generation_high_g") if name in totals]
    return {f"{name}_per_sample": _over(totals[name], samples) for name in (*names, "emissions_g")}


def _with_ratio(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Each row's `column` over the smallest one above zero among the rows of the same dimension."""
    smallest = table[column].where(table[column] > 0).groupby(table["spatial_dims"]).transform("min")
    basis = column + " over the smallest in " + table["spatial_dims"].astype(str) + "D"
    return table.assign(ratio_to_smallest=table[column] / smallest, ratio_basis=basis)


def _groups(table: pd.DataFrame, levels: Sequence[str]) -> list[tuple[tuple, pd.DataFrame]]:
    """The groups of a table by their levels, sorted."""
    return [(values, group) for values, group in table.groupby(list(levels))]


def _over(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")
