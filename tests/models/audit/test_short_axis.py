"""The segmenter by tone and shape, on phantoms whose labels are known."""

import numpy as np
import pytest

from models.audit.cardiac import LV, MYOCARDIUM, RV, describe_sequences, dice, ejection, label_volumes
from models.audit.short_axis import segment_short_axis, tones
from models.data.cine import Cine
from models.data.sequences import Grid, make_phantom, sequence_images

GRID = Grid(3, 64, 6, 9, 160.0, 10.0)


@pytest.fixture(scope="module")
def phantoms() -> list[Cine]:
    return [make_phantom(f"phantom-{number:04d}", 0, GRID) for number in range(6)]


def truth(cine: Cine) -> np.ndarray:
    return np.stack([cine.labels[frame] for frame in range(cine.frames)], -1)


def test_drawn_phantoms_are_found(phantoms: list[Cine]) -> None:
    found = [segment_short_axis(sequence_images(cine, GRID)[0, 0], cine.spacing_mm) for cine in phantoms]
    scores = np.array(
        [
            [dice(labels, truth(cine), label) for label in (RV, MYOCARDIUM, LV)]
            for labels, cine in zip(found, phantoms, strict=True)
        ],
        float,
    )
    assert scores.mean(0).min() > 0.88
    assert scores.min() > 0.8
    errors = []
    for labels, cine in zip(found, phantoms, strict=True):
        maps = (labels, truth(cine))
        counted, true = (ejection(label_volumes(m, cine.spacing_mm, LV)).ejection_fraction for m in maps)
        errors.append(abs(counted - true))
    assert np.mean(errors) < 0.06
    assert max(errors) < 0.2


def test_brightness_and_contrast_do_not_matter(phantoms: list[Cine]) -> None:
    first = segment_short_axis(phantoms[0].array, phantoms[0].spacing_mm)
    np.testing.assert_array_equal(segment_short_axis(300 * phantoms[0].array - 100, phantoms[0].spacing_mm), first)


def test_tones_are_those_of_the_picture() -> None:
    picture = np.full((1, 60, 60, 3), 0.1)
    picture[:, 10:40, 10:40] = 0.4
    picture[:, 18:32, 18:32] = 0.9
    np.testing.assert_allclose(tones(picture), [0.1, 0.4, 0.9], atol=0.04)


def test_a_pool_without_a_wall_and_an_empty_picture_are_no_heart() -> None:
    bare = np.full((2, 40, 40, 3), 0.1)
    assert (segment_short_axis(bare, (10.0, 2.0, 2.0)) == 0).all()
    bare[:, 10:30, 10:30] = 0.9
    assert not (segment_short_axis(bare, (10.0, 2.0, 2.0)) == MYOCARDIUM).any()
    with pytest.raises(ValueError, match="short-axis stack over time"):
        segment_short_axis(bare[0], (2.0, 2.0))


def test_a_report_of_generated_sequences_has_an_ejection_fraction(phantoms: list[Cine]) -> None:
    sequences = np.stack([sequence_images(cine, GRID)[0] for cine in phantoms[:3]]) * 2 - 1
    spacing_mm = phantoms[0].spacing_mm
    assert spacing_mm is not None
    report = describe_sequences(sequences, spacing_mm, lambda sequence: segment_short_axis(sequence, spacing_mm))
    exact = np.mean([ejection(cine.volumes_ml["lv"]).ejection_fraction for cine in phantoms[:3]])
    assert report["ejection_fraction"] == pytest.approx(exact, abs=0.06)
    assert report["thickening"] > 0.1
