"""A made-up heartbeat: volumes by formula, smooth and invertible fields, a cycle that closes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.cine import LABELS
from models.data.motion import (
    Beat,
    HeartMotion,
    Region,
    beating,
    contraction,
    draw_beat,
    region_of,
    short_axis_grid,
    volume_curve,
)
from models.data.readers import Volume

SPACING_MM = 2.0
AFFINE = np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1.0])
AFFINE[:3, 3] = [40.0, 30.0, -50.0]
BEAT = Beat(ejection_fraction=0.6, long_axis_shortening=0.2, twist_degrees=30.0)
PHASES = np.array([0.0, 0.1, 0.2, 0.35, 0.6, 0.9])


def chamber(bump: bool = True) -> np.ndarray:
    """An oblique chamber (x, y, z) with a bump, so that no formula knows its volume."""
    x, y, z = np.indices((40, 40, 40)) - 19.5
    along, up = 0.8 * x + 0.6 * z, -0.6 * x + 0.8 * z
    mask = (along / 13) ** 2 + (y / 7) ** 2 + (up / 7) ** 2 < 1
    return mask | (((along - 5) ** 2 + (y - 6) ** 2 + up**2 < 16) & bump)


def ct(mask: np.ndarray) -> Volume:
    return Volume(np.where(mask, 500, 50).astype(np.float32), AFFINE, "p", Path("ct.nii"), "CT", "HU")


@pytest.fixture(scope="module")
def motion() -> HeartMotion:
    return HeartMotion(region_of(chamber(), AFFINE), BEAT)


def inside(motion: HeartMotion, number: int, reach: float = 1.7) -> np.ndarray:
    """Points (number, 3) in mm, some in the chamber, some in the rim, some beyond."""
    local = np.random.default_rng(0).uniform(-reach, reach, (number, 3)) * motion.region.radii_mm
    return motion.region.world(local)


def jacobian_by_differences(motion: HeartMotion, points: np.ndarray, phase: float, step: float = 1e-4) -> np.ndarray:
    shifted = [
        (motion.forward(points + step * axis, phase) - motion.forward(points - step * axis, phase)) / (2 * step)
        for axis in np.eye(3)
    ]
    return np.linalg.det(np.stack(shifted, -1))


@pytest.mark.parametrize("systole", [0.2, 0.35, 0.5, 0.7])
def test_the_heart_is_full_at_phase_0_empty_at_systole_and_turns_nowhere_else(systole: float) -> None:
    assert contraction(0.0, systole) == pytest.approx(0, abs=1e-12)
    assert contraction(systole, systole) == pytest.approx(1, abs=1e-12)
    rise, fall = contraction(np.linspace(0, systole, 200), systole), contraction(np.linspace(systole, 1, 200), systole)
    assert (np.diff(rise) > 0).all()
    assert (np.diff(fall) < 0).all()


def test_the_cycle_closes_smoothly() -> None:
    phase = np.linspace(-0.01, 0.01, 41)
    np.testing.assert_allclose(contraction(phase), contraction(phase + 3), atol=1e-12)
    # the second derivative has no step at the seam
    curvature = np.diff(contraction(phase), 2) / np.diff(phase)[0] ** 2
    assert np.abs(np.diff(curvature)).max() < 0.02 * np.abs(curvature).max()


def test_a_systole_of_half_the_cycle_is_a_sinusoid() -> None:
    phase = np.linspace(0, 1, 50)
    np.testing.assert_allclose(contraction(phase, 0.5), (1 - np.cos(2 * np.pi * phase)) / 2, atol=1e-12)


def test_the_region_holds_every_voxel_to_its_corners(motion: HeartMotion) -> None:
    corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T
    voxels = (np.argwhere(chamber())[:, None] + corners).reshape(-1, 3)
    points = voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    assert motion.region.depth(motion.region.local(points)).max() < 1
    np.testing.assert_allclose(motion.region.axes @ motion.region.axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(motion.region.axes) == pytest.approx(1)
    assert abs(motion.region.axes[2] @ [-0.8, 0, 0.6]) > 0.99  # along index (0.8, 0, 0.6), whose x is -RAS


@pytest.mark.parametrize("phase", PHASES)
def test_the_volume_of_the_mask_is_the_prescribed_curve(motion: HeartMotion, phase: float) -> None:
    """The integral of the Jacobian over the mask, by differences of `forward` and not by its own formula."""
    points = np.argwhere(chamber()) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    cell_ml = SPACING_MM**3 / 1000
    volume_ml = jacobian_by_differences(motion, points, phase).sum() * cell_ml
    still_ml = chamber().sum() * cell_ml
    expected_ml = volume_curve(still_ml, BEAT.ejection_fraction, np.array([phase]), BEAT.systole)[0]
    assert volume_ml == pytest.approx(expected_ml, rel=1e-6)


def test_the_jacobian_is_that_of_the_motion_and_above_0_everywhere(motion: HeartMotion) -> None:
    points = inside(motion, 20_000)
    formula = motion.jacobian(points, 0.35)
    assert formula.min() > 0.1
    np.testing.assert_allclose(formula, jacobian_by_differences(motion, points, 0.35), rtol=2e-3, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.25, 1))
def test_any_beat_is_invertible(seed: int, phase: float, rim: float) -> None:
    drawn = draw_beat(np.random.default_rng(seed))
    beat = Beat(drawn.ejection_fraction, drawn.long_axis_shortening, drawn.twist_degrees, drawn.systole, rim)
    motion = HeartMotion(Region(np.zeros(3), np.eye(3), np.array([30.0, 30, 50])), beat)
    points = inside(motion, 500)
    np.testing.assert_allclose(motion.backward(motion.forward(points, phase), phase), points, atol=0.02)  # mm
    assert motion.jacobian(points, phase).min() > 0


def test_the_field_has_no_step_where_it_fades(motion: HeartMotion) -> None:
    local = np.linspace(0, 2, 4001)[:, None] * np.array([[0.5, 0.3, 0.6]])
    local = local / np.linalg.norm([0.5, 0.3, 0.6]) * motion.region.radii_mm
    moved = motion.forward(motion.region.world(local), 0.35) - motion.region.world(local)
    steps = np.linalg.norm(np.diff(moved, axis=0), axis=1)
    bends = np.linalg.norm(np.diff(moved, 2, axis=0), axis=1)
    assert bends.max() < 0.02 * steps.max()


def test_what_is_far_away_and_what_is_at_end_diastole_stands_still(motion: HeartMotion) -> None:
    points = inside(motion, 2000, reach=3)
    far = ~motion.touches(points)
    assert 0 < far.sum() < len(points)
    np.testing.assert_array_equal(motion.forward(points, 0.35)[far], points[far])
    np.testing.assert_allclose(motion.forward(points, 0.0), points, atol=1e-9)
    np.testing.assert_allclose(motion.forward(points, 1.0), points, atol=1e-9)


def test_the_chamber_shortens_and_twists_as_told() -> None:
    region = Region(np.array([1.0, 2, 3]), np.eye(3), np.array([20.0, 20, 40]))
    motion = HeartMotion(region, BEAT)
    tips = region.world(np.array([[0, 0, -40.0], [0, 0, 40.0]]) * 0.999)
    moved = motion.forward(tips, BEAT.systole)
    assert np.linalg.norm(moved[1] - moved[0]) == pytest.approx(0.8 * 0.999 * 80, rel=1e-6)
    # points near the axis at +-z turn by the twist between them, less for the height that they lose meanwhile
    pair = region.world(np.array([[1.0, 0, -30], [1.0, 0, 30]]))
    local = region.local(motion.forward(pair, BEAT.systole))
    angles = np.degrees(np.arctan2(local[:, 1], local[:, 0]))
    mean_height = (0.8 - 1) / np.log(0.8)  # of exp(s log 0.8) over s in [0, 1]
    assert angles[1] - angles[0] == pytest.approx(30 * 60 / 80 * mean_height, rel=1e-5)


def test_pictures_of_the_beat_have_the_volumes_of_the_formula() -> None:
    mask = chamber()
    cine = beating(ct(mask), mask, BEAT, 8, (40, 32, 32), (2.0, 2.0, 2.0))
    counted = np.array([(cine.labels[t] == LABELS["lv"]).sum() for t in range(8)]) * 8 / 1000
    np.testing.assert_allclose(counted, cine.volumes_ml["lv"], rtol=0.04)
    bright = (cine.array > 275).sum((0, 1, 2)) * 8 / 1000
    np.testing.assert_allclose(bright, cine.volumes_ml["lv"], rtol=0.04)
    assert cine.volumes_ml["lv"][0] == pytest.approx(mask.sum() * 8 / 1000)
    assert (cine.synthetic, cine.end_systole, cine.frames) == (True, 3, 8)
    assert "synthetic" in cine.origin


def test_thick_slices_are_averaged_over_their_thickness() -> None:
    mask = chamber(bump=False)
    thin = beating(ct(mask), mask, BEAT, 2, (24, 24, 24), (8 / 3, 2.0, 2.0)).array
    thick = beating(ct(mask), mask, BEAT, 2, (8, 24, 24), (8.0, 2.0, 2.0)).array
    np.testing.assert_allclose(thick, thin.reshape(8, 3, 24, 24, 2).mean(1), atol=1e-3)


def test_the_stack_runs_from_base_to_apex_with_the_patients_left_on_the_right() -> None:
    region = region_of(chamber(), AFFINE)
    grid = short_axis_grid(region, (5, 9, 9), (8.0, 2.0, 2.0))
    np.testing.assert_allclose(grid @ [2, 4, 4, 1], [*region.centre_mm, 1])
    np.testing.assert_allclose(grid[:3, 0], 8 * region.axes[2])
    assert grid[0, 2] < 0  # columns go towards -x of RAS
    assert region.axes[2] @ [-1, 1, -1] > 0


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"ejection_fraction": 0.9}, "ejection_fraction"),
        ({"ejection_fraction": 0.1, "long_axis_shortening": 0.2}, "long_axis_shortening"),
        ({"twist_degrees": 90}, "twist_degrees"),
        ({"systole": 1.0}, "systole"),
        ({"rim": 0.0}, "rim"),
    ],
)
def test_a_beat_out_of_range_is_named(values: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        Beat(**values)
    assert "\n" not in str(caught.value)


def test_a_mask_that_does_not_fit_is_named() -> None:
    volume = ct(chamber())
    with pytest.raises(ValueError, match=r"p: the mask is \(4, 4, 4\), the volume \(40, 40, 40\)"):
        beating(volume, np.ones((4, 4, 4), bool), BEAT, 2, (4, 4, 4), (8.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="marks 0 voxels"):
        beating(volume, np.zeros((40, 40, 40), bool), BEAT, 2, (4, 4, 4), (8.0, 2.0, 2.0))
