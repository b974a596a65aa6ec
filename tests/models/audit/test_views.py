"""Slices lie where and as a radiologist expects them."""

from pathlib import Path

import numpy as np
import pytest

from models.audit.views import Images, load_images, spread


def test_head_is_up_and_front_is_up_or_left() -> None:
    """One marked voxel: top of the head (last D), back (last H), patient's left (last W)."""
    volume = np.zeros((4, 5, 6), np.float32)
    volume[3, 4, 5] = 1
    images = Images(volume[None, None])
    assert images.picture(0, "axial", (3, 0))[4, 5] == 1  # back at the bottom, left at the right
    assert images.picture(0, "coronal", (4, 0))[0, 5] == 1  # head on top, left at the right
    assert images.picture(0, "sagittal", (5, 0))[0, 4] == 1  # head on top, back at the right
    shapes = [images.picture(0, plane, (0, 0)).shape for plane in images.planes]
    assert shapes == [(5, 6), (4, 6), (4, 5)]


def test_an_image_is_its_own_slice() -> None:
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    images = Images(image[None, None])
    assert images.planes == ("axial",)
    assert images.places("axial", 24) == [(0, 0)]
    np.testing.assert_array_equal(images.picture(0, "axial", (0, 0)), image)


def test_five_axes_are_volumes_or_single_slices_over_time() -> None:
    array = np.arange(2 * 4 * 5 * 6, dtype=np.float32).reshape(2, 1, 4, 5, 6)
    volumes, sequences = Images(array), Images(array, moving=True)
    assert (volumes.spatial_dims, volumes.frames, len(volumes.planes)) == (3, 1, 3)
    assert (sequences.spatial_dims, sequences.frames, sequences.planes) == (2, 6, ("axial",))
    np.testing.assert_array_equal(volumes.picture(1, "axial", (2, 0)), array[1, 0, 2])
    np.testing.assert_array_equal(sequences.picture(1, "axial", (0, 2)), array[1, 0, :, :, 2])


def test_a_stack_over_time_is_seen_slice_by_slice() -> None:
    array = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32).reshape(2, 1, 3, 4, 5, 6)
    images = Images(array, moving=True)
    assert (images.spatial_dims, images.frames, images.planes, images.depth("axial")) == (3, 6, ("axial",), 3)
    np.testing.assert_array_equal(images.picture(1, "axial", (2, 4)), array[1, 0, 2, :, :, 4])
    assert images.block_shape == (4, 5, 6)
    np.testing.assert_array_equal(images.blocks([1])[0, 2], array[1, 0, 2])


def sequences_of(depth: int, frames: int) -> Images:
    return Images(np.broadcast_to(np.float32(0), (1, 1, depth, 8, 8, frames)), moving=True)


@pytest.mark.parametrize(("depth", "frames"), [(6, 16), (9, 6), (3, 32), (12, 8), (2, 3), (1, 16)])
@pytest.mark.parametrize("count", [1, 5, 24, 1000])
def test_places_spread_over_slices_and_frames(depth: int, frames: int, count: int) -> None:
    places = sequences_of(depth, frames).places("axial", count)
    assert len(set(places)) == len(places) == min(count, depth * frames)
    slices = np.bincount([index for index, _ in places], minlength=depth)
    assert len(slices) == depth
    assert slices.max() - slices.min() <= 1  # each slice as often as any other
    for index in set(np.flatnonzero(slices)):
        of_slice = sorted(frame for place, frame in places if place == index)
        gaps = np.diff([*of_slice, of_slice[0] + frames])
        assert gaps.min() >= frames // len(of_slice)  # and evenly over the cycle
        assert gaps.max() <= -(-frames // len(of_slice))


def test_each_part_of_the_cycle_is_seen_somewhere() -> None:
    """Six slices with four frames each show 16 frames three times in two."""
    frames = np.bincount([frame for _, frame in sequences_of(6, 16).places("axial", 24)], minlength=16)
    assert frames.tolist() == [1, 2] * 8


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", np.zeros((4, 1, 3, 8, 8, 5), np.float32))
    images = load_images(tmp_path / "samples.npy", moving=True)
    for part in (images, images.of_rows(slice(2))):
        assert isinstance(part.array, np.memmap)
    assert isinstance(images.picture(3, "axial", (2, 4)), np.memmap)
    assert len(images.of_rows([0, 2])) == 2


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
    np.save(wrong, np.zeros((4, 1, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"expected sequences \(N, 1, H, W, T\) or .* found \(4, 1, 8, 8\)"):
        load_images(wrong, moving=True)
