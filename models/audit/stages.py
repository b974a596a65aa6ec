"""The audit stages: real images once per cohort; generated images, and how they move, once per run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from models.audit.diversity import draw_pairs, mean_pairwise_ms_ssim, ms_ssim_scales
from models.audit.features import (
    FEATURE_NETWORK,
    Features,
    extract_features,
    load_feature_network,
)
from models.audit.fidelity import MIN_ROWS, frechet_between, kernel_distance_between
from models.audit.motion import real_motion, sample_motion
from models.audit.pictures import save_picture
from models.audit.views import Images, load_images, spread
from models.files import atomic_path

SEED = 0  # the same pairs and training images in every run, so that runs differ by their samples alone
TRAIN_SLICES = 128  # of training images, which are only the yardstick; never fewer than of held-out images


@dataclass(frozen=True)
class Reference:
    """What an audit needs of a cohort's real images; `motion` is None for still ones."""

    heldout: Features
    train: Features
    shape: tuple[int, ...]
    ms_ssim_real: float | None
    ms_ssim_train: float | None
    motion: dict[str, Any] | None = None

    def save(self, path: Path) -> None:
        """Write as .npz; an unknown figure is NaN there."""
        arrays: dict[str, Any] = {
            f"{split}_{field}": getattr(features, field)
            for split, features in (("heldout", self.heldout), ("train", self.train))
            for field in ("values", "items", "planes")
        }
        arrays |= {name: _nan(getattr(self, name)) for name in ("ms_ssim_real", "ms_ssim_train")}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, shape=np.array(self.shape), motion=np.array(json.dumps(self.motion)), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is truncated or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                held = {name: archive[name] for name in archive.files}
            splits = [
                Features(*(held[f"{split}_{field}"] for field in ("values", "items", "planes")))
                for split in ("heldout", "train")
            ]
            real, train = (float(held[name]) for name in ("ms_ssim_real", "ms_ssim_train"))
            motion = json.loads(str(held["motion"]))
            return cls(splits[0], splits[1], tuple(held["shape"].tolist()), _none(real), _none(train), motion)
        except (ValueError, EOFError, KeyError, BadZipFile) as error:
            raise ValueError(f"{path}: not complete reference features; delete it and run again") from error


def _nan(figure: float | None) -> float:
    return np.nan if figure is None else figure


def _none(figure: float) -> float | None:
    return None if np.isnan(figure) else figure


def extract_reference_features(
    *,
    train_path: str | Path,
    heldout_path: str | Path,
    cohort_path: str | Path,
    settings: Mapping[str, Any],
    features_path: str | Path,
    picture_path: str | Path,
) -> dict[str, int]:
    """Features and diversity of a cohort's held-out and training images, and a picture of both.

    Args:
        train_path, heldout_path: arrays (N, 1, [D,] H, W[, T]) in [-1, 1]; of the training images only the first
            `images_train`, which are not augmented.
        cohort_path: the cohort.json beside them.
        settings: `slices_per_volume`, `ms_ssim_pairs`, `picture_samples`.

    Returns:
        The work done: images seen by the feature network (slices in 3D, frames of sequences).

    Raises:
        OSError, ValueError: a file that is missing or damaged, or holds values that are not finite.
    """
    cohort = _read_json(Path(cohort_path))
    moving = bool(cohort.get("frames"))
    heldout = load_images(heldout_path, moving)
    train = load_images(train_path, moving).of_rows(slice(cohort["images_train"]))  # copies follow: no yardstick
    for path, images in ((heldout_path, heldout), (train_path, train)):
        if not len(images):
            raise ValueError(f"{path}: holds no images: check images.held_out, both sides need patients")
        if broken := _not_finite(images):
            raise ValueError(f"{path}: {broken} of {len(images)} images hold values that are not finite")
    network = load_feature_network()
    features = extract_features(heldout, settings["slices_per_volume"], network)
    per_image = len(features.values) // len(heldout)
    budget = max(TRAIN_SLICES, len(features.values)) // per_image
    rows = np.sort(np.random.default_rng(SEED).permutation(len(train))[:budget])
    reference = Reference(
        heldout=features,
        train=extract_features(train, settings["slices_per_volume"], network, rows),
        shape=heldout.shape,
        ms_ssim_real=mean_pairwise_ms_ssim(heldout, settings["ms_ssim_pairs"], SEED),
        ms_ssim_train=mean_pairwise_ms_ssim(train, settings["ms_ssim_pairs"], SEED),
        motion=real_motion(train, heldout, cohort) if moving else None,
    )
    reference.save(Path(features_path))
    each = max(1, settings["picture_samples"] // 2)
    made_up = ", synthetic" if all(patient.get("synthetic") for patient in cohort["patients"]) else ""
    sections = [
        (
            f"{word}{made_up}: {_count(cohort[f'patients_{split}'], 'patient')}",
            images.of_rows(spread(each, len(images))),
        )
        for word, split, images in (("held-out", "heldout", heldout), ("training", "train", train))
    ]
    save_picture(picture_path, sections, cohort.get("spacing_mm"))
    return {"images_seen": len(reference.heldout.values) + len(reference.train.values)}


def audit_fidelity(
    *,
    run: str,
    samples_path: str | Path,
    reference_path: str | Path,
    cohort_path: str | Path,
    settings: Mapping[str, Any],
    fidelity_path: str | Path,
    picture_path: str | Path,
) -> dict[str, int]:
    """Distances from a run's samples to its cohort's held-out images, their diversity, and a picture of them.

    A figure that cannot be had is null in `fidelity_path`, and `not_computed` says why.

    Args:
        run: key of the run, copied into the result.
        samples_path: generated images (N, 1, [D,] H, W[, T]) in [-1, 1].
        reference_path: what `extract_reference_features` wrote for the cohort.
        cohort_path: the cohort.json.
        settings: `slices_per_volume`, `ms_ssim_pairs`, `picture_samples`.

    Returns:
        The work done: images seen by the feature network (slices in 3D, frames of sequences).

    Raises:
        OSError, ValueError: a file that is missing or damaged, or samples of another shape than the cohort's.
    """
    cohort, reference, samples = _read_inputs(cohort_path, reference_path, samples_path)
    report = _describe(run, samples, reference, cohort, settings)
    images_seen = 0
    if broken := _not_finite(samples):
        report["not_computed"] = f"any figure: {broken} of {_count(len(samples), 'sample')} not finite"
    else:
        features = extract_features(samples, settings["slices_per_volume"], load_feature_network())
        images_seen = len(features.values)
        report["sample_slices"] = images_seen
        report |= _distances(features, reference)
        report["ms_ssim"] = mean_pairwise_ms_ssim(samples, settings["ms_ssim_pairs"], SEED)
        report["not_computed"] = _reasons(report, len(samples), len(reference.heldout.values))
    shown = samples.of_rows(slice(settings["picture_samples"]))
    save_picture(picture_path, [("", shown)], cohort.get("spacing_mm"))
    _write_json(fidelity_path, report)
    return {"images_seen": images_seen}


def audit_motion(
    *,
    run: str,
    samples_path: str | Path,
    reference_path: str | Path,
    cohort_path: str | Path,
    motion_path: str | Path,
) -> dict[str, int]:
    """How a run's sequences move and hold together, beside held-out and training ones of its cohort.

    A figure that cannot be had is null in `motion_path`, and `not_computed` says why.

    Args:
        run: key of the run, copied into the result.
        samples_path: generated sequences (N, 1, [D,] H, W, T) in [-1, 1].
        reference_path: what `extract_reference_features` wrote for the cohort.
        cohort_path: the cohort.json.
        motion_path: gets what `sample_motion` says of the samples and `real_motion` of the cohort.

    Returns:
        The work done: voxels of the samples.

    Raises:
        OSError, ValueError: a file that is missing or damaged, samples of another shape than the cohort's, or a cohort
            of still images.
    """
    cohort, reference, samples = _read_inputs(cohort_path, reference_path, samples_path)
    if reference.motion is None:
        raise ValueError(f"{cohort_path}: is of still images, which do not move; set images.frames")
    about = sample_motion(samples, cohort, _not_finite(samples))
    _write_json(motion_path, {"run": run, "cohort": cohort["cohort"]} | about | reference.motion)
    return {"voxels": samples.array.size}


def _read_inputs(
    cohort_path: str | Path, reference_path: str | Path, samples_path: str | Path
) -> tuple[dict[str, Any], Reference, Images]:
    """What the audits of a run look at; samples of another shape than the cohort's are refused."""
    cohort = _read_json(Path(cohort_path))
    samples = load_images(samples_path, bool(cohort.get("frames")))
    reference = Reference.load(Path(reference_path))
    if samples.shape != reference.shape:
        found, expected = samples.shape, reference.shape
        raise ValueError(f"{samples_path}: samples are {found}, the cohort's images {expected}; sample again")
    return cohort, reference, samples


def _describe(
    run: str, samples: Images, reference: Reference, cohort: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The report with its counts filled in and every figure null."""
    return {
        "run": run,
        "cohort": cohort["cohort"],
        "feature_network": FEATURE_NETWORK,
        "samples": len(samples),
        "sample_slices": None,
        "real_images": len(np.unique(reference.heldout.items)),
        "real_slices": len(reference.heldout.values),
        "real_patients": cohort["patients_heldout"],
        "train_images": cohort["images_train"],
        "train_patients": cohort["patients_train"],
        "slices_per_volume": settings["slices_per_volume"] if len(samples.shape) > 2 else None,
        "fid_efficientnet_lite0": None,
        "fid_efficientnet_lite0_train_reference": None,
        "kid_efficientnet_lite0": None,
        "kid_efficientnet_lite0_std": None,
        "kid_efficientnet_lite0_train_reference": None,
        "train_reference_images": None,
        "ms_ssim": None,
        "ms_ssim_real": reference.ms_ssim_real,
        "ms_ssim_train": reference.ms_ssim_train,
        "ms_ssim_pairs": len(draw_pairs(len(samples), settings["ms_ssim_pairs"], SEED)),
        "ms_ssim_scales": ms_ssim_scales(samples.block_shape),
        "not_computed": "",
    }


def _distances(features: Features, reference: Reference) -> dict[str, Any]:
    """Distances to the held-out images of the samples and, as the yardstick, of as many training images."""
    rows = np.unique(reference.train.items)
    chosen = np.sort(np.random.default_rng(SEED).permutation(rows)[: len(np.unique(features.items))])
    train = reference.train.of_items(chosen)
    found: dict[str, Any] = {"train_reference_images": len(chosen)}
    for name, left in (("", features), ("_train_reference", train)):
        if _smallest_plane(left) < MIN_ROWS or _smallest_plane(reference.heldout) < MIN_ROWS:
            continue
        distance, error = kernel_distance_between(left, reference.heldout)
        found[f"fid_efficientnet_lite0{name}"] = frechet_between(left, reference.heldout)
        found[f"kid_efficientnet_lite0{name}"] = distance
        if not name:
            found["kid_efficientnet_lite0_std"] = error
    return found


def _smallest_plane(features: Features) -> int:
    return min((len(plane.values) for plane in features.by_plane()), default=0)


def _reasons(report: Mapping[str, Any], samples: int, real_slices: int) -> str:
    """Why figures are null, one short clause each."""
    missing = [name for name, value in report.items() if value is None]
    counts = f"{_count(samples, 'sample')}, {_count(real_slices, 'real slice')}"
    causes = {
        "fid_efficientnet_lite0": f"fid and kid need 2 slices a plane on each side ({counts})",
        "kid_efficientnet_lite0_std": f"kid std needs 3 samples ({counts})",
        "ms_ssim": f"ms_ssim needs 2 samples ({counts})",
        "ms_ssim_real": f"ms_ssim_real needs 2 held-out images ({_count(report['real_images'], 'image')})",
        "ms_ssim_train": "ms_ssim_train needs 2 training images",
    }
    return "; ".join(cause for name, cause in causes.items() if name in missing)


def _not_finite(images: Images) -> int:
    """How many images hold NaN or infinity, one at a time to spare memory."""
    return sum(not np.isfinite(image).all() for image in images.array)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not complete JSON ({error}); delete it and run again") from error


def _write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
