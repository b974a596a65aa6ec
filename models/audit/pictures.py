"""Images, volumes and sequences as one PNG to look at, in radiological orientation and with square millimetres."""

from collections.abc import Iterable, Sequence
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.audit.views import PLANES, Array, Images, Place, spread
from models.files import atomic_path

TILE_PX = 128  # the longest side of a tile; larger images keep their own size
GAP_PX = 2
BLOCK_GAP_PX = 10
STRIP = 6  # frames, and slices, of a sequence
CAPTION_PX = 16
GROUND, INK = 0, 200

Tile = NDArray[np.uint8]
View = tuple[str, Place]  # plane, slice and frame


def save_picture(
    path: str | Path, sections: Sequence[tuple[str, Images]], spacing_mm: Sequence[float] | None = None
) -> None:
    """Write a grid of images, as square as it goes, as a greyscale PNG; two sequences stand side by side.

    A volume is a block of its axial, coronal and sagittal middle slices, side by side. A sequence is a strip of frames
    over the cycle, from the first one on, of the middle slice; a stack over time has the first frame of slices below
    it. Captions say which. Values outside [-1, 1] are clipped, NaN is black, tiles are enlarged (bicubic) to 128 pixels
    if smaller.

    Args:
        sections: (caption, images in [-1, 1]); drawn one below another, a caption "" is left out.
        spacing_mm: of the axes of an image, ([D,] H, W); None takes all as equal.

    Raises:
        ValueError: no images at all.
    """
    total, views = sum(len(images) for _, images in sections), _views(sections[0][1])
    if not total:
        raise ValueError(f"{path}: no images to draw")
    columns = 2 if sections[0][1].moving else ceil(sqrt(total / len(views[0])))
    drawn = [
        (". ".join(filter(None, (caption, _explained(images)))), _grid(images, spacing_mm, columns))
        for caption, images in sections
        if len(images)
    ]
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


def _views(images: Images) -> list[list[View]]:
    """What is shown of each image: rows of views side by side."""
    if not images.moving:
        return [[(plane, (images.depth(plane) // 2, 0)) for plane in images.planes]]
    plane, depth = images.planes[0], images.depth(images.planes[0])
    rows = [[(plane, (depth // 2, frame)) for frame in _from_the_first(images.frames)]]
    return rows if images.spatial_dims == 2 else [*rows, [(plane, (index, 0)) for index in spread(STRIP, depth)]]


def _from_the_first(frames: int) -> list[int]:
    """At most `STRIP` frames of a cycle, evenly spread from the first on, which is end diastole where it is known."""
    count = min(STRIP, frames)
    return [number * frames // count for number in range(count)]


def _explained(images: Images) -> str:
    """Which frames and slices of sequences are shown, counted from 1; "" for still images."""
    if not images.moving:
        return ""
    frames, *below = _views(images)
    shown = f"frames {_counted(frame for _, (_, frame) in frames)} of {images.frames}"
    if not below:
        return f"Each strip: {shown}"
    depth = images.depth(images.planes[0])
    slices = _counted(index for _, (index, _) in below[0])
    return f"Each upper row: slice {depth // 2 + 1}, {shown}; lower row: frame 1, slices {slices} of {depth}"


def _counted(indices: Iterable[int]) -> str:
    return ", ".join(str(index + 1) for index in indices)


def _grid(images: Images, spacing_mm: Sequence[float] | None, columns: int) -> Tile:
    """All images as one picture (rows, columns)."""
    spacing, views = tuple(spacing_mm) if spacing_mm else (1.0,) * images.spatial_dims, _views(images)
    blocks = [_block(images, row, views, spacing) for row in range(len(images))]
    gap = GAP_PX if len(views) * len(views[0]) == 1 else BLOCK_GAP_PX
    rows = [_beside(blocks[start : start + columns], gap) for start in range(0, len(blocks), columns)]
    return _below(rows, gap)


def _block(images: Images, row: int, views: list[list[View]], spacing_mm: tuple[float, ...]) -> Tile:
    """The views of one image, at one scale."""
    pictures = {view: images.picture(row, *view) for line in views for view in line}
    sides_mm = {view: _extent_mm(picture, view[0], spacing_mm) for view, picture in pictures.items()}
    longest_mm = max(max(side_mm) for side_mm in sides_mm.values())
    px_per_mm = max(TILE_PX, *(max(picture.shape) for picture in pictures.values())) / longest_mm
    tiles = {view: _tile(picture, sides_mm[view], px_per_mm) for view, picture in pictures.items()}
    return _below([_beside([tiles[view] for view in line], GAP_PX) for line in views], GAP_PX)


def _extent_mm(image: Array, plane: str, spacing_mm: tuple[float, ...]) -> tuple[float, float]:
    """Height and width of a slice: the spacing without the axis across the plane."""
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


def _below(rows: Sequence[Tile], gap_px: int) -> Tile:
    """Pictures one below another, aligned at the left, on a dark ground."""
    return _beside([row.T for row in rows], gap_px).T
