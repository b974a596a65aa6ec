"""The short-axis phantom: its voxels against its formulae."""

from itertools import pairwise

import numpy as np
import pytest

from models.data.cine import LABELS
from models.data.phantom import Look, ShortAxisHeart, _lune, draw_heart, draw_look, phantom

HEART = ShortAxisHeart()
STILL = Look(noise=0.0)


def errors(spacing_mm: float) -> dict[str, float]:
    """Root mean square over poses and phases of the part by which counted volumes differ from the formula.

    A base plane between two slices alone makes up to half a slice of 2/3 length; poses move it through a slice.
    """
    size = round(136 / spacing_mm)
    shape = (round(104 / spacing_mm), size, size)
    squares: dict[str, list[float]] = {name: [] for name in LABELS}
    for pose in range(4):
        look = Look(noise=0.0, turn_degrees=20.0 * pose, shift_mm=(0.3 + pose, 0.7))
        cine = phantom(ShortAxisHeart(lv_length_mm=80.5 + pose), 2, shape, (spacing_mm,) * 3, look)
        for name, label in LABELS.items():
            counted = np.array([(cine.labels[t] == label).sum() for t in range(2)]) * spacing_mm**3 / 1000
            squares[name] += list((counted / cine.volumes_ml[name] - 1) ** 2)
    return {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}


def test_counted_volumes_come_to_the_formula_as_voxels_shrink() -> None:
    found = [errors(spacing_mm) for spacing_mm in (8.0, 4.0, 2.0)]
    for name in LABELS:
        errors_of = [row[name] for row in found]
        assert errors_of[2] < 0.02, (name, errors_of)
        assert all(fine < 0.8 * coarse for coarse, fine in pairwise(errors_of)), (name, errors_of)


def test_the_lune_is_the_area_of_one_circle_outside_the_other() -> None:
    places = np.random.default_rng(0).uniform(-36, 36, (400_000, 2))
    in_circle = (places**2).sum(1) < 36**2
    in_other = ((places - [28, 0]) ** 2).sum(1) < 33**2
    by_chance = (in_circle & ~in_other).mean() * 72**2
    assert _lune(36, 33, 28) == pytest.approx(by_chance, rel=0.01)


def test_the_ejection_fraction_is_the_one_asked_for() -> None:
    volumes = HEART.volumes_ml(np.array([0.0, HEART.systole]))
    assert 1 - volumes["lv"][1] / volumes["lv"][0] == pytest.approx(HEART.ejection_fraction)
    assert volumes["lv"][0] == pytest.approx(2 / 3 * np.pi * 24**2 * 80 / 1000)


def test_the_wall_keeps_its_volume_and_thickens() -> None:
    full, empty = HEART.shape_at(0.0), HEART.shape_at(HEART.systole)
    wall = [s.outer_radius_mm**2 * s.outer_length_mm - s.radius_mm**2 * s.length_mm for s in (full, empty)]
    assert wall[0] == pytest.approx(wall[1])
    assert 2 / 3 * np.pi * wall[0] / 1000 == pytest.approx(HEART.wall_ml)
    assert full.outer_radius_mm - full.radius_mm == pytest.approx(HEART.wall_mm)
    assert empty.outer_radius_mm - empty.radius_mm > 1.3 * HEART.wall_mm


def test_the_cycle_closes() -> None:
    assert HEART.shape_at(0.0) == HEART.shape_at(1.0)
    one = phantom(HEART, 4, (8, 32, 32), (12.0, 4.0, 4.0), STILL)
    many = phantom(HEART, 8, (8, 32, 32), (12.0, 4.0, 4.0), STILL)
    np.testing.assert_array_equal(one.array, many.array[..., ::2])


def test_intensities_are_means_over_the_voxels() -> None:
    cine = phantom(HEART, 1, (8, 36, 36), (12.0, 4.0, 4.0), STILL)
    tones = cine.array[..., 0]
    assert tones.min() == pytest.approx(STILL.around)
    assert tones.max() == pytest.approx(STILL.blood)
    # the sum over voxels is the formula's: each tissue's volume times its tone
    whole_ml = tones.size * 12 * 4 * 4 / 1000
    volumes = {name: values[0] for name, values in cine.volumes_ml.items()}
    expected = STILL.blood * (volumes["lv"] + volumes["rv"]) + STILL.wall * volumes["myocardium"]
    expected += STILL.around * (whole_ml - sum(volumes.values()))
    assert tones.mean() * whole_ml == pytest.approx(expected, rel=0.01)


def test_it_looks_like_a_short_axis() -> None:
    cine = phantom(HEART, 1, (8, 48, 48), (10.0, 3.0, 3.0), STILL)
    labels = cine.labels[0]
    middle = {name: np.argwhere(labels == label).mean(0) for name, label in LABELS.items()}
    assert middle["rv"][2] < middle["lv"][2] - 5  # the right ventricle is on the picture's left
    areas = (labels == LABELS["lv"]).sum((1, 2))
    assert areas[1] > areas[4] > areas[6]  # base first
    assert cine.synthetic
    assert "synthetic" in cine.origin


def test_noise_is_rician_and_seeded() -> None:
    look = Look(around=0.0, noise=0.05)
    noisy = [phantom(HEART, 1, (2, 48, 48), (10.0, 8.0, 8.0), look, seed=seed).array for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 0.01
    corner = noisy[0][:, :12, :12]
    assert corner.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.1)  # Rayleigh where there is no signal


def test_every_drawn_heart_has_a_right_ventricle_that_empties() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        heart, _ = draw_heart(rng), draw_look(rng)
        volumes = heart.volumes_ml(np.array([0.0, heart.systole]))
        assert 60 < volumes["rv"][0] < 260
        assert volumes["rv"][1] < volumes["rv"][0]
        assert 0.2 <= heart.ejection_fraction <= 0.7


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"wall_mm": 0.0}, "wall_mm"),
        ({"ejection_fraction": 1.0}, "ejection_fraction"),
        ({"rv_offset_mm": 90.0}, "rv_radius_mm"),
    ],
)
def test_an_impossible_heart_is_named(values: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}") as caught:
        ShortAxisHeart(**values)
    assert "\n" not in str(caught.value)
