"""Images and volumes as one PNG to look at, in radiological orientation and with square millimetres."""

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.audit.views import PLANES, Array, plane_depth, planes_of, slice_in_plane
from models.files import atomic_path

TILE_PX = 128  # the longest side of a tile; larger images keep their own size
GAP_PX = 2
BLOCK_GAP_PX = 10
CAPTION_PX = 16
GROUND, INK = 0, 200

Tile = NDArray[np.uint8]


def save_picture(
    path: str | Path, sections: Sequence[tuple[str, Array]], spacing_mm: Sequence[float] | None = None
) -> None:
    """Write a grid of images, as square as it goes, as a greyscale PNG.

    A volume is a block of its axial, coronal and sagittal middle slices, side by side. Values outside [-1, 1]
    are clipped, NaN is black, tiles are enlarged (bicubic) to 128 pixels if smaller.

    Args:
        sections: (caption, images (N, 1, [D,] H, W) in [-1, 1]); drawn one below another, a caption "" is
            left out.
        spacing_mm: of the axes of an image, ([D,] H, W); None takes all as equal.

    Raises:
        ValueError: no images at all.
    """
    total, wide = sum(len(images) for _, images in sections), len(planes_of(sections[0][1]))
    if not total:
        raise ValueError(f"{path}: no images to draw")
    columns = ceil(sqrt(total / wide))
    drawn = [(caption, _grid(images, spacing_mm, columns)) for caption, images in sections if len(images)]
    captions_px = [CAPTION_PX if caption else 0 for caption, _ in drawn]
    height = sum(grid.shape[0] for _, grid in drawn) + sum(captions_px) + BLOCK_GAP_PX * (len(drawn) - 1)
    page = Image.new("L", (max(grid.shape[1] for _, grid in drawn), height), GROUND)
    pen = ImageDraw.Draw(page)
    top = 0
    for (caption, grid), caption_px in zip(drawn, captions_px, strict=True):
        if caption:
            pen.text((2, top + 2), caption, fill=INK)
        page.paste(Image.fromarray(grid), (0, top + caption_px))
        top += caption_px + grid.shape[0] + BLOCK_GAP_PX
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG", optimize=True)


def _grid(images: Array, spacing_mm: Sequence[float] | None, columns: int) -> Tile:
    """All images (N, 1, [D,] H, W) as one picture (rows, columns)."""
    spacing = tuple(spacing_mm) if spacing_mm else (1.0,) * (images.ndim - 2)
    blocks = [_block(image, planes_of(images), spacing) for image in _middle_slices(images)]
    gap = BLOCK_GAP_PX if images.ndim == 5 else GAP_PX
    rows = [_beside(blocks[start : start + columns], gap) for start in range(0, len(blocks), columns)]
    return _beside([row.T for row in rows], gap).T


def _middle_slices(images: Array) -> list[dict[str, Array]]:
    planes = planes_of(images)
    return [
        {plane: slice_in_plane(image[0], plane, plane_depth(images, plane) // 2) for plane in planes}
        for image in images
    ]


def _block(slices: dict[str, Array], planes: tuple[str, ...], spacing_mm: tuple[float, ...]) -> Tile:
    """The planes of one image side by side, at one scale."""
    extents = {plane: _extent_mm(slices[plane], plane, spacing_mm) for plane in planes}
    longest_mm = max(max(extent) for extent in extents.values())
    longest_px = max(TILE_PX, *(max(image.shape) for image in slices.values()))
    return _beside([_tile(slices[plane], extents[plane], longest_px / longest_mm) for plane in planes], GAP_PX)


def _extent_mm(image: Array, plane: str, spacing_mm: tuple[float, ...]) -> tuple[float, float]:
    """Height and width of a slice: the spacing of a volume without the axis across the plane."""
    across = PLANES.index(plane) if len(spacing_mm) == 3 else None
    row_mm, column_mm = (step for axis, step in enumerate(spacing_mm) if axis != across)
    return image.shape[0] * row_mm, image.shape[1] * column_mm


def _tile(image: Array, extent_mm: tuple[float, float], px_per_mm: float) -> Tile:
    grey = (np.clip(np.nan_to_num(image, nan=-1.0), -1, 1) + 1) * 127.5  # NaN would come out as any grey
    picture = Image.fromarray(np.rint(grey).astype(np.uint8))
    height, width = (max(1, round(side * px_per_mm)) for side in extent_mm)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _beside(tiles: Sequence[Tile], gap_px: int) -> Tile:
    """Tiles in a row, aligned at the top, on a dark ground."""
    height = max(tile.shape[0] for tile in tiles)
    width = sum(tile.shape[1] for tile in tiles) + gap_px * (len(tiles) - 1)
    row = np.full((height, width), GROUND, np.uint8)
    left = 0
    for tile in tiles:
        row[: tile.shape[0], left : left + tile.shape[1]] = tile
        left += tile.shape[1] + gap_px
    return row
