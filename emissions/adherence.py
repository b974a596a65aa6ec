"""Samples that follow masks: how well each run's do, and what they took beside the run's own samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emissions.allocation import without_control
from emissions.records import FACTOR_COLUMNS

DICE = ("dice_own", "dice_other", "dice_reconstruction")


def adherence(shares: pd.DataFrame, scores: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row per run: its factors, energies, and every scalar of its score; of each label `dice_own_{label}` and so on.

    `control_training_kwh` (and `_g`) is the whole training of the model's branch, and stands in each of its runs.
    `controlled_kwh_per_sample` (and `_g`) is of samples that follow masks, `generation_kwh_per_sample` of the run's own
    samples: both without starting up.

    shares: `allocation.allocate`. scores: run -> the content of its adherence.json. Raises ValueError naming a run
    without scores.
    """
    branches = shares[shares["control"]]
    training = branches[branches["phase"] == "training"].groupby("model")[["energy_kwh", "emissions_g"]].sum()
    rows = []
    for run, group in shares.groupby("run", sort=False):
        if run not in scores:
            raise ValueError(f"run {run} has no adherence.json: run audit_adherence")
        score, first = dict(scores[str(run)]), group.iloc[0]
        labels = score.pop("labels")
        trained = training.loc[first["model"]] if first["model"] in training.index else {}
        ours = {
            "run": run,
            **{column: first[column] for column in ("model", *FACTOR_COLUMNS)},
            "sample_kind": first["sample_kind"],
            "control_training_kwh": trained.get("energy_kwh"),
            "control_training_g": trained.get("emissions_g"),
            **_per_sample("controlled", group[group["control"]]),
            **_per_sample("generation", without_control(group)),
        }
        dice = {f"{name}_{label}": found[name] for label, found in labels.items() for name in DICE}
        rows.append(ours | {name: value for name, value in score.items() if name not in ours} | dice)
    return pd.DataFrame(rows)


def _per_sample(name: str, group: pd.DataFrame) -> dict[str, float]:
    """Energy and grams of generating one sample, in the window."""
    made = group[group["phase"] == "generation"]
    samples = float(made["samples"].sum()) or float("nan")
    return {
        f"{name}_{unit}_per_sample": float((made[column] * made["in_window"]).sum()) / samples
        for unit, column in (("kwh", "energy_kwh"), ("g", "emissions_g"))
    }
