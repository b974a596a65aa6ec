"""The left ventricle inside a mask of the heart."""

from pathlib import Path

import numpy as np
import pytest

from models.data.readers import Volume
from models.data.ventricle import fetch_heart, left_ventricle

SPACING_MM = 2.0


def heart(flip: bool = False) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Two bright chambers joined by a channel, in a dark wall: the volume, the heart's mask, the left chamber."""
    x, y, z = np.indices((60, 40, 40))  # the index runs to the patient's left, as in LPS
    left = ((x - 40) / 9) ** 2 + ((y - 20) / 11) ** 2 + ((z - 20) / 14) ** 2 < 1
    right = ((x - 18) / 9) ** 2 + ((y - 20) / 12) ** 2 + ((z - 20) / 12) ** 2 < 1
    channel = (abs(x - 29) < 6) & ((y - 20) ** 2 + (z - 20) ** 2 < 9)
    muscle = (x - 42) ** 2 + (y - 24) ** 2 < 3  # papillary, inside the left chamber
    whole = ((x - 30) / 27) ** 2 + ((y - 20) / 17) ** 2 + ((z - 20) / 18) ** 2 < 1
    array = np.where(left | right | channel, 500.0, np.where(whole, 100.0, -50.0))
    array[muscle & left] = 100.0
    affine = np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1.0])
    if flip:
        array, whole, left = array[::-1], whole[::-1], left[::-1]
        affine = affine @ np.array([[-1, 0, 0, 59], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return Volume(array.astype(np.float32), affine, "p", Path("ct.nii"), "CT", "HU"), whole, left


@pytest.mark.parametrize("flip", [False, True])
def test_the_chamber_at_the_patients_left_is_found_with_its_muscles(flip: bool) -> None:
    volume, whole, left = heart(flip)
    found = left_ventricle(volume, whole)
    assert 2 * (found & left).sum() / (found.sum() + left.sum()) > 0.93
    assert not (found & ~whole).any()


def test_a_heart_without_bright_blood_or_another_grid_is_named() -> None:
    volume, whole, _ = heart()
    with pytest.raises(ValueError, match="p: no chamber brighter than 900 HU in the heart"):
        left_ventricle(volume, whole, blood_hu=900)
    with pytest.raises(ValueError, match="p: the heart's mask is empty"):
        left_ventricle(volume, whole & False)
    with pytest.raises(ValueError, match=r"p: the heart's mask is \(4, 4, 4\), the volume"):
        left_ventricle(volume, np.ones((4, 4, 4), bool))


def test_the_left_ventricle_of_the_real_angiogram_has_a_size_of_life(tmp_path: Path) -> None:
    volume, whole = fetch_heart()
    found = left_ventricle(volume, whole)
    volume_ml = found.sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    assert 90 < volume_ml < 140
    assert volume.array[found].mean() > 400  # blood
    middle = volume.affine @ [*np.argwhere(found).mean(0), 1]
    of_heart = volume.affine @ [*np.argwhere(whole).mean(0), 1]
    assert (middle - of_heart)[0] < -10  # left of the heart's middle
    assert (middle - of_heart)[2] < -10  # and below it
