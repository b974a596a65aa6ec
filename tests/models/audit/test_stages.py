"""Both audit stages over small made-up cohorts, in two and three dimensions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.audit.stages import Reference, audit_fidelity, extract_reference_features
from tests.models.audit.pictures_of import blobs

SETTINGS = {"slices_per_volume": 6, "ms_ssim_pairs": 10, "picture_samples": 4}
Array = NDArray[np.float32]


def make_cohort(
    folder: Path, shape: tuple[int, ...], train: int = 6, heldout: int = 5, frames: int | None = None
) -> None:
    """A cohort as `prepare_cohort` writes it; augmented copies, which the audit must not look at, are NaN."""
    originals = blobs(train, shape, seed=1)
    np.save(folder / "train.npy", np.concatenate([originals, np.full_like(originals, np.nan)]))
    np.save(folder / "heldout.npy", blobs(heldout, shape, seed=2))
    about = {
        "cohort": "balls",
        "patients_train": 3,
        "patients_heldout": 1,
        "images_train": train,
        "spacing_mm": None,
        "frames": frames,
        "spatial_dims": len(shape) - bool(frames),
        "patients": [{"modality": "MR", "synthetic": False, "split": "train", "images": 1}],
    }
    (folder / "cohort.json").write_text(json.dumps(about))


def extract(folder: Path) -> dict[str, int]:
    return extract_reference_features(
        train_path=folder / "train.npy",
        heldout_path=folder / "heldout.npy",
        cohort_path=folder / "cohort.json",
        settings=SETTINGS,
        features_path=folder / "reference_features.npz",
        picture_path=folder / "real.png",
    )


def audit(folder: Path, samples: Array) -> tuple[dict[str, int], dict[str, Any]]:
    np.save(folder / "samples.npy", samples)
    work = audit_fidelity(
        run="run",
        samples_path=folder / "samples.npy",
        reference_path=folder / "reference_features.npz",
        cohort_path=folder / "cohort.json",
        settings=SETTINGS,
        fidelity_path=folder / "fidelity.json",
        picture_path=folder / "samples.png",
    )
    return work, json.loads((folder / "fidelity.json").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2D cohort with its reference features."""
    folder = tmp_path_factory.mktemp("balls-2d-32")
    make_cohort(folder, (32, 32))
    assert extract(folder) == {"images_seen": 11}
    return folder


def test_report_of_images(images: Path) -> None:
    work, report = audit(images, blobs(4, (32, 32), seed=3))
    assert work == {"images_seen": 4}
    counts = {"samples": 4, "sample_slices": 4, "real_images": 5, "real_patients": 1, "train_images": 6}
    assert counts.items() <= report.items()
    assert report["train_patients"] == 3
    assert report["train_reference_images"] == 4  # as many as samples, so that both distances share their bias
    assert report["slices_per_volume"] is None
    assert (report["ms_ssim_scales"], report["ms_ssim_pairs"]) == (2, 6)
    assert report["not_computed"] == ""
    assert all(value is None or isinstance(value, str | int | float) for value in report.values())
    figures = [value for name, value in report.items() if name.startswith(("fid", "kid", "ms_ssim"))]
    assert all(math.isfinite(figure) for figure in figures)
    for name in ("real.png", "samples.png"):
        with Image.open(images / name) as picture:
            picture.verify()


def test_real_images_score_better_than_noise(images: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (5, 1, 32, 32)).astype(np.float32)
    _, bad = audit(images, noise)
    _, good = audit(images, blobs(5, (32, 32), seed=4))
    _, best = audit(images, np.load(images / "heldout.npy"))
    for name in ("fid_efficientnet_lite0", "kid_efficientnet_lite0"):
        assert best[name] < good[name] < bad[name]
    assert best["fid_efficientnet_lite0"] == pytest.approx(0, abs=1e-6)
    assert best["ms_ssim"] == pytest.approx(best["ms_ssim_real"])


def test_copies_of_one_sample_have_no_diversity(images: Path) -> None:
    _, report = audit(images, np.repeat(blobs(1, (32, 32), seed=3), 4, axis=0))
    assert report["ms_ssim"] == pytest.approx(1)


def test_one_sample_gives_nulls_with_a_reason(images: Path) -> None:
    _, report = audit(images, blobs(1, (32, 32)))
    for name in ("fid_efficientnet_lite0", "kid_efficientnet_lite0", "kid_efficientnet_lite0_std", "ms_ssim"):
        assert report[name] is None
    assert "fid and kid need 2 slices a plane on each side (1 sample, 5 real slices)" in report["not_computed"]
    assert "ms_ssim needs 2 samples" in report["not_computed"]
    assert report["ms_ssim_real"] is not None


def test_samples_that_are_not_finite_give_nulls_with_a_reason(images: Path) -> None:
    samples = blobs(3, (32, 32))
    samples[1, 0, 0, 0] = np.nan
    work, report = audit(images, samples)
    assert work == {"images_seen": 0}
    assert report["fid_efficientnet_lite0"] is None
    assert report["not_computed"] == "any figure: 1 of 3 samples not finite"
    assert (images / "samples.png").exists()


def test_volumes(tmp_path: Path) -> None:
    """One held-out volume: distances over its slices, no diversity of real volumes."""
    make_cohort(tmp_path, (12, 16, 16), train=3, heldout=1)
    assert extract(tmp_path) == {"images_seen": 24}
    work, report = audit(tmp_path, blobs(3, (12, 16, 16), seed=5))
    assert work == {"images_seen": 18}
    assert (report["samples"], report["sample_slices"], report["real_images"], report["real_slices"]) == (
        3,
        18,
        1,
        6,
    )
    assert report["slices_per_volume"] == 6
    assert report["fid_efficientnet_lite0"] > 0
    assert report["kid_efficientnet_lite0_std"] > 0
    assert report["ms_ssim_real"] is None
    assert report["ms_ssim_train"] < 1
    assert report["not_computed"] == "ms_ssim_real needs 2 held-out images (1 image)"


def test_bad_input_is_one_clear_line(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples\.npy: samples are \(16, 16\), .* \(32, 32\); sample again"):
        audit(images, blobs(2, (16, 16)))
    (tmp_path / "half.npz").write_bytes((images / "reference_features.npz").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"half\.npz: not complete reference features"):
        Reference.load(tmp_path / "half.npz")
    make_cohort(tmp_path, (16, 16))
    np.save(tmp_path / "heldout.npy", np.full((2, 1, 16, 16), np.inf, np.float32))
    with pytest.raises(ValueError, match=r"heldout\.npy: 2 of 2 images hold values that are not finite"):
        extract(tmp_path)
    assert not (tmp_path / "reference_features.npz").exists()


def test_sequences_of_single_slices(tmp_path: Path) -> None:
    """Five axes with frames are no volumes: frames of one plane, no more than there are, grouped by sequence."""
    make_cohort(tmp_path, (16, 18, 5), train=4, heldout=3, frames=5)
    assert extract(tmp_path) == {"images_seen": 7 * 5}
    work, report = audit(tmp_path, blobs(3, (16, 18, 5), seed=5))
    assert work == {"images_seen": 15}
    assert (report["samples"], report["sample_slices"], report["real_images"], report["real_slices"]) == (3, 15, 3, 15)
    assert report["slices_per_volume"] == 6
    assert report["ms_ssim"] < 1
    assert report["not_computed"] == ""
    assert report["kid_efficientnet_lite0_std"] > 0  # over three sequences, not fifteen frames
    assert audit(tmp_path, blobs(2, (16, 18, 5), seed=5))[1]["kid_efficientnet_lite0_std"] is None


def test_stacks_over_time(tmp_path: Path) -> None:
    make_cohort(tmp_path, (3, 16, 18, 5), train=4, heldout=3, frames=5)
    assert extract(tmp_path) == {"images_seen": 7 * 6}
    _, report = audit(tmp_path, blobs(3, (3, 16, 18, 5), seed=5))
    assert (report["sample_slices"], report["real_slices"], report["not_computed"]) == (18, 18, "")
    with pytest.raises(ValueError, match=r"samples are \(3, 16, 18, 4\), .* \(3, 16, 18, 5\); sample again"):
        audit(tmp_path, blobs(2, (3, 16, 18, 4)))
    with pytest.raises(ValueError, match=r"samples\.npy: expected sequences .* found \(2, 1, 16, 18\)"):
        audit(tmp_path, blobs(2, (16, 18)))
