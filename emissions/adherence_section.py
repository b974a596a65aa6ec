"""The dashboard's tables of samples that follow masks."""

from __future__ import annotations

import pandas as pd

from emissions.adherence import DICE
from emissions.charts import Columns, Section, text_table
from emissions.figures.theme import count_text, mass_text

HEADINGS = dict(zip(DICE, ("Dice, own mask", "Dice, another's", "Dice, real image decoded"), strict=True))


def adherence_section(adherence: pd.DataFrame) -> Section:
    """One table of runs and one of labels; adherence: as `adherence.adherence` makes it."""
    dice: Columns = {name: (heading, _two_places) for name, heading in HEADINGS.items()}
    of_runs: Columns = {
        "run": ("Run", None),
        "controlled_g_per_sample": ("CO₂e, one with a mask", mass_text),
        "generation_g_per_sample": ("without", mass_text),
        "control_training_g": ("Training of the branch", mass_text),
        **dice,
        "followed": ("Fit their own better", _percent),
        "samples": ("Samples", count_text),
        "masks_heldout": ("Masks of held-out images", count_text),
        "not_computed": ("Not computed", None),
    }
    lead = (
        "Dice between what thresholds find in a sample and the mask that it was to follow. Another's mask: what a "
        "model that ignores masks would reach. The real image behind the mask, encoded and decoded: about the most to "
        "ask for."
    )
    return Section(
        "adherence",
        "Do samples follow their masks?",
        "A branch is trained beside each model, which stays as it is. Its energy is in the study's totals, and in no "
        "other figure per sample on this page.",
        tables=[
            text_table(adherence, of_runs, "Runs", lead),
            text_table(_by_label(adherence), {"run": ("Run", None), "label": ("Label", None), **dice}, "Labels"),
        ],
    )


def _by_label(adherence: pd.DataFrame) -> pd.DataFrame:
    """A row per run and label."""
    first = f"{DICE[0]}_"
    labels = [column.removeprefix(first) for column in adherence.columns if column.startswith(first)]
    return pd.DataFrame(
        [
            {"run": row["run"], "label": label, **{name: row[f"{name}_{label}"] for name in DICE}}
            for row in adherence.to_dict("records")
            for label in labels
        ]
    )


def _two_places(value: float) -> str:
    return f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
