"""The dashboard's tables on how generated sequences move, beside held-out and training ones of their cohort."""

from __future__ import annotations

import pandas as pd

from emissions.charts import Columns, Table, text_table
from emissions.figures.cost import sampler_label
from emissions.figures.theme import family_name, groups_of, has_value, shape_name
from emissions.findings import range_text

_FIGURES = {
    "temporal_coherence": "Coherence",
    "cycle_gap": "Cycle gap",
    "slice_consistency": "Slice consistency",
    "slice_synchrony": "Slice synchrony",
    "ejection_fraction": "Ejection fraction",
    "thickening": "Thickening",
}
_PERCENT = ("ejection_fraction", "thickening")
_YARDSTICKS = {"heldout": "held out", "train": "training"}
_MEANINGS = (
    "Coherence over time: 0 for frames in random order, towards 1 for a smooth movement without noise. Cycle gap: the "
    "step from the last frame to the first, over a mean step. None of them is better for being higher, but for being "
    "nearer to the held-out sequences; ± is the standard deviation over sequences."
)
_STACKS = (
    "Slice consistency: how alike neighbouring slices are at one time; synchrony: whether what changes in them changes "
    "together."
)
_SEGMENTED = (
    "Ejection fraction and the wall's thickening are of the hearts that were found, by brightness and shape. What is "
    "known of the same hearts by formula shows how much that misses, and how much of a heart lies outside its stack."
)


def motion_tables(motion: pd.DataFrame) -> list[Table]:
    """A table of each cohort: held-out and training sequences first, then each run's.

    motion: `compare.motion`.
    """
    tables = []
    for (dims, resolution), group in groups_of(motion, ["spatial_dims", "resolution"]):
        frame = pd.DataFrame(_rows(group))
        shown: Columns = {"name": ("Sequences", None), "hearts": ("Hearts", str)}
        shown |= {name: (heading, str) for name, heading in _FIGURES.items()}
        kept = {name: column for name, column in shown.items() if frame[name].map(has_value).any()}
        title = f"How sequences move: {shape_name(dims, resolution, 'sequence')}"
        tables.append(text_table(frame, kept, title, _lead(group)))
    return tables


def _rows(group: pd.DataFrame) -> list[dict[str, str]]:
    """The cohort's rows, which every run holds alike, and a row of each run."""
    rows, runs = [], [row for _, row in group.iterrows()]
    for prefix, name in _YARDSTICKS.items():
        rows.append(_row(runs[0], f"{prefix}_", f"{runs[0][f'{prefix}_sequences']} {name}"))
        if known := _text(runs[0], f"{prefix}_true_", "ejection_fraction"):
            rows.append({"name": f"{name}, by formula", "ejection_fraction": known})
    for run in runs:
        name = f"{family_name(run['family'])} {run['size']}, {sampler_label(run['sampler'], run['steps'])}"
        rows.append(_row(run, "", f"{run['sequences']} of {name}"))
    return rows


def _row(run: pd.Series, prefix: str, name: str) -> dict[str, str]:
    hearts = run[f"{prefix}hearts"]
    figures = {figure: _text(run, prefix, figure) for figure in _FIGURES}
    return {"name": name, "hearts": f"{hearts:.0f}" if has_value(hearts) else ""} | figures


def _text(run: pd.Series, prefix: str, figure: str) -> str:
    """Mean and deviation: "0.93 ± 0.02", "41 ± 12 %"; "" if unknown."""
    values = [run[f"{prefix}{figure}{end}"] for end in ("", "_std")]
    texts = [f"{100 * value:.0f}" if figure in _PERCENT else f"{value:.2f}" for value in values if has_value(value)]
    return " ± ".join(texts) + (" %" if texts and figure in _PERCENT else "")


def _lead(group: pd.DataFrame) -> str:
    known, heldout = group["temporal_coherence"].dropna(), group["heldout_temporal_coherence"].iloc[0]
    sentences = []
    if len(known) and has_value(heldout):
        sentences.append(
            f"Temporal coherence is {range_text(known, lambda value: f'{value:.2f}')} in what was generated and "
            f"{heldout:.2f} in held-out sequences."
        )
    sentences.append(_MEANINGS)
    if group["slice_consistency"].notna().any():
        sentences.append(_STACKS)
    if group["heldout_ejection_fraction"].notna().any():
        sentences.append(_SEGMENTED)
    reasons = group["not_computed"].dropna().unique()
    return " ".join([*sentences, *(f"Not computed: {reason}." for reason in reasons)])
