"""How sequences of a cohort move: real ones once per cohort, generated ones once per run."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.audit.cardiac import FIGURES, Segmenter, describe_sequences
from models.audit.short_axis import COARSEST_MM, segment_short_axis
from models.audit.views import Images

SEED = 0
ONE_SLICE = "slice consistency and synchrony: one slice has no neighbour"
TRAIN_SEQUENCES = 32  # of training sequences, which are only a yardstick; never fewer than of held-out ones


def real_motion(train: Images, heldout: Images, cohort: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's samples are held against.

    Args:
        train, heldout: a cohort's sequences, without augmented ones.
        cohort: cohort.json.

    Returns:
        What `describe_sequences` says of each split as `heldout_*` and `train_*`; where hearts are segmented also mean
        and `_std` of the same sequences' own ejection fractions, which cohort.json tells, as
        `heldout_true_ejection_fraction` and `train_true_ejection_fraction`. They are of whole hearts, also where a
        stack covers only part of one.
    """
    segment, _ = segmenter_of(cohort)
    budget = max(TRAIN_SEQUENCES, len(heldout))
    some = np.sort(np.random.default_rng(SEED).permutation(len(train))[:budget])
    found: dict[str, Any] = {}
    for split, images, rows in (("heldout", heldout, np.arange(len(heldout))), ("train", train, some)):
        about = describe_sequences(images.array, cohort.get("spacing_mm"), segment, rows)
        true = [] if segment is None else _true_ejection_fractions(cohort, split, rows)
        about["true_ejection_fraction"] = float(np.mean(true)) if true else None
        about["true_ejection_fraction_std"] = float(np.std(true, ddof=1)) if len(true) > 1 else None
        found |= {f"{split}_{name}": value for name, value in about.items() if name != "frames"}
    return found


def _true_ejection_fractions(cohort: Mapping[str, Any], split: str, rows: NDArray[np.int64]) -> list[float]:
    """What cohort.json tells of stacks over time, of which each patient has one."""
    fractions = [patient["ejection_fraction"] for patient in cohort["patients"] if patient["split"] == split]
    return [fractions[row] for row in rows]


def sample_motion(samples: Images, cohort: Mapping[str, Any], broken: int = 0) -> dict[str, Any]:
    """What `describe_sequences` says of generated sequences, and in `not_computed` why a figure is None.

    Args:
        cohort: cohort.json.
        broken: how many samples hold values that are not finite; any makes all figures None.
    """
    segment, why_not = segmenter_of(cohort)
    if broken:
        about: dict[str, Any] = {"sequences": len(samples), "frames": samples.frames, "hearts": None}
        about |= dict.fromkeys(name + end for name in FIGURES for end in ("", "_std"))
        return about | {"not_computed": f"any figure: {broken} of {len(samples)} samples not finite"}
    about = describe_sequences(samples.array, cohort.get("spacing_mm"), segment)
    causes = {
        "temporal_coherence": "temporal coherence and cycle gap: too few frames, or nothing moves",
        "slice_consistency": "slice consistency: flat slices" if samples.depth("axial") > 1 else ONE_SLICE,
        "ejection_fraction": f"ejection fraction and wall motion: {why_not or 'no heart was found'}",
    }
    if about["hearts"]:
        causes["thickening"] = "wall motion: no slice shows cavity and wall all round in all frames"
    return about | {"not_computed": "; ".join(cause for name, cause in causes.items() if about[name] is None)}


def segmenter_of(cohort: Mapping[str, Any]) -> tuple[Segmenter | None, str]:
    """What finds the heart in sequences of a cohort, or None and why nothing does.

    Only short-axis phantoms: `segment_short_axis` is not meant for real images, and nothing else is there.
    """
    patients, spacing_mm = cohort["patients"], cohort.get("spacing_mm")
    others = [patient for patient in patients if patient["modality"] != "phantom"]
    if others:
        kinds = sorted({f"{'synthetic ' if row['synthetic'] else ''}{row['modality']}" for row in others})
        return None, f"only phantoms are segmented here, and these are {', '.join(kinds)}"
    if cohort["spatial_dims"] == 2:
        return None, "a single slice has no volume"
    if spacing_mm is None:
        return None, "the spacing differs between sequences"
    if (coarsest_mm := max(spacing_mm[1:])) > COARSEST_MM:
        return None, f"pixels of {coarsest_mm:.3g} mm are too coarse for the heart's wall, {COARSEST_MM} mm is the most"
    return partial(segment_short_axis, spacing_mm=spacing_mm), ""
