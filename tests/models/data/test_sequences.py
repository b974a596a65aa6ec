"""Heart sequences as a source of images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data import sequences as module
from models.data.cine import Cine
from models.data.sequences import (
    CREDITS,
    Grid,
    about_sequence,
    augmented,
    find_sequences,
    make_phantom,
    read_sequences,
    sequence_images,
    sequence_spacing_mm,
    write_sequences,
)
from models.data.shapes import MADE_UP, SEQUENCES
from models.data.transforms import Augment
from tests.models.data.test_cine_folders import write_acdc, write_mnms2
from tests.models.data.test_ventricle import heart

CONFIG: dict[str, Any] = {
    "source": "phantom",
    "sequences": 3,
    "frames": 4,
    "slices": 5,
    "field_of_view_mm": [160, 160, 100],
    "slice_step_mm": 16,
    "seed": 0,
}


def grid_of(dims: int = 3, **changes: Any) -> Grid:
    return Grid.of(CONFIG | changes, dims, 24)


@pytest.mark.parametrize(("dims", "shape"), [(2, (24, 24, 4)), (3, (5, 24, 24, 4))])
def test_phantoms_become_images_of_a_cohort(dims: int, shape: tuple[int, ...]) -> None:
    grid = grid_of(dims)
    assert grid.shape == shape
    entries = find_sequences(CONFIG)
    assert [entry["patient"] for entry in entries] == ["phantom-0000", "phantom-0001", "phantom-0002"]
    for _, cine in read_sequences(entries, grid):
        images = sequence_images(cine, grid)
        assert images.shape[1:] == (1, *shape)
        with_heart = int(np.any([labels.any((1, 2)) for labels in cine.labels.values()], 0).sum())
        assert len(images) == (1 if dims == 3 else with_heart)
        assert (images.min(), images.max()) == (0, 1)
        assert about_sequence(cine)["synthetic"] is True
        assert 0.15 < about_sequence(cine)["ejection_fraction"] <= 0.7


def test_a_phantom_more_leaves_the_others_as_they_are() -> None:
    grid = grid_of()
    one = make_phantom("phantom-0001", 0, grid)
    np.testing.assert_array_equal(one.array, list(read_sequences(find_sequences(CONFIG), grid))[1][1].array)
    assert not np.array_equal(one.array, make_phantom("phantom-0001", 1, grid).array)
    assert not np.array_equal(one.array, make_phantom("phantom-0002", 0, grid).array)


def test_beats_of_one_ct_differ_in_motion_and_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, whole, _ = heart()
    reads = []
    monkeypatch.setattr(module, "fetch_heart", lambda: reads.append(1) or (volume, whole))
    config = CONFIG | {"source": "beating", "sequences": 2}
    cines = [cine for _, cine in read_sequences(find_sequences(config), grid_of(source="beating"))]
    assert len(reads) == 1
    np.testing.assert_allclose(cines[0].array[..., 0], cines[1].array[..., 0], atol=0.1)  # one patient
    assert np.abs(cines[0].array - cines[1].array).max() > 50
    assert all(cine.synthetic for cine in cines)
    assert len({about_sequence(cine)["ejection_fraction"] for cine in cines}) == 2


@pytest.mark.parametrize(("source", "write"), [("acdc", write_acdc), ("mnms2", write_mnms2)])
def test_folders_are_sources(tmp_path: Path, source: str, write: Any) -> None:
    truth = make_phantom("p", 0, Grid(3, 28, 4, 6, 112.0, 10.0))
    write(tmp_path, replace(truth, labels={0: truth.labels[0], 3: truth.labels[3]}))
    config = CONFIG | {"source": source, "path": str(tmp_path), "field_of_view_mm": None}
    entries = find_sequences(config)
    assert len(entries) == 1
    (_, cine), *rest = read_sequences(entries, grid_of(**config))
    assert not rest
    assert sequence_images(cine, grid_of(**config)).shape == (1, 1, 5, 24, 24, 4)
    assert about_sequence(cine)["synthetic"] is False


def test_real_loops_give_clips_and_need_two_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    loops = [
        Cine(rng.random((30, 40, 11), np.float32), None, 0.03, "xa-cine", "XA", False, "a", periodic=False),
        Cine(rng.random((30, 40, 16), np.float32), (1.0, 1.0), 0.07, "mr-cine", "MR", False, "b"),
    ]
    monkeypatch.setattr(module, "fetch_cines", lambda: loops)
    config = CONFIG | {"source": "cine", "field_of_view_mm": [20, 20, 20]}
    images = [
        sequence_images(cine, Grid.of(config, 2, 24))
        for _, cine in read_sequences(find_sequences(config), Grid.of(config, 2, 24))
    ]
    assert [image.shape for image in images] == [(2, 1, 24, 24, 4), (1, 1, 24, 24, 4)]
    with pytest.raises(ValueError, match=r"images\.source: cine has single slices over time"):
        Grid.of(config, 3, 24)


@pytest.mark.parametrize("dims", [2, 3])
def test_copies_move_all_slices_and_frames_alike(dims: int) -> None:
    still = np.zeros((2, 1, *((3,) if dims == 3 else ()), 24, 24, 5), np.float32)
    still[..., 6:14, 8:18, :] = 0.8
    copies = augmented(still, np.random.default_rng(0), Augment(rotate_degrees=20, scale=0.1, shift_mm=30, gamma=0.2))
    assert copies.shape == still.shape
    assert np.abs(copies - still).max() > 0.3
    assert np.ptp(copies, -1).max() < 1e-6
    assert np.abs(copies[0] - copies[1]).max() > 0.1
    if dims == 3:
        assert np.ptp(copies, 2).max() < 1e-6
    unmoved = augmented(still, np.random.default_rng(0), Augment())
    np.testing.assert_allclose(unmoved, still, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"frames": None}, r"images\.frames: must be a number above 0"),
        ({"slices": 0}, r"images\.slices: "),
        ({"field_of_view_mm": None}, r"images\.field_of_view_mm: "),
    ],
)
def test_a_missing_setting_is_named(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        grid_of(**changes)
    assert "\n" not in str(caught.value)


def test_missing_paths_and_numbers_are_named() -> None:
    with pytest.raises(ValueError, match=r"images\.sequences: say how many"):
        find_sequences(CONFIG | {"sequences": None})
    with pytest.raises(ValueError, match=r"images\.path: say where"):
        find_sequences(CONFIG | {"source": "acdc"})


def test_what_is_made_up_says_so() -> None:
    assert set(MADE_UP) < set(SEQUENCES)
    assert all(CREDITS[source].startswith("SYNTHETIC") for source in MADE_UP)


@pytest.mark.parametrize(("dims", "spacing_mm"), [(2, [6.666667] * 2), (3, [16.0, 6.666667, 6.666667])])
def test_sequences_are_written_split_by_patient_with_copies_of_training_ones_alone(
    dims: int, spacing_mm: list[float]
) -> None:
    written: dict[tuple[str, int], list[np.ndarray]] = {}
    augment = Augment(rotate_degrees=10)

    def add(split: str, copy: int, images: np.ndarray) -> None:
        written.setdefault((split, copy), []).append(images)

    about = write_sequences(find_sequences(CONFIG), {"phantom-0001"}, grid_of(dims), 3, augment, 0, add)
    assert sorted(written) == [("heldout", 0), ("train", 0), ("train", 1), ("train", 2)]
    counts = {row["patient"]: row["images"] for row in about["patients"]}
    assert [len(images) for images in written["train", 1]] == [counts["phantom-0000"], counts["phantom-0002"]]
    assert [row["split"] for row in about["patients"]] == ["train", "heldout", "train"]
    assert about["spacing_mm"] == spacing_mm
    assert all(row["synthetic"] for row in about["patients"])
    assert np.abs(written["train", 1][0] - written["train", 2][0]).max() > 0.1


def test_the_spacing_follows_from_what_is_seen() -> None:
    cine = make_phantom("p", 0, Grid(3, 28, 4, 6, 112.0, 10.0))
    assert sequence_spacing_mm(cine, Grid(3, 56, 4, 6, None, 10.0)) == (10.0, 2.0, 2.0)
    assert sequence_spacing_mm(replace(cine, spacing_mm=None), Grid(3, 56, 4, 6, None, 10.0)) is None
