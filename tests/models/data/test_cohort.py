"""A cohort from folder to arrays: split, counts, augmentation, and failures that leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.cohort import Cohort, load_cohort, prepare_cohort, split_patients
from models.data.images import fetch_images
from tests.models.data.examples import body, images_config, write_dicom, write_nifti

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three patients; whose picture it is can be told from the body's brightness."""
    write_nifti(tmp_path / "in" / "a.nii.gz", np.where(body() > -500, 0, -1000).astype(np.int16))
    write_nifti(tmp_path / "in" / "b.nii.gz", np.where(body() > -500, 100, -1000).astype(np.int16))
    write_dicom(tmp_path / "in" / "c", np.where(body() > -500, 200, -1000).astype(np.int16))
    return tmp_path / "in"


def prepared(folder: Path, dims: int, resolution: int, out: str = "out", **changes: Any) -> Cohort:
    config = images_config(path=str(folder), **changes)
    home = folder.parent / out
    fetch_images(config, home / "manifest.json")
    work = prepare_cohort(
        manifest_path=home / "manifest.json",
        images_config=config,
        spatial_dims=dims,
        resolution=resolution,
        cohort=f"test-{dims}d-{resolution}",
        train_path=home / "train.npy",
        heldout_path=home / "heldout.npy",
        cohort_path=home / "cohort.json",
    )
    cohort = load_cohort(home)
    assert work["samples"] == len(cohort.train) + len(cohort.heldout)
    assert work["voxels"] == cohort.train.size + cohort.heldout.size
    return cohort


def test_a_2d_cohort_is_split_by_patient(folder: Path) -> None:
    cohort = prepared(folder, 2, 16)
    assert cohort.train.shape == (20, 1, 16, 16)
    assert cohort.heldout.shape == (10, 1, 16, 16)
    assert cohort.train.dtype == np.float32
    middle = cohort.train[:, 0, 8, 8] * 250 + 50  # back to HU
    np.testing.assert_allclose(middle, [0] * 10 + [200] * 10, atol=1)
    np.testing.assert_allclose(cohort.heldout[:, 0, 8, 8] * 250 + 50, 100, atol=1)
    assert cohort.train.min() == -1.0
    info = cohort.info
    assert (info["cohort"], info["images"], info["shape"], info["spacing_mm"]) == (
        "test-2d-16", "test", [16, 16], [3.0, 3.0],
    )  # fmt: skip
    assert [(p["patient"], p["split"], p["images"], p["file"]) for p in info["patients"]] == [
        ("a", "train", 10, "a.nii.gz"),
        ("b", "heldout", 10, "b.nii.gz"),
        ("c", "train", 10, "c"),
    ]
    assert (info["patients_train"], info["patients_heldout"]) == (2, 1)
    assert (info["images_train"], info["images_heldout"], info["copies"]) == (20, 10, 1)
    assert (info["window"], info["unit"], info["skipped"]) == ([-200, 300], "HU", [])


def test_a_3d_cohort_leaves_out_what_is_too_short(folder: Path) -> None:
    write_nifti(folder / "short.nii", body()[:, :, :4])
    cohort = prepared(folder, 3, 8)
    assert cohort.train.shape == (2, 1, 8, 8, 8)
    assert cohort.info["skipped"] == [{"patient": "short", "reason": "16 mm long, less than 50% of 40 mm"}]
    assert cohort.info["spacing_mm"] == [5.0, 6.0, 6.0]  # z, y, x
    with pytest.raises(ValueError, match=r"test-3d-8 has no held-out image \(short: 16 mm long"):
        prepared(folder, 3, 8, held_out=["short"])


def test_volumes_have_the_slices_that_are_asked_for(folder: Path) -> None:
    cohort = prepared(folder, 3, 16, slices=8)
    assert cohort.train.shape == (2, 1, 8, 16, 16)
    assert (cohort.info["shape"], cohort.info["resolution"]) == ([8, 16, 16], 16)
    assert cohort.info["spacing_mm"] == [5.0, 3.0, 3.0]  # 40 mm by 48 by 48
    cube = prepared(folder, 3, 16, "cube")
    assert cube.info["spacing_mm"] == [2.5, 3.0, 3.0]
    pairs = cube.train.reshape(2, 1, 8, 2, 16, 16).mean(3)
    np.testing.assert_allclose(cohort.train[:, :, 1:-1], pairs[:, :, 1:-1], atol=0.01)  # the images end at the ends
    flat = prepared(folder, 2, 16, "flat", slices=8)
    assert flat.train.shape[1:] == (1, 16, 16)  # pictures have none


@pytest.mark.parametrize("dims", [2, 3])
def test_copies_are_of_training_images_only_and_repeat(folder: Path, dims: int) -> None:
    augment = {"copies_2d": 3, "copies_3d": 3, "rotate_degrees": 8, "scale": 0.1, "shift_mm": 4, "gamma": 0.1}
    plain = prepared(folder, dims, 16, "plain")
    one = prepared(folder, dims, 16, "one", augment=augment)
    two = prepared(folder, dims, 16, "two", augment=augment)
    other = prepared(folder, dims, 16, "other", augment=augment, seed=1)
    number = one.info["images_train"]
    assert (one.info["copies"], number) == (3, plain.info["images_train"])
    assert len(one.train) == 3 * number
    np.testing.assert_array_equal(one.train[:number], plain.train)  # the first are the images themselves
    np.testing.assert_array_equal(one.train, two.train)
    np.testing.assert_array_equal(one.heldout, plain.heldout)
    for copy in (1, 2):
        part = one.train[copy * number : (copy + 1) * number]
        assert (np.abs(part - plain.train).reshape(number, -1).max(axis=1) > 0.05).all()
        assert not np.array_equal(part, other.train[copy * number : (copy + 1) * number])
        middle = part[(slice(None), 0, *[8] * dims)]
        assert (middle[: number // 2] < middle[number // 2 :].min()).all()  # copies in the order of the images


def test_another_patient_leaves_the_copies_of_the_others_alone(folder: Path) -> None:
    augment = {"copies_3d": 2, "rotate_degrees": 8, "scale": 0.1, "shift_mm": 4}
    before = prepared(folder, 3, 8, "before", augment=augment)
    write_nifti(folder / "aa.nii", body())
    after = prepared(folder, 3, 8, "after", augment=augment)
    np.testing.assert_array_equal(before.train[2:], after.train[[3, 5]])


def test_without_a_field_of_view_everything_is_seen(folder: Path) -> None:
    cohort = prepared(folder, 2, 8, field_of_view_mm=None)
    assert cohort.info["spacing_mm"] == [9.0, 10.0]  # 72 by 80 mm


def test_no_patient_is_on_both_sides(folder: Path) -> None:
    """A patient with two images, in a folder of its own, goes to one side with both."""
    write_nifti(folder / "c" / "second.nii", body())
    cohort = prepared(folder, 2, 8, held_out=0.4)
    sides = {(row["patient"], row["split"]) for row in cohort.info["patients"]}
    assert len(sides) == 3
    assert len(cohort.info["patients"]) == 4


@given(number=st.integers(2, 40), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_a_fraction_leaves_somebody_on_each_side(number: int, fraction: float, seed: int) -> None:
    patients = [f"p{i}" for i in range(number)]
    held = split_patients(patients * 2, fraction, seed)
    assert 1 <= len(held) <= number - 1
    assert abs(len(held) - fraction * number) <= 1
    assert held == split_patients(patients[::-1], fraction, seed)


@pytest.mark.parametrize(
    ("held_out", "line"),
    [
        (["lung9", "b"], r"images\.held_out: lung9 is not among the patients \(a, b, c\)"),
        (["a", "b", "c"], r"images\.held_out: everybody is held out"),
        ([], r"images\.held_out: nobody is held out"),
        (None, r"images\.held_out: nobody is held out"),
        (1.5, r"images\.held_out: 1\.5 is no fraction"),
    ],
)
def test_a_split_that_cannot_be_is_refused(held_out: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        split_patients(["a", "b", "c"], held_out, 0)


def test_one_patient_is_not_enough() -> None:
    with pytest.raises(ValueError, match="only one patient"):
        split_patients(["a", "a"], 0.5, 0)


def test_patients_named_by_numbers_are_found() -> None:
    assert split_patients(["1", "2"], [1], 0) == {"1"}  # type: ignore[list-item]


def test_a_truncated_file_stops_the_cohort_and_is_named(folder: Path) -> None:
    file = folder / "a.nii.gz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a\.nii\.gz: cannot be read as NIfTI") as caught:
        prepared(folder, 2, 8)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (folder.parent / "out").iterdir()] == ["manifest.json"]


def test_a_full_disk_leaves_nothing_half_written(folder: Path) -> None:
    """The limit on file size stands for a full disk: both let a write fail midway."""
    prepared(folder, 2, 64, "whole")
    home = folder.parent / "full"
    manifest = folder.parent / "whole" / "manifest.json"
    script = f"""
import resource, sys
from models.data.cohort import prepare_cohort
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    prepare_cohort({str(manifest)!r}, {images_config()!r}, 2, 64, "c",
                   {str(home / "train.npy")!r}, {str(home / "heldout.npy")!r}, {str(home / "cohort.json")!r})
except OSError as error:
    print(error)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "File too large" in done.stdout
    assert str(home) in done.stdout
    assert list(home.iterdir()) == []


def test_medmnist_keeps_its_own_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 28, 28)).astype(np.uint8) for n in (7, 3))
    np.savez(tmp_path / "set.npz", train_images=train, val_images=test, test_images=test)
    cohort = prepared(tmp_path / "set.npz", 2, 28, source="medmnist")  # held_out names nobody here: not used
    np.testing.assert_allclose(cohort.train[:, 0], train / 127.5 - 1, atol=1e-4)
    np.testing.assert_allclose(cohort.heldout[:, 0], test / 127.5 - 1, atol=1e-4)
    info = cohort.info
    assert (info["patients_train"], info["patients_heldout"], info["spacing_mm"]) == (7, 3, None)
    assert info["window"] == [0, 255]
    again = prepared(tmp_path / "set.npz", 2, 16, source="medmnist", augment={"copies_2d": 2, "scale": 0.1})
    assert again.train.shape == (14, 1, 16, 16)


def test_medmnist_in_3d(tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 12)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", train_images=volumes, val_images=volumes, test_images=volumes)
    cohort = prepared(tmp_path / "set.npz", 3, 12, source="medmnist")
    np.testing.assert_allclose(cohort.train[:, 0], volumes / 127.5 - 1, atol=1e-4)
    flat = prepared(tmp_path / "set.npz", 3, 12, "flat", source="medmnist", slices=6)
    assert (flat.train.shape, flat.info["shape"]) == ((3, 1, 6, 12, 12), [6, 12, 12])
    with pytest.raises(ValueError, match=r"set\.npz: train_images has shape .* not 2D pictures"):
        prepared(tmp_path / "set.npz", 2, 12, source="medmnist")


def test_cohort_json_is_plain(folder: Path) -> None:
    prepared(folder, 3, 8)
    info = json.loads((folder.parent / "out" / "cohort.json").read_text())
    assert info["credit"] == "images in in"
    assert info["resolution"] == 8
