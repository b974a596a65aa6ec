"""Orientation, spacing, centre, window and augmentation against closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.readers import Volume
from models.data.transforms import (
    Augment,
    bend,
    body_centre,
    draw_motions,
    orient,
    resample_pictures,
    resample_slices,
    resample_volume,
    slice_stride,
)

WINDOW = (0.0, 100.0)


def volume(array: np.ndarray, affine: np.ndarray, unit: str = "HU") -> Volume:
    return Volume(array.astype(np.float32), affine, "p", Path("p.nii"), "CT" if unit == "HU" else "", unit)


def affine_of(codes: str, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """An affine whose axes run to the given sides of the patient, the middle of the grid at the origin."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, code in enumerate(codes):
        row, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[code]
        affine[row, axis] = sign * spacing_mm[axis]
        affine[row, 3] = -sign * spacing_mm[axis] * (shape[axis] - 1) / 2
    return affine


@pytest.mark.parametrize("codes", ["LPS", "RAS", "RPI", "SRA", "PIL"])
def test_a_mark_at_the_left_back_head_corner_comes_out_there(codes: str) -> None:
    sides = {"R": "L", "L": "L", "A": "P", "P": "P", "S": "S", "I": "S"}
    length = {"L": 12, "P": 10, "S": 8}
    shape = tuple(length[sides[code]] for code in codes)
    array = np.full(shape, 50.0)  # all body, so the middle of the grid is the centre
    corner = tuple(size - 1 if code in "LPS" else 0 for code, size in zip(codes, shape, strict=True))
    array[corner] = 100.0
    turned = orient(volume(array, affine_of(codes, (1.0, 1.0, 1.0), shape)), WINDOW)
    assert turned.image.shape == (1, 12, 10, 8)
    assert np.unravel_index(int(turned.image.argmax()), turned.image.shape) == (0, 11, 9, 7)

    cube = resample_volume(turned, (12,) * 3, np.array([1.0, 1.0, 1.0]), np.eye(4)[None])[0, 0]  # (D, H, W)
    assert np.unravel_index(cube.argmax(), cube.shape) == (
        9,
        10,
        11,
    )  # 8 and 10 centred in 12: one or two of padding
    assert cube[0].max() == 0.0  # padded with the window's lower bound
    pictures = resample_slices(turned, 12, np.array([1.0, 1.0]), np.tile(np.eye(3), (1, 8, 1, 1)), 1)[0, :, 0]
    assert np.unravel_index(pictures.argmax(), pictures.shape) == (7, 10, 11)


def test_an_oblique_volume_is_turned_to_the_patient_axes() -> None:
    """A gradient in space stays the same gradient, whatever grid it was sampled on."""
    turn = np.radians(20)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = affine_of("LPS", (2.0, 2.0, 2.0), (60, 60, 20))
    affine[:3] = rotation @ affine[:3]
    index = np.stack([*np.indices((60, 60, 20)), np.ones((60, 60, 20))])
    left_mm = -np.tensordot(affine, index, 1)[0]
    turned = orient(volume(left_mm + 200, affine), (0.0, 400.0))
    cube = resample_volume(turned, (16,) * 3, np.array([2.0, 2.0, 2.0]), np.eye(4)[None])[0, 0]
    step = np.diff(cube, axis=2) * 400
    np.testing.assert_allclose(step, 2.0, atol=0.02)
    np.testing.assert_allclose(np.diff(cube, axis=1), 0, atol=1e-4)


@given(
    source_mm=st.tuples(*[st.floats(0.6, 5.0)] * 3),
    target_mm=st.floats(2.0, 9.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_spacing_is_met_at_any_ratio(source_mm: tuple[float, float, float], target_mm: float, seed: int) -> None:
    """A linear image keeps its slope per mm through blocks, blur and interpolation, away from the border.

    MONAI's Gaussian is cut off and sums to a ten-thousandth less than one, hence the tolerance.
    """
    shape = tuple(int(np.ceil(100 / mm)) for mm in source_mm)
    slope = np.random.default_rng(seed).uniform(-1, 1, 3)  # per mm to left, back, head
    index = np.indices(shape)
    mm = [(index[axis] - (shape[axis] - 1) / 2) * source_mm[axis] for axis in range(3)]
    array = sum(s * m for s, m in zip(slope, mm, strict=True)) + 500
    turned = orient(volume(array, affine_of("LPS", source_mm, shape)), (0.0, 1000.0))
    turned = type(turned)(turned.image, turned.affine, turned.spacing_mm, (np.array(shape) - 1) / 2)
    cube = resample_volume(turned, (4,) * 3, np.full(3, target_mm), np.eye(4)[None])[0, 0] * 1000
    place = (np.arange(4) - 1.5) * target_mm
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    np.testing.assert_allclose(cube, 500 + slope[0] * x + slope[1] * y + slope[2] * z, atol=0.2)


def test_a_flat_box_shows_what_the_cube_shows_with_its_slices_averaged_in_pairs() -> None:
    """Both are also held against the image's own formula: waves of 90 to 130 mm, which blur hardly weakens."""
    lengths_mm, shape, spacing_mm = np.array([90.0, 110.0, 130.0]), (50, 44, 36), (4.0, 4.0, 5.0)
    mm = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm, strict=True)]

    def waves(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        phases = [2 * np.pi * place / length for place, length in zip((x, y, z), lengths_mm, strict=True)]
        return 50 + 15 * np.sin(phases[0]) + 15 * np.sin(phases[1]) + 15 * np.sin(phases[2])

    array = waves(*np.meshgrid(*mm, indexing="ij"))
    turned = orient(volume(array, affine_of("LPS", spacing_mm, shape)), WINDOW)
    turned = type(turned)(turned.image, turned.affine, turned.spacing_mm, (np.array(shape) - 1) / 2)
    view_mm = np.array([144.0, 144.0, 120.0])
    box = resample_volume(turned, (24, 48, 48), view_mm / (48, 48, 24), np.eye(4)[None])[0, 0]
    cube = resample_volume(turned, (48, 48, 48), view_mm / 48, np.eye(4)[None])[0, 0]
    assert box.shape == (24, 48, 48)
    np.testing.assert_allclose(box, cube.reshape(24, 2, 48, 48).mean(1), atol=0.005)
    z, y, x = np.meshgrid((np.arange(24) - 11.5) * 5, *[(np.arange(48) - 23.5) * 3] * 2, indexing="ij")
    np.testing.assert_allclose(box, waves(x, y, z) / 100, atol=0.01)


def test_pictures_take_any_shape() -> None:
    """A ramp along each axis keeps its ends and its slope."""
    ramp = torch.linspace(0, 1, 12)
    stack = ramp[:, None, None].expand(12, 12, 12) * 0.6 + ramp[None, None, :] * 0.4  # (D, H, W)
    still = np.eye(4)[None]
    flat = resample_pictures(stack[None].contiguous(), (6, 12, 12), still)[0, 0]
    assert flat.shape == (6, 12, 12)
    expected = stack.numpy().reshape(6, 2, 12, 12).mean(1)
    np.testing.assert_allclose(flat[1:-1], expected[1:-1], atol=1e-4)  # blur reaches over the ends


def test_a_checkerboard_finer_than_the_grid_becomes_grey_not_moire() -> None:
    array = 100.0 * (np.indices((120, 120, 12)).sum(0) % 2)
    turned = orient(volume(array, affine_of("LPS", (1.0, 1.0, 3.0), (120, 120, 12))), WINDOW)
    pictures = resample_slices(turned, 16, np.array([5.3, 5.3]), np.tile(np.eye(3), (1, 12, 1, 1)), 1)
    assert np.abs(pictures[..., 3:-3, 3:-3] - 0.5).max() < 0.02


def test_the_window_maps_and_clips() -> None:
    array = np.zeros((4, 4, 4))
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = -500, 25, 900
    image = orient(volume(array, affine_of("LPS", (1, 1, 1), (4, 4, 4))), (-50.0, 50.0)).image[0]
    assert (float(image[0, 0, 0]), float(image[1, 1, 1]), float(image[2, 2, 2])) == (0.0, 0.75, 1.0)


def test_without_a_window_the_volume_has_its_own() -> None:
    array = np.arange(1000.0).reshape(10, 10, 10)
    scaled = [
        orient(volume(values, affine_of("LPS", (1, 1, 1), (10, 10, 10)), "intensity"), None).image
        for values in (array, 7 * array + 300)
    ]
    torch.testing.assert_close(scaled[0], scaled[1])
    assert 0.0 == float(scaled[0].min()) < float(scaled[0].mean()) < float(scaled[0].max()) == 1.0


def test_the_table_does_not_move_the_centre() -> None:
    x, y, _ = np.indices((100, 100, 10))
    body = (((x - 60) / 25) ** 2 + ((y - 40) / 18) ** 2) <= 1
    array = np.where(body, 40.0, -1000.0)
    without = body_centre(array.astype(np.float32), np.array([4.0, 4.0, 5.0]), "HU")
    np.testing.assert_allclose(without, [60, 40, 4.5], atol=1)
    array[5:95, 60:62] = 200.0  # a plate below
    array[30:90, 58:60] = -100.0  # and padding that touches the body
    with_table = body_centre(array.astype(np.float32), np.array([4.0, 4.0, 5.0]), "HU")
    np.testing.assert_allclose(with_table, [60, 40, 4.5], atol=2)


def test_air_alone_is_centred_on_the_volume() -> None:
    centre = body_centre(np.full((11, 21, 5), -1000, np.float32), np.ones(3), "HU")
    np.testing.assert_array_equal(centre, [5, 10, 2])


@pytest.mark.parametrize(("native_mm", "stride"), [(1.0, 3), (1.5, 2), (3.0, 1), (5.0, 1)])
def test_slices_are_taken_as_acquired(native_mm: float, stride: int) -> None:
    array = np.broadcast_to(np.arange(12.0), (8, 8, 12)).copy()
    turned = orient(volume(array, affine_of("LPS", (1, 1, native_mm), (8, 8, 12))), (0.0, 12.0))
    assert slice_stride(turned, 3.0) == stride
    number = len(range(0, 12, stride))
    pictures = resample_slices(turned, 4, np.ones(2), np.tile(np.eye(3), (1, number, 1, 1)), stride)
    np.testing.assert_allclose(pictures[0, :, 0, 2, 2] * 12, np.arange(0, 12, stride), atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_motions_stay_within_their_limits_and_repeat(dims: int) -> None:
    augment = Augment(rotate_degrees=10, scale=0.1, shift_mm=5)
    one, two = (draw_motions(np.random.default_rng(3), 200, dims, augment) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    linear, shift = one[:, :dims, :dims], one[:, :dims, dims]
    scale = np.linalg.det(linear) ** (1 / dims)
    assert 0.9 <= scale.min() < 0.92 < 1.08 < scale.max() <= 1.1
    assert 4.5 < np.abs(shift).max() <= 5
    turned = linear / scale[:, None, None]
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.tile(np.eye(dims), (200, 1, 1)), atol=1e-12)
    in_plane = np.degrees(np.abs(np.arctan2(turned[:, 1, 0], turned[:, 0, 0])))
    assert 9 < in_plane.max() < 10.5
    assert (draw_motions(np.random.default_rng(0), 3, dims, Augment()) == np.eye(dims + 1)).all()


def test_a_shift_moves_the_picture_by_as_much() -> None:
    picture = torch.zeros(1, 9, 9)
    picture[0, 4, 4] = 1.0
    motion = np.eye(3)
    motion[:2, 2] = [40.0, -80.0]  # x, y of 360 mm: one pixel right, two up is where the result looks
    moved = resample_pictures(picture, (9, 9), motion[None])[0, 0]
    assert np.unravel_index(moved.argmax(), moved.shape) == (6, 3)
    np.testing.assert_allclose(resample_pictures(picture, (9, 9), np.eye(3)[None])[0, 0], picture[0], atol=1e-6)


def test_gamma_keeps_black_and_white() -> None:
    ramp = np.tile(np.linspace(0, 1, 11, dtype=np.float32), (40, 1))
    bent = bend(ramp, np.random.default_rng(0), Augment(gamma=0.2))
    np.testing.assert_array_equal(bent[:, [0, -1]], ramp[:, [0, -1]])
    assert (np.diff(bent, axis=1) > 0).all()
    power = np.log(bent[:, 5]) / np.log(0.5)
    assert np.exp(-0.2) <= power.min() < 0.9 < 1.1 < power.max() <= np.exp(0.2)
    np.testing.assert_array_equal(bend(ramp, np.random.default_rng(0), Augment()), ramp)
