"""Heart sequences through the two stages that make a cohort."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.cohort import load_cohort, prepare_cohort
from models.data.images import fetch_images, find_images

IMAGES: dict[str, Any] = {
    "name": "heart",
    "source": "phantom",
    "path": None,
    "sequences": 4,
    "frames": 4,
    "slices": 5,
    "held_out": 0.25,
    "window": None,
    "field_of_view_mm": [160, 160, 100],
    "slice_step_mm": 16,
    "min_coverage": 0.5,
    "augment": {"copies_2d": 2, "copies_3d": 3, "rotate_degrees": 8, "scale": 0.1, "shift_mm": 10, "gamma": 0.1},
    "seed": 0,
}


@pytest.mark.parametrize(("dims", "shape", "copies"), [(2, (24, 24, 4), 2), (3, (5, 24, 24, 4), 3)])
def test_a_cohort_has_frames_as_its_last_axis(tmp_path: Path, dims: int, shape: tuple[int, ...], copies: int) -> None:
    manifest = tmp_path / "images.json"
    assert fetch_images(IMAGES, manifest) == {"samples": 4}
    paths = [tmp_path / name for name in ("train.npy", "heldout.npy", "cohort.json")]
    work = prepare_cohort(manifest, IMAGES, dims, 24, "heart-24", *paths)
    cohort = load_cohort(tmp_path)
    assert cohort.train.shape == (copies * cohort.info["images_train"], 1, *shape)
    assert cohort.heldout.shape == (cohort.info["images_heldout"], 1, *shape)
    assert (cohort.info["frames"], cohort.info["shape"]) == (4, list(shape))
    assert (cohort.info["patients_train"], cohort.info["patients_heldout"]) == (3, 1)
    assert (cohort.train.min(), cohort.train.max()) == (-1, 1)
    assert work["voxels"] == work["samples"] * np.prod(shape)
    assert json.loads((tmp_path / "cohort.json").read_text())["credit"].startswith("SYNTHETIC")


def test_an_unknown_source_lists_all() -> None:
    with pytest.raises(ValueError, match=r"images\.source: 'mri' is not one of bundled, folder, medmnist, cine, acdc"):
        find_images(IMAGES | {"source": "mri"})
