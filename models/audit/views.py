"""Images, volumes and sequences as pictures, the right way up for a reader and for a network raised on photographs.

The one place that knows which axis is what: an array of five axes may hold volumes (N, 1, D, H, W) or sequences of
single slices (N, 1, H, W, T), and nothing in it tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Place = tuple[int, int]  # index in a plane, frame (0 without frames)

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Images:
    """Images (N, 1, [D,] H, W), or sequences (N, 1, [D,] H, W, T), in [-1, 1].

    Attributes:
        array: may be memory-mapped; only what is looked at is read.
        moving: whether the last axis is time.
    """

    array: Array
    moving: bool = False

    def __len__(self) -> int:
        return len(self.array)

    def of_rows(self, rows: Sequence[int] | NDArray[np.int64] | slice) -> "Images":
        """Only these; copied from the array unless they are a slice."""
        return Images(self.array[rows], self.moving)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: ([D,] H, W[, T])."""
        return tuple(self.array.shape[2:])

    @property
    def spatial_dims(self) -> int:
        """2 or 3, frames not counted."""
        return len(self.shape) - self.moving

    @property
    def frames(self) -> int:
        """T; 1 for still images."""
        return self.shape[-1] if self.moving else 1

    @property
    def planes(self) -> tuple[str, ...]:
        """The planes that are looked at: one for images, three for volumes, and of stacks over time their own.

        Slices of a heart over time lie about 10 mm apart: a plane across them shows steps, and little else.
        """
        return PLANES if self.spatial_dims == 3 and not self.moving else PLANES[:1]

    def depth(self, plane: str) -> int:
        """How many slices each image has in a plane."""
        return self.shape[PLANES.index(plane)] if self.spatial_dims == 3 else 1

    def places(self, plane: str, count: int) -> list[Place]:
        """At most `count` different slices and frames of one plane, evenly spread over both, the same for all images.

        Where there are several frames of a slice, they are evenly spread over the cycle, from slice to slice a little
        later, so that each part of the cycle is seen.
        """
        depth, number = self.depth(plane), min(count, self.depth(plane) * self.frames)
        slices = [int((place + 0.5) * depth / number) for place in range(number)]
        found = []
        for index in dict.fromkeys(slices):
            often = slices.count(index)
            found += [(index, int((turn + (index + 0.5) / depth) * self.frames / often)) for turn in range(often)]
        return found

    def picture(self, row: int, plane: str, place: Place) -> Array:
        """One slice of one image in radiological orientation, (H, W) for the axial plane.

        Axial: anterior on top, spine at the bottom. Coronal and sagittal: head on top. The patient's left is on
        the reader's right. Arrays run inferior to superior, anterior to posterior, right to left, so only D
        turns over. Short-axis stacks have their own axes; they are shown as they are.
        """
        index, frame = place
        image = self.array[row, 0]
        if self.moving:
            image = image[..., frame]
        if image.ndim == 2:
            return image  # (H, W)
        if plane == "axial":
            return image[index]  # (H, W)
        if plane == "coronal":
            return image[::-1, index, :]  # (D, W)
        return image[::-1, :, index]  # (D, H)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Of what is compared as a whole: (H, W) or (D, H, W), and (H, W, T) of sequences."""
        return self.shape[-3:]

    def blocks(self, rows: Sequence[int] | NDArray[np.int64]) -> Array:
        """What is compared as a whole, (R, B, *block_shape): an image, a volume, or each slice over time.

        B is 1, and D for stacks over time: a window of MS-SSIM across slices 10 mm apart would hold unlike anatomy.
        """
        chosen = self.array[rows]  # (R, 1, ...)
        return chosen[:, 0] if self.moving and self.spatial_dims == 3 else chosen


def load_images(path: str | Path, moving: bool = False) -> Images:
    """Open an image array (N, 1, [D,] H, W[, T]), values in [-1, 1], without reading it into memory.

    Args:
        moving: whether the last axis is time.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is truncated, or holds anything but images of one channel.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a complete .npy array ({error}); delete it and run again") from error
    if not isinstance(array, np.ndarray) or array.ndim - moving not in (4, 5) or array.shape[1] != 1:
        shape, time = getattr(array, "shape", "an archive"), ", T" if moving else ""
        still, deep = ("sequences", "sequences of stacks") if moving else ("images", "volumes")
        raise ValueError(f"{path}: expected {still} (N, 1, H, W{time}) or {deep} (N, 1, D, H, W{time}), found {shape}")
    return Images(array, moving)


def spread(count: int, size: int) -> list[int]:
    """At most `count` positions out of `size`, evenly spread, none on the very edge unless all are taken."""
    count = min(count, size)
    return [int((position + 0.5) * size / count) for position in range(count)]
