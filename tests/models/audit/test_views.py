"""Slices lie where and as a radiologist expects them."""

from pathlib import Path

import numpy as np
import pytest

from models.audit.views import load_images, planes_of, slice_in_plane, spread


def test_head_is_up_and_front_is_up_or_left() -> None:
    """One marked voxel: top of the head (last D), back (last H), patient's left (last W)."""
    volume = np.zeros((4, 5, 6), np.float32)
    volume[3, 4, 5] = 1
    assert slice_in_plane(volume, "axial", 3)[4, 5] == 1  # back at the bottom, left at the right
    assert slice_in_plane(volume, "coronal", 4)[0, 5] == 1  # head on top, left at the right
    assert slice_in_plane(volume, "sagittal", 5)[0, 4] == 1  # head on top, back at the right
    shapes = [slice_in_plane(volume, plane, 0).shape for plane in planes_of(volume[None, None])]
    assert shapes == [(5, 6), (4, 6), (4, 5)]


def test_an_image_is_its_own_slice() -> None:
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert planes_of(image[None, None]) == ("axial",)
    np.testing.assert_array_equal(slice_in_plane(image, "axial", 0), image)


@pytest.mark.parametrize(
    ("count", "size", "expected"), [(3, 9, [1, 4, 7]), (1, 5, [2]), (9, 3, [0, 1, 2]), (2, 4, [1, 3])]
)
def test_spread(count: int, size: int, expected: list[int]) -> None:
    assert spread(count, size) == expected


def test_unreadable_arrays_are_named(tmp_path: Path) -> None:
    truncated, wrong = tmp_path / "truncated.npy", tmp_path / "wrong.npy"
    np.save(truncated, np.zeros((4, 1, 8, 8), np.float32))
    truncated.write_bytes(truncated.read_bytes()[:-100])
    np.save(wrong, np.zeros((4, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"truncated\.npy: not a complete"):
        load_images(truncated)
    with pytest.raises(ValueError, match=r"wrong\.npy: expected images .* found \(4, 8, 8\)"):
        load_images(wrong)
    with pytest.raises(OSError, match=r"missing\.npy"):
        load_images(tmp_path / "missing.npy")
