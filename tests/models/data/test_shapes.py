"""Shapes of images from the config alone."""

import subprocess
import sys
from typing import Any

import pytest

from models.data.sequences import Grid
from models.data.shapes import SEQUENCES, image_shape

STILL = {"source": "folder"}
MOVING = {"source": "acdc", "frames": 6, "slices": 5}


@pytest.mark.parametrize(
    ("config", "dims", "shape"),
    [
        (STILL, 2, (32, 32)),
        (STILL, 3, (32, 32, 32)),
        (STILL | {"slices": None, "frames": None}, 3, (32, 32, 32)),
        (STILL | {"slices": 12}, 3, (12, 32, 32)),
        (STILL | {"slices": 12}, 2, (32, 32)),  # pictures have none
        (MOVING, 2, (32, 32, 6)),
        (MOVING, 3, (5, 32, 32, 6)),
        ({"source": "cine", "frames": 4, "slices": None}, 2, (32, 32, 4)),
    ],
)
def test_shapes_have_depth_first_and_frames_last(config: dict[str, Any], dims: int, shape: tuple[int, ...]) -> None:
    assert image_shape(config, dims, 32) == shape
    if config["source"] in SEQUENCES:
        assert Grid.of(config, dims, 32).shape == shape


@pytest.mark.parametrize(
    ("config", "dims", "line"),
    [
        (MOVING | {"frames": None}, 2, r"images\.frames: must be a number above 0 for images\.source acdc"),
        (MOVING | {"slices": None}, 3, r"images\.slices: must be a number above 0 for images\.source acdc"),
        ({"source": "phantom", "frames": 4}, 2, r"images\.slices: must be a number above 0 for images\.source phantom"),
        (STILL | {"frames": 4}, 3, r"images\.frames: 4, but images\.source folder has still images"),
        (MOVING | {"source": "cine"}, 3, r"images\.source: cine has single slices over time"),
    ],
)
def test_what_a_source_lacks_is_named(config: dict[str, Any], dims: int, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        image_shape(config, dims, 32)


def test_the_plan_can_ask_without_torch() -> None:
    script = "import sys, models.data.shapes; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
