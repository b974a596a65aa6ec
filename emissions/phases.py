"""The stages of a study: the phase each belongs to, and the plan column that names its items.

A new stage is one line here; comparisons and summaries follow.
"""

from __future__ import annotations

from typing import NamedTuple


class Phase(NamedTuple):
    phase: str  # data, training, generation or audit
    key: str  # the plan column whose values are the stage's items
    control: bool = False  # of the branch that follows masks: no part of what a run's own samples cost


STAGES = {
    "fetch_images": Phase("data", "images"),
    "prepare_cohort": Phase("data", "cohort"),
    "extract_reference_features": Phase("audit", "cohort"),
    "train_autoencoder": Phase("training", "autoencoder"),
    "encode_latents": Phase("training", "autoencoder"),
    "train_diffusion": Phase("training", "model"),
    "generate_samples": Phase("generation", "run"),
    "audit_fidelity": Phase("audit", "run"),
    "audit_motion": Phase("audit", "run"),
    "train_control": Phase("training", "model", control=True),
    "generate_controlled": Phase("generation", "run", control=True),
    "audit_adherence": Phase("audit", "run", control=True),
}


def phase_of(stage: str) -> Phase:
    """Phase and key of a stage; raises ValueError for one that is not in `STAGES`."""
    try:
        return STAGES[stage]
    except KeyError:
        raise ValueError(f"unknown stage {stage!r}: name its phase and key in emissions/phases.py") from None
