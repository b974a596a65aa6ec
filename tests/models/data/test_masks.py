"""Label maps by thresholds, and from files however their axes lie."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from models.data.mask_files import mask_files, read_mask
from models.data.masks import label_map, thresholds
from models.data.readers import read_volume
from models.data.transforms import orient, resample_slices

WINDOW = (-200, 300)
CT = {"fat": [-150, -30], "soft": [-30, 130], "bone": [130, None]}
LABELS = {"a": [None, 0], "b": [0, None]}


def to_image(intensity):
    """As a cohort maps its window to [-1, 1]."""
    return 2 * (np.clip(intensity, *WINDOW) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]) - 1


def test_the_map_of_an_image_is_that_of_its_intensities():
    intensity = np.random.default_rng(0).uniform(-1000, 1000, (1, 50, 50))
    expected = np.select(
        [(intensity >= -150) & (intensity < -30), (intensity >= -30) & (intensity < 130), intensity >= 130],
        [1, 2, 3],
        0,
    )
    found = label_map(to_image(intensity).astype(np.float32), thresholds(CT, WINDOW))
    assert found.dtype == np.uint8
    assert (found == expected).all()
    assert set(np.unique(found)) == {0, 1, 2, 3}


def test_what_was_clipped_at_the_window_is_in_an_open_range():
    ranges = thresholds({"low": [None, -100], "high": [200, None]}, WINDOW)
    assert label_map(np.array([-1.0, -0.7, 0.0, 0.9, 1.0], np.float32), ranges).tolist() == [1, 1, 0, 2, 2]


@pytest.mark.parametrize(
    ("labels", "window", "told"),
    [
        ({"fat": [-250, -30]}, WINDOW, r"control\.labels\.fat: \[-250, -30\] has bound -250.*-200 to 300; null"),
        ({"air": [-200, -30]}, WINDOW, "has bound -200, which is not inside"),
        ({"metal": [400, None]}, WINDOW, "metal.*bound 400"),
        ({"fat": [-30, -150]}, WINDOW, "fat.*is empty"),
        ({"all": [None, None]}, WINDOW, r"all: \[null, null\] has no bound"),
        ({"fat": [-150, 0], "soft": [-30, 130]}, WINDOW, r"soft: \[-30, 130\] overlaps fat"),
        ({"soft": [-30, 130], "fat": [None, 0]}, WINDOW, r"soft: \[-30, 130\] overlaps fat"),
        ({"fat": [-150, -30]}, None, r"fat: \[-150, -30\] needs images of one unit; set images\.window"),
    ],
)
def test_ranges_that_no_image_shows_are_refused(labels, window, told):
    with pytest.raises(ValueError, match=told):
        thresholds(labels, window)


def scan(seed=0, shape=(10, 12, 9)):
    """A volume with three values, in (x, y, z) towards left, back and head, and its affine to RAS mm."""
    values = np.random.default_rng(seed).choice([-1000.0, 50.0, 400.0], shape)
    return values, np.diag([-4.0, -5.0, 6.0, 1.0])


def cohort_array(folder: Path, values, affine):
    """The volume as a cohort holds it, without a change of its grid: in [-1, 1]."""
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), folder / "scan.nii.gz")
    volume = read_volume({"patient": "p", "format": "nifti", "files": [str(folder / "scan.nii.gz")]})
    oriented = orient(volume, WINDOW)
    return 2 * oriented.image[0].numpy().transpose() - 1


TURNS = [("as it is", lambda v: v), ("flipped", lambda v: v.as_reoriented([[0, -1], [1, 1], [2, -1]])),
         ("permuted", lambda v: v.as_reoriented([[2, 1], [0, -1], [1, 1]]))]  # fmt: skip


@pytest.mark.parametrize("turn", [turn for _, turn in TURNS], ids=[name for name, _ in TURNS])
def test_a_file_is_read_in_the_order_of_a_cohort(tmp_path, turn):
    """Whichever way a file's axes run, its map is that of the cohort's own array of the same volume."""
    values, affine = scan()
    expected = label_map(
        cohort_array(tmp_path, values, affine), thresholds({"soft": [0, 100], "bone": [100, None]}, WINDOW)
    )
    assert expected.shape == (9, 12, 10) and set(np.unique(expected)) == {0, 1, 2}
    labels = np.select([values == 50, values == 400], [1, 2], 0).astype(np.uint8)
    nibabel.save(turn(nibabel.Nifti1Image(labels, affine)), tmp_path / "mask.nii.gz")
    found = read_mask(tmp_path / "mask.nii.gz", (9, 12, 10), [6.0, 5.0, 4.0], LABELS)
    assert found.dtype == np.uint8
    assert (found == expected[None]).all()
    moved = nibabel.load(tmp_path / "mask.nii.gz")
    lying = moved.affine.copy()
    lying[:3, 3] += 70  # elsewhere in the scanner
    nibabel.save(nibabel.Nifti1Image(np.asarray(moved.dataobj), lying), tmp_path / "elsewhere.nii")
    assert (read_mask(tmp_path / "elsewhere.nii", (9, 12, 10), [6.0, 5.0, 4.0], LABELS) == found).all()


def test_a_slice_is_turned_as_the_slices_of_a_cohort(tmp_path):
    values, _ = scan(shape=(40, 40, 3))
    values[:2], values[-1] = 400, 50  # no symmetry
    affine = np.diag([4.0, 4.0, 6.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), tmp_path / "scan.nii.gz")
    oriented = orient(
        read_volume({"patient": "p", "format": "nifti", "files": [str(tmp_path / "scan.nii.gz")]}), WINDOW
    )
    centred = replace(oriented, centre=np.array([19.5, 19.5, 1.0]))
    still = np.tile(np.eye(3), (1, 3, 1, 1))
    slices = resample_slices(centred, 40, np.array([4.0, 4.0]), still, 1)[0]  # (3, 1, H, W)
    expected = label_map(2 * slices[1] - 1, thresholds({"soft": [0, 100], "bone": [100, None]}, WINDOW))
    labels = np.select([values == 50, values == 400], [1, 2], 0).astype(np.uint8)[..., 1:2]
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "mask.nii.gz")
    assert (read_mask(tmp_path / "mask.nii.gz", (40, 40), [4.0, 4.0], LABELS) == expected).all()


def saved(folder, labels, affine=None, name="mask.nii.gz"):
    nibabel.save(
        nibabel.Nifti1Image(labels, np.diag([-4.0, -5.0, 6.0, 1.0]) if affine is None else affine), folder / name
    )
    return folder / name


@pytest.mark.parametrize(
    ("labels", "spacing_mm", "told"),
    [
        (np.zeros((10, 12, 8), np.uint8), (6, 5, 4), r"mask of 10 x 12 x 8 voxels .* trained on 10 x 12 x 9"),
        (np.zeros((10, 12, 9), np.uint8), (6, 5, 4.05), r"spacing of 4 x 5 x 6 mm .* trained on 4\.05 x 5 x 6 mm"),
        (np.full((10, 12, 9), 3, np.uint8), (6, 5, 4), "has label 3, and this model was trained on 1 a, 2 b, and 0"),
        (np.full((10, 12, 9), 0.5, np.float32), (6, 5, 4), r"has label 0\.5"),
    ],
)
def test_a_mask_unlike_those_of_the_training_is_named(tmp_path, labels, spacing_mm, told):
    path = saved(tmp_path, labels)
    with pytest.raises(ValueError, match=rf"mask\.nii\.gz: .*{told}"):
        read_mask(path, (9, 12, 10), spacing_mm, LABELS)


def test_a_spacing_within_a_hundredth_or_of_images_without_one_is_taken(tmp_path):
    path = saved(tmp_path, np.ones((10, 12, 9), np.uint8))
    for spacing_mm in ((6.0, 5.0, 4.03), None):
        assert (read_mask(path, (9, 12, 10), spacing_mm, LABELS) == 1).all()


def test_an_unreadable_file_is_named(tmp_path):
    path = saved(tmp_path, np.zeros((10, 12, 9), np.uint8))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"mask\.nii\.gz: cannot be read"):
        read_mask(path, (9, 12, 10), None, LABELS)


def test_files_go_by_name_and_too_few_are_refused(tmp_path):
    for name in ("b.nii", "a.nii.gz", ".hidden.nii", "notes.txt", "c.nii"):
        (tmp_path / name).touch()
    assert [file.name for file in mask_files(tmp_path, 2)] == ["a.nii.gz", "b.nii"]
    with pytest.raises(ValueError, match=r"control\.masks: .* has 3 NIfTI files, and control\.samples asks for 4"):
        mask_files(tmp_path, 4)
    with pytest.raises(ValueError, match=r"control\.masks: there is no folder"):
        mask_files(tmp_path / "nowhere", 1)
