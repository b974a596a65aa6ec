"""Allocation: every joule of the ledger to the runs that needed it.

A stage that several runs share (images, cohort, autoencoder, model) is split equally over the runs that use
it, by the plan's columns. Nothing is lost or doubled: the shares of a row add up to the row.
"""

from __future__ import annotations

import pandas as pd

from emissions.phases import phase_of

EXTENSIVE_COLUMNS = (
    "duration_s", "energy_kwh", "energy_low_kwh", "energy_high_kwh", "wasted_kwh", "startup_kwh", "metering_kwh",
    "emissions_g", "emissions_low_g", "emissions_high_g",
)  # fmt: skip


def allocate(priced: pd.DataFrame, plan: pd.DataFrame) -> pd.DataFrame:
    """One row per ledger row and run that uses it: the plan's columns, `sample_kind`, `stage`, `phase`, `item`, the
    share of every extensive column, `parameters` of the stage, and `samples` that the run generated (only in its
    generation row); `in_window`: the part of the energy that was used in the window and not in starting up;
    `control`: whether the stage is of the branch that follows masks, see `without_control`.

    priced: a ledger with emissions. plan: one row a run; without a column `frames`, of still images.
    Raises ValueError naming a stage that is unknown or an item that the plan does not have.
    """
    columns = [column for column in EXTENSIVE_COLUMNS if column in priced.columns]
    frames = plan["frames"] if "frames" in plan.columns else [0] * len(plan)
    kinds = [sample_kind(*row) for row in zip(plan["spatial_dims"], frames, strict=True)]
    runs = plan.drop(columns="samples", errors="ignore").assign(sample_kind=kinds)
    pieces = []
    for stage, rows in priced.groupby("stage", sort=False):
        phase, key, control = phase_of(str(stage))
        work = rows[["stage", "item", "samples", "parameters", *columns]].astype(
            dict.fromkeys(("samples", "parameters", *columns), "float64")
        )
        unused = sorted(set(work["item"]) - set(plan[key]))
        if unused:
            raise ValueError(f"the ledger has {stage} {unused[0]}, which no run of the plan uses")
        piece = work.merge(runs.assign(phase=phase, control=control), left_on="item", right_on=key)
        piece[columns] = piece[columns].div(piece.groupby("item")["run"].transform("size"), axis=0)
        piece["in_window"] = 1.0
        if "startup_kwh" in columns:
            started_up = piece["startup_kwh"] / piece["energy_kwh"].where(piece["energy_kwh"] > 0)
            piece["in_window"] = 1 - started_up.fillna(0.0).clip(0, 1)
        pieces.append(piece if phase == "generation" else piece.assign(samples=0.0))
    if not pieces:
        raise ValueError("the ledger has no rows: run the study first")
    return pd.concat(pieces, ignore_index=True)


def without_control(shares: pd.DataFrame) -> pd.DataFrame:
    """The shares of what a run's own samples took: what was trained and made to follow masks has samples of its own."""
    return shares[~shares["control"]]


def sample_kind(spatial_dims: int, frames: int = 0) -> str:
    """What one sample is: an image in 2D, a volume in 3D, with frames a sequence."""
    return "sequence" if frames else "image" if spatial_dims == 2 else "volume"


def dims_name(spatial_dims: int, kind: str) -> str:
    """2, "image" -> "2D"; 2, "sequence" -> "2D+t"."""
    return f"{int(spatial_dims)}D" + ("+t" if kind == "sequence" else "")
