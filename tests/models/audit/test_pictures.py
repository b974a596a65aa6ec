"""Pictures show what is there, the right way up."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.audit.pictures import BLOCK_GAP_PX, CAPTION_PX, GAP_PX, STRIP, TILE_PX, save_picture
from models.audit.views import Images


def drawn(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)


def test_grid_of_images(tmp_path: Path) -> None:
    """Five images of native size fill a grid of three columns, row by row; -1 is black and 1 is white."""
    images = np.full((5, 1, TILE_PX, TILE_PX), -1, np.float32)
    images[:, 0, :40, :40] = np.linspace(0, 1, 5)[:, None, None]  # a corner each, of its own grey
    save_picture(tmp_path / "grid.png", [("", Images(images))])
    page = drawn(tmp_path / "grid.png")
    step = TILE_PX + GAP_PX
    assert page.shape == (2 * step - GAP_PX, 3 * step - GAP_PX)
    corners = [page[row * step, column * step] for row in (0, 1) for column in (0, 1, 2)]
    np.testing.assert_allclose(corners, [127.5, 159.4, 191.2, 223.1, 255, 0], atol=1)
    assert page[100, 100] == 0


def test_small_images_are_enlarged_and_keep_their_corner(tmp_path: Path) -> None:
    image = np.full((1, 1, 16, 32), -1, np.float32)
    image[0, 0, :4, -4:] = 1  # top right
    save_picture(tmp_path / "one.png", [("", Images(image))])
    page = drawn(tmp_path / "one.png")
    assert page.shape == (TILE_PX // 2, TILE_PX)
    assert page[0, -1] > 250
    assert page[0, 0] == page[-1, -1] == 0


def test_volume_is_three_planes_with_the_head_up(tmp_path: Path) -> None:
    """The upper (last D), back (last H), left (last W) octant is bright."""
    volume = np.full((1, 1, TILE_PX, TILE_PX, TILE_PX), -1, np.float32)
    volume[0, 0, TILE_PX // 2 :, TILE_PX // 2 :, TILE_PX // 2 :] = 1
    save_picture(tmp_path / "volume.png", [("", Images(volume))])
    page = drawn(tmp_path / "volume.png")
    step = TILE_PX + GAP_PX
    assert page.shape == (TILE_PX, 3 * step - GAP_PX)
    bright = [
        [int(page[row, plane * step + column]) for row in (0, TILE_PX - 1) for column in (0, TILE_PX - 1)]
        for plane in range(3)
    ]
    assert bright == [
        [0, 0, 0, 255],
        [0, 255, 0, 0],
        [0, 255, 0, 0],
    ]  # top left, top right, bottom left, bottom right


def test_millimetres_are_square(tmp_path: Path) -> None:
    """Slices 9 mm apart of 3 mm pixels: 16 slices are half as high again as 32 pixels are wide."""
    save_picture(tmp_path / "volume.png", [("", Images(np.zeros((1, 1, 16, 32, 32), np.float32)))], (9.0, 3.0, 3.0))
    page = drawn(tmp_path / "volume.png")
    axial = round(TILE_PX * 96 / 144)
    assert page.shape == (TILE_PX, 3 * axial + 2 * GAP_PX)
    assert page[TILE_PX - 1, 0] == 0  # below the axial plane
    assert page[TILE_PX - 1, axial + GAP_PX] == 128


def test_captions_and_sections(tmp_path: Path) -> None:
    images = np.full((1, 1, TILE_PX, TILE_PX), 0, np.float32)
    one, none = Images(images), Images(images[:0])
    save_picture(tmp_path / "real.png", [("held-out: 1 patient", one), ("empty", none), ("training", one)])
    page = drawn(tmp_path / "real.png")
    assert page.shape == (2 * (TILE_PX + CAPTION_PX) + BLOCK_GAP_PX, TILE_PX)
    assert page[:CAPTION_PX].max() > 100  # the caption is written
    assert (page[CAPTION_PX : CAPTION_PX + TILE_PX] == 128).all()


def test_out_of_range_is_clipped_and_nan_is_black(tmp_path: Path) -> None:
    image = np.full((1, 1, TILE_PX, TILE_PX), 7, np.float32)
    image[0, 0, 0, 0] = np.nan
    save_picture(tmp_path / "one.png", [("", Images(image))])
    page = drawn(tmp_path / "one.png")
    assert page[0, 0] == 0
    assert page[1:].min() == 255


def test_no_images_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images to draw"):
        save_picture(tmp_path / "none.png", [("", Images(np.empty((0, 1, 8, 8), np.float32)))])
    assert list(tmp_path.iterdir()) == []


def test_a_sequence_is_a_strip_over_the_cycle(tmp_path: Path) -> None:
    """Twelve frames, each of its own grey: every second is shown, the first one at the left."""
    tones = np.linspace(-1, 1, 12, dtype=np.float32)
    sequence = np.broadcast_to(tones, (1, 1, TILE_PX, TILE_PX, 12))
    save_picture(tmp_path / "one.png", [("", Images(sequence, moving=True))])
    page = drawn(tmp_path / "one.png")
    step = TILE_PX + GAP_PX
    assert page.shape == (CAPTION_PX + TILE_PX, STRIP * step - GAP_PX)
    assert page[:CAPTION_PX].max() > 100  # which frames is said
    found = page[CAPTION_PX + 64, 64::step]
    np.testing.assert_allclose(found, (tones[::2] + 1) * 127.5, atol=1)


def test_two_sequences_stand_side_by_side(tmp_path: Path) -> None:
    tones = np.linspace(-1, 1, 5, dtype=np.float32)[:, None, None, None, None]
    sequences = np.broadcast_to(tones, (5, 1, TILE_PX, TILE_PX, 2))  # each of its own grey, two frames
    save_picture(tmp_path / "five.png", [("", Images(sequences, moving=True))])
    page = drawn(tmp_path / "five.png")[CAPTION_PX:]
    wide = 2 * TILE_PX + GAP_PX
    assert page.shape == (3 * TILE_PX + 2 * BLOCK_GAP_PX, 2 * wide + BLOCK_GAP_PX)
    found = page[64 :: TILE_PX + BLOCK_GAP_PX, 64 :: wide + BLOCK_GAP_PX]
    np.testing.assert_allclose(found, [[0, 63.75], [127.5, 191.25], [255, 0]], atol=1)


def test_a_stack_over_time_has_frames_above_and_slices_below(tmp_path: Path) -> None:
    """Grey grows with slices in steps of 20 and with frames in steps of 1; pixels of 2 by 1 mm stay so."""
    grey = (20 * np.arange(9)[:, None] + np.arange(12)) / 127.5 - 1  # (D, T)
    stack = np.broadcast_to(grey[:, None, None].astype(np.float32), (1, 1, 9, 8, 8, 12))
    save_picture(tmp_path / "one.png", [("", Images(stack, moving=True))], (10.0, 2.0, 1.0))
    page = drawn(tmp_path / "one.png")[CAPTION_PX:]
    wide = TILE_PX // 2  # as 16 mm are 128 pixels
    assert page.shape == (2 * TILE_PX + GAP_PX, STRIP * (wide + GAP_PX) - GAP_PX)
    np.testing.assert_allclose(page[64, 32 :: wide + GAP_PX], 80 + np.arange(0, 12, 2), atol=1)
    np.testing.assert_allclose(page[64 + TILE_PX, 32 :: wide + GAP_PX], 20 * np.array([0, 2, 3, 5, 6, 8]), atol=1)
