"""Audits of the beating heart, against formulae and the phantom whose truth is known."""

from itertools import permutations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from models.audit.cardiac import (
    LV,
    MYOCARDIUM,
    RV,
    Adherence,
    cycle_gap,
    describe_sequences,
    dice,
    ejection,
    label_volumes,
    mask_adherence,
    slice_consistency,
    slice_synchrony,
    temporal_coherence,
    wall_motion,
)
from models.data.cine import LABELS, Cine
from models.data.phantom import Look, ShortAxisHeart, phantom

HEART = ShortAxisHeart()
FRAMES = 12


@pytest.fixture(scope="module")
def cine() -> Cine:
    return phantom(HEART, FRAMES, (12, 56, 56), (8.0, 2.5, 2.5), Look(noise=0.02))


def all_labels(cine: Cine) -> np.ndarray:
    return np.stack([cine.labels[frame] for frame in range(cine.frames)], -1)


def by_tone(image: np.ndarray) -> np.ndarray:
    """A segmenter for made-up samples: the tone of a pixel is its label."""
    return np.rint(image).astype(int)


def test_the_phantoms_ejection_fraction_is_recovered(cine: Cine) -> None:
    found = ejection(label_volumes(all_labels(cine), cine.spacing_mm, LV))
    exact = ejection(cine.volumes_ml["lv"])
    assert found.ejection_fraction == pytest.approx(HEART.ejection_fraction, abs=0.03)
    assert exact.ejection_fraction == pytest.approx(HEART.ejection_fraction, abs=0.005)  # frames miss systole a little
    assert (found.end_diastole, found.end_systole) == (0, 4)
    half_slice_ml = np.pi * HEART.lv_radius_mm**2 * cine.spacing_mm[0] / 2000  # the base lies between slices
    assert found.end_diastolic_ml == pytest.approx(exact.end_diastolic_ml, abs=half_slice_ml)
    right = ejection(label_volumes(all_labels(cine), cine.spacing_mm, RV))
    assert right.ejection_fraction == pytest.approx(ejection(cine.volumes_ml["rv"]).ejection_fraction, abs=0.05)


def test_volumes_are_counted_in_ml_and_areas_in_square_cm() -> None:
    labels = np.zeros((2, 5, 5, 3), int)
    labels[0, :2, :5, 1] = LV
    np.testing.assert_allclose(label_volumes(labels, (10.0, 2.0, 5.0), LV), [0, 1.0, 0])
    np.testing.assert_allclose(label_volumes(labels[0], (2.0, 5.0), LV), [0, 1.0, 0])
    with pytest.raises(ValueError, match="need 3 spacings, got 2"):
        label_volumes(labels, (1.0, 1.0), LV)


def test_an_ejection_fraction_takes_given_frames_and_survives_an_empty_heart() -> None:
    assert ejection(np.array([100.0, 40.0, 120.0])).ejection_fraction == pytest.approx(2 / 3)
    assert ejection(np.array([100.0, 40.0, 120.0]), (0, 1)).ejection_fraction == pytest.approx(0.6)
    assert ejection(np.zeros(3)).ejection_fraction is None
    for bad in ([1.0], [1.0, -1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="at least two volumes of 0 or more"):
            ejection(np.array(bad))


@pytest.mark.parametrize("turn_degrees", [0.0, 35.0])
def test_wall_motion_is_that_of_the_formula_in_every_sector(turn_degrees: float) -> None:
    heart = ShortAxisHeart(long_axis_shortening=0.0)
    labels, spacing_mm = ring(heart, turn_degrees), (1.0, 1.0)
    moved = wall_motion(labels, spacing_mm)
    assert moved is not None
    full, empty = heart.shape_at(0.0), heart.shape_at(heart.systole)
    np.testing.assert_allclose(moved.displacement_mm[:, 1], full.radius_mm - empty.radius_mm, atol=0.4)
    np.testing.assert_allclose(moved.inner_mm[:, 0], full.radius_mm, atol=0.4)
    wall = [s.outer_radius_mm - s.radius_mm for s in (full, empty)]
    np.testing.assert_allclose(moved.thickening[:, 1], wall[1] / wall[0] - 1, atol=0.08)
    assert (moved.displacement_mm[:, 0] == 0).all()
    assert (moved.slices, moved.inner_mm.shape) == (1, (6, 2))


def ring(heart: ShortAxisHeart, turn_degrees: float = 0.0, size: int = 120) -> np.ndarray:
    """(H, W, 2): the base of the phantom at end diastole and end systole, in pixels of 1 mm."""
    y, x = np.indices((size, size)) - size / 2 + 0.3
    cos, sin = np.cos(np.radians(turn_degrees)), np.sin(np.radians(turn_degrees))
    return np.stack(
        [
            heart.shape_at(phase).label(sin * y + cos * x, cos * y - sin * x, np.zeros_like(x))
            for phase in (0.0, heart.systole)
        ],
        -1,
    )


def test_a_sector_that_stands_still_is_found_and_counted_from_the_right_ventricle() -> None:
    labels = ring(HEART)
    # the half away from the right ventricle keeps its end-diastolic wall: sectors 2, 3, 4 of 6
    away = np.indices((120, 120))[1] > 60
    labels[away, 1] = labels[away, 0]
    moved = wall_motion(labels, (1.0, 1.0))
    assert moved is not None
    shift = moved.displacement_mm[:, 1]
    assert shift[3] == 0
    assert shift[[0, 1, 5]].min() > 5
    turned = wall_motion(labels[:, ::-1], (1.0, 1.0))
    assert turned is not None
    np.testing.assert_allclose(turned.displacement_mm[[0, 3], 1], shift[[0, 3]], atol=1e-6)  # wherever it lies


def test_motion_of_the_whole_heart_is_not_wall_motion_about_a_floating_middle() -> None:
    still = np.repeat(ring(HEART)[..., :1], 2, -1)
    still[..., 1] = np.roll(still[..., 1], (4, -3), (0, 1))
    fixed, moved = (wall_motion(still, (1.0, 1.0), floating=floating) for floating in (False, True))
    assert fixed is not None
    assert moved is not None
    assert np.abs(fixed.displacement_mm).max() > 2
    np.testing.assert_allclose(moved.displacement_mm, 0, atol=1e-9)
    np.testing.assert_allclose(moved.thickening, 0, atol=1e-9)


def test_slices_without_a_whole_wall_do_not_count(cine: Cine) -> None:
    labels = all_labels(cine)
    moved = wall_motion(labels, cine.spacing_mm)
    assert moved is not None
    with_lv = int((labels == LV).any((1, 2)).all(-1).sum())
    assert 4 <= moved.slices <= with_lv < len(labels)
    assert moved.displacement_mm[:, 4].min() > 3
    assert wall_motion(np.where(labels == MYOCARDIUM, 0, labels), cine.spacing_mm) is None


@pytest.mark.parametrize("frames", [4, 8, 30])
def test_a_sinusoid_has_the_coherence_of_the_formula(frames: int) -> None:
    wave = np.cos(2 * np.pi * np.arange(frames) / frames)
    sequence = np.random.default_rng(0).random((6, 7))[..., None] * wave + 3
    expected = 1 - (1 - np.cos(2 * np.pi / frames)) * (frames - 1) / frames
    assert temporal_coherence(sequence) == pytest.approx(expected)


def test_the_mean_coherence_over_all_orders_is_0() -> None:
    sequence = np.random.default_rng(0).random((5, 5))
    values = [temporal_coherence(sequence[:, list(order)]) for order in permutations(range(5))]
    assert np.mean(np.array(values, float)) == pytest.approx(0, abs=1e-12)


def test_coherence_falls_when_frames_are_shuffled(cine: Cine) -> None:
    whole = temporal_coherence(cine.array)
    assert whole is not None
    assert whole > 0.5
    orders = [np.random.default_rng(seed).permutation(FRAMES) for seed in range(20)]
    shuffled = np.array([temporal_coherence(cine.array[..., order]) for order in orders], float)
    assert shuffled.max() < whole - 0.1
    assert abs(shuffled.mean()) < 0.15
    assert temporal_coherence(np.roll(cine.array, 3, -1)) == pytest.approx(whole)  # where the cycle starts is free


def test_a_cycle_that_does_not_close_has_a_gap(cine: Cine) -> None:
    closed, cut = cycle_gap(cine.array), cycle_gap(cine.array[..., :5])  # cut off at end systole
    assert closed is not None
    assert cut is not None
    assert closed < 1.3
    assert cut > 2
    walk = np.ones((3, 3, 1)) * np.arange(9)
    assert cycle_gap(walk) == pytest.approx(8)


def test_what_stands_still_has_no_coherence() -> None:
    still = np.repeat(np.random.default_rng(0).random((4, 4, 1)), 6, -1)
    assert temporal_coherence(still) is None
    assert cycle_gap(still) is None
    assert temporal_coherence(np.random.default_rng(0).random((4, 4, 3))) is None


def test_consistency_falls_when_slices_are_shifted(cine: Cine) -> None:
    whole = slice_consistency(cine.array)
    assert whole is not None
    last = whole
    for shift in (2, 4, 8):
        moved = np.stack([np.roll(piece, shift * (-1) ** z, 0) for z, piece in enumerate(cine.array)])
        value = slice_consistency(moved)
        assert value is not None
        assert value < last - 0.02
        last = value
    assert slice_consistency(2 * cine.array + 5) == pytest.approx(whole)


def test_synchrony_falls_when_slices_are_out_of_phase_and_consistency_hardly_does(cine: Cine) -> None:
    late = np.stack([np.roll(piece, (z % 2) * FRAMES // 3, -1) for z, piece in enumerate(cine.array)])
    whole, other = slice_synchrony(cine.array), slice_synchrony(late)
    assert whole is not None
    assert other is not None
    assert other < 0.6 * whole
    still = slice_consistency(cine.array), slice_consistency(late)
    assert None not in still
    assert abs(still[1] - still[0]) < 0.1 * still[0]


def test_equal_slices_are_consistent_to_1_and_noise_to_0() -> None:
    rng = np.random.default_rng(0)
    same = np.repeat(rng.random((1, 20, 20, 6)), 4, 0)
    noise = rng.random((4, 20, 20, 6))
    for measure in (slice_consistency, slice_synchrony):
        assert measure(same) == pytest.approx(1)
        assert abs(measure(noise) or 0) < 0.1
        assert measure(np.ones((3, 4, 4, 5))) is None
        with pytest.raises(ValueError, match="with two slices"):
            measure(noise[:1])


def test_dice_is_monais() -> None:
    left, right = np.random.default_rng(0).integers(0, 3, (2, 6, 7, 8))
    one_hot = [torch.from_numpy(np.stack([m == k for k in range(3)])[None].astype(float)) for m in (left, right)]
    expected = compute_dice(*one_hot)[0]
    assert [dice(left, right, label) for label in range(3)] == pytest.approx(expected.tolist())
    assert dice(left, right, 9) is None
    with pytest.raises(ValueError, match="maps of one shape"):
        dice(left, right[1:], 1)


@pytest.mark.parametrize("shape", [(8, 8), (4, 8, 8), (4, 8, 8, 3)])
def test_samples_that_follow_their_masks_are_told_from_those_that_do_not(shape: tuple[int, ...]) -> None:
    masks = np.random.default_rng(0).integers(0, 3, (6, 1, *shape))
    followed = mask_adherence(masks.astype(float), masks, by_tone, labels=(1, 2))
    assert followed.own.shape == (6, 2)
    assert followed.mean_own == 1
    assert followed.followed == 1
    assert followed.mean_other is not None
    assert followed.mean_other < 0.5
    ignored = mask_adherence(np.roll(masks, 3, 0).astype(float), masks, by_tone, labels=(1, 2))
    assert ignored.mean_own is not None
    assert ignored.mean_own < 0.5


def test_nobody_is_compared_with_the_own_mask_twice() -> None:
    masks = np.arange(7).reshape(7, 1, 1, 1) * np.ones((7, 1, 4, 4), int)  # sample n holds only label n
    for seed in range(20):
        found = mask_adherence(masks.astype(float), masks, by_tone, labels=range(1, 7), seed=seed)
        assert (np.nan_to_num(found.other) == 0).all()


def test_adherence_without_any_label_is_unknown() -> None:
    empty = Adherence(np.full((2, 1), np.nan), np.full((2, 1), np.nan))
    assert (empty.mean_own, empty.mean_other, empty.followed) == (None, None, None)
    masks = np.zeros((2, 1, 4, 4), int)
    with pytest.raises(ValueError, match="at least two samples"):
        mask_adherence(masks[:1].astype(float), masks[:1], by_tone, (1,))
    with pytest.raises(ValueError, match=r"samples are \(2, 1, 4, 3\), their masks \(2, 1, 4, 4\)"):
        mask_adherence(masks[..., 1:].astype(float), masks, by_tone, (1,))


def test_a_report_has_all_figures_with_a_segmenter_and_coherence_without(cine: Cine) -> None:
    sequences = np.stack([cine.array, np.roll(cine.array, 2, -1)])[:, None]
    labels = all_labels(cine)
    pictures = {id_of(sequences[0, 0]): labels, id_of(sequences[1, 0]): np.roll(labels, 2, -1)}
    report = describe_sequences(sequences, cine.spacing_mm, lambda sequence: pictures[id_of(sequence)])
    assert (report["sequences"], report["frames"]) == (2, FRAMES)
    assert report["ejection_fraction"] == pytest.approx(0.6, abs=0.03)
    assert report["ejection_fraction_std"] == pytest.approx(0, abs=1e-9)
    assert report["displacement_mm"] > 3
    assert report["thickening"] > 0.2
    assert report["slice_synchrony"] > 0.3
    bare = describe_sequences(sequences[:1, :, 4], cine.spacing_mm[1:])
    assert bare["temporal_coherence"] is not None
    assert bare["temporal_coherence_std"] is None
    assert [bare[name] for name in ("ejection_fraction", "slice_consistency", "slice_synchrony")] == [None] * 3
    with pytest.raises(ValueError, match="expected sequences"):
        describe_sequences(sequences[:, 0, 0], cine.spacing_mm)


def id_of(sequence: np.ndarray) -> float:
    return float(sequence[..., 0].sum())


def test_the_labels_are_those_of_the_data() -> None:
    assert {"rv": RV, "myocardium": MYOCARDIUM, "lv": LV} == LABELS
