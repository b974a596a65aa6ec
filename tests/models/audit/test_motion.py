"""The audit of motion: what it says of sequences whose motion is known, and of what it can say nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.audit.cardiac import describe_sequences
from models.audit.motion import real_motion, sample_motion, segmenter_of
from models.audit.short_axis import COARSEST_MM
from models.audit.stages import audit_motion, extract_reference_features
from models.audit.views import Images
from models.data.sequences import Grid, about_sequence, make_phantom, sequence_images
from tests.models.audit.pictures_of import blobs

GRID = Grid(3, 48, 6, 10, 150.0, 10.0)
TRAIN, HELDOUT = 3, 2
SETTINGS = {"slices_per_volume": 4, "ms_ssim_pairs": 2, "picture_samples": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of phantoms with its reference; augmented copies, which must not be looked at, are NaN."""
    folder = tmp_path_factory.mktemp("phantoms")
    cines = [make_phantom(f"phantom-{number:04d}", 0, GRID) for number in range(TRAIN + HELDOUT)]
    arrays = np.stack([2 * sequence_images(cine, GRID)[0] - 1 for cine in cines])
    np.save(folder / "train.npy", np.concatenate([arrays[:TRAIN], np.full_like(arrays[:1], np.nan)]))
    np.save(folder / "heldout.npy", arrays[TRAIN:])
    np.save(folder / "samples.npy", arrays[TRAIN:][::-1])
    splits = ["train"] * TRAIN + ["heldout"] * HELDOUT
    rows = [
        {"patient": cine.patient, "split": split, "images": 1} | about_sequence(cine)
        for cine, split in zip(cines, splits, strict=True)
    ]
    about = {
        "cohort": "phantoms", "spatial_dims": 3, "frames": GRID.frames, "spacing_mm": cines[0].spacing_mm,
        "patients": rows, "patients_train": TRAIN, "patients_heldout": HELDOUT, "images_train": TRAIN,
    }  # fmt: skip
    (folder / "cohort.json").write_text(json.dumps(about))
    extract_reference_features(
        train_path=folder / "train.npy",
        heldout_path=folder / "heldout.npy",
        cohort_path=folder / "cohort.json",
        settings=SETTINGS,
        features_path=folder / "reference_features.npz",
        picture_path=folder / "real.png",
    )
    return folder


def cohort_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return json.loads((folder / "cohort.json").read_text()) | changes


def audit(folder: Path, samples: str = "samples.npy") -> dict[str, Any]:
    work = audit_motion(
        run="run",
        samples_path=folder / samples,
        reference_path=folder / "reference_features.npz",
        cohort_path=folder / "cohort.json",
        motion_path=folder / "motion.json",
    )
    report = json.loads((folder / "motion.json").read_text())
    assert work == {"voxels": report["sequences"] * 10 * 48 * 48 * 6}
    return report


def test_perfect_samples_move_as_held_out_ones(folder: Path) -> None:
    report = audit(folder)
    assert (report["run"], report["cohort"], report["not_computed"]) == ("run", "phantoms", "")
    assert (report["sequences"], report["hearts"], report["heldout_hearts"], report["train_sequences"]) == (2, 2, 2, 3)
    held = {name.removeprefix("heldout_"): value for name, value in report.items() if name.startswith("heldout_")}
    for name, value in held.items():
        if "true" not in name:
            assert report[name] == pytest.approx(value), name


def test_the_yardstick_is_what_is_known_of_the_same_phantoms(folder: Path) -> None:
    """Ejection fractions by formula, and those by segmentation near them; training ones without the copies."""
    report = audit(folder)
    rows = cohort_of(folder)["patients"]
    for split in ("train", "heldout"):
        known = [row["ejection_fraction"] for row in rows if row["split"] == split]
        assert report[f"{split}_true_ejection_fraction"] == pytest.approx(np.mean(known))
        assert report[f"{split}_true_ejection_fraction_std"] == pytest.approx(np.std(known, ddof=1))
        assert report[f"{split}_ejection_fraction"] == pytest.approx(np.mean(known), abs=0.08)
    train = np.load(folder / "train.npy")[:TRAIN]
    segment, _ = segmenter_of(cohort_of(folder))
    direct = describe_sequences(train, cohort_of(folder)["spacing_mm"], segment)
    assert report["train_thickening"] == pytest.approx(direct["thickening"])
    assert report["train_slice_synchrony"] == pytest.approx(direct["slice_synchrony"])


def test_each_way_of_moving_wrongly_shows_in_its_figure(folder: Path) -> None:
    good = audit(folder)
    samples = np.load(folder / "samples.npy")
    still = np.repeat(samples[..., :1], GRID.frames, axis=-1)
    spoiled = {
        "shuffled": samples[..., [0, 3, 1, 4, 2, 5]],
        "apart": np.stack([np.roll(samples[:, :, z], 3 * z, axis=-1) for z in range(10)], axis=2),
        "shifted": np.stack([np.roll(samples[:, :, z], 12 * (z % 2), axis=-2) for z in range(10)], axis=2),
        "still": still,
    }
    reports = {}
    for name, array in spoiled.items():
        np.save(folder / f"{name}.npy", array)
        reports[name] = audit(folder, f"{name}.npy")
    assert reports["shuffled"]["temporal_coherence"] < 0 < good["temporal_coherence"]
    assert reports["apart"]["slice_synchrony"] < 0.3 * good["slice_synchrony"]
    assert reports["shifted"]["slice_consistency"] < 0.6 * good["slice_consistency"]
    assert reports["still"]["ejection_fraction"] == 0
    assert reports["still"]["temporal_coherence"] is None
    assert "temporal coherence and cycle gap: too few frames, or nothing moves" in reports["still"]["not_computed"]


def test_samples_without_a_heart_have_no_ejection_fraction(folder: Path) -> None:
    """Nor has one whose heart is there in some frames only: no ejection fraction of 1."""
    samples = np.load(folder / "samples.npy")
    samples[0] = np.random.default_rng(0).uniform(-1, 1, samples[0].shape)
    np.save(folder / "half.npy", samples)
    report = audit(folder, "half.npy")
    assert (report["sequences"], report["hearts"]) == (2, 1)
    assert report["ejection_fraction_std"] is None
    samples[1, ..., 3] = samples[1].min()
    np.save(folder / "none.npy", samples)
    report = audit(folder, "none.npy")
    assert (report["hearts"], report["ejection_fraction"], report["thickening"]) == (0, None, None)
    assert report["not_computed"] == "ejection fraction and wall motion: no heart was found"


def test_only_phantoms_of_fine_pixels_are_segmented(folder: Path) -> None:
    cohort = cohort_of(folder)
    assert segmenter_of(cohort)[0] is not None
    beating = {"modality": "CT", "synthetic": True}
    real = {"modality": "MR", "synthetic": False}
    mixed = cohort | {"patients": [*cohort["patients"], beating, real]}
    for changed, reason in (
        (mixed, "only phantoms are segmented here, and these are MR, synthetic CT"),
        (cohort | {"spatial_dims": 2}, "a single slice has no volume"),
        (cohort | {"spacing_mm": None}, "the spacing differs between sequences"),
        (cohort | {"spacing_mm": [10.0, COARSEST_MM, 5.0]}, "pixels of 5 mm are too coarse for the heart's wall, "),
    ):
        segment, why_not = segmenter_of(changed)
        assert segment is None
        assert why_not.startswith(reason)


def test_single_slices_over_time_say_what_they_cannot_have(folder: Path) -> None:
    cohort = cohort_of(folder, spatial_dims=2)
    sequences = Images(np.load(folder / "heldout.npy")[:, :, 5], moving=True)
    about = sample_motion(sequences, cohort)
    assert about["temporal_coherence"] > 0
    assert about["not_computed"] == (
        "slice consistency and synchrony: one slice has no neighbour; "
        "ejection fraction and wall motion: a single slice has no volume"
    )
    real = real_motion(sequences, sequences, cohort)
    assert real["heldout_temporal_coherence"] == about["temporal_coherence"]
    assert real["train_true_ejection_fraction"] is None


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    samples = np.load(folder / "samples.npy")
    samples[1, 0, 0, 0, 0, 0] = np.nan
    np.save(folder / "broken.npy", samples)
    report = audit(folder, "broken.npy")
    assert report["not_computed"] == "any figure: 1 of 2 samples not finite"
    assert report["temporal_coherence"] is None
    assert report["heldout_temporal_coherence"] is not None
    np.save(folder / "short.npy", samples[..., :4])
    with pytest.raises(ValueError, match=r"short\.npy: samples are \(10, 48, 48, 4\), .* sample again"):
        audit(folder, "short.npy")
    still = cohort_of(folder, frames=None, spatial_dims=2, spacing_mm=None)
    (tmp_path / "cohort.json").write_text(json.dumps(still))
    for name in ("train", "heldout", "samples"):
        np.save(tmp_path / f"{name}.npy", blobs(4, (16, 16)))
    paths = {"heldout_path": tmp_path / "heldout.npy", "cohort_path": tmp_path / "cohort.json"}
    extract_reference_features(
        **paths, train_path=tmp_path / "train.npy", settings=SETTINGS,
        features_path=tmp_path / "reference_features.npz", picture_path=tmp_path / "real.png",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"cohort\.json: is of still images, which do not move; set images\.frames"):
        audit(tmp_path)
