"""Images and volumes as 2D slices, the right way up for a reader and for a network raised on photographs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

PLANES = ("axial", "coronal", "sagittal")


def load_images(path: str | Path) -> Array:
    """Open an image array (N, 1, [D,] H, W), values in [-1, 1], without reading it into memory.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is truncated, or holds anything but images of one channel.
    """
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a complete .npy array ({error}); delete it and run again") from error
    if not isinstance(images, np.ndarray) or images.ndim not in (4, 5) or images.shape[1] != 1:
        shape = getattr(images, "shape", "an archive")
        raise ValueError(f"{path}: expected images (N, 1, H, W) or volumes (N, 1, D, H, W), found {shape}")
    return images


def planes_of(images: Array) -> tuple[str, ...]:
    """The planes an array (N, 1, [D,] H, W) is looked at in: one for images, three for volumes."""
    return PLANES if images.ndim == 5 else PLANES[:1]


def plane_depth(images: Array, plane: str) -> int:
    """How many slices each of the images (N, 1, [D,] H, W) has in a plane."""
    return images.shape[2 + PLANES.index(plane)] if images.ndim == 5 else 1


def slice_in_plane(image: Array, plane: str, index: int) -> Array:
    """One slice of an image (H, W) or volume (D, H, W) in radiological orientation.

    Axial: anterior on top, spine at the bottom. Coronal and sagittal: head on top. The patient's left is on
    the reader's right. Arrays run inferior to superior, anterior to posterior, right to left, so only D
    turns over.
    """
    if image.ndim == 2:
        return image  # (H, W)
    if plane == "axial":
        return image[index]  # (H, W)
    if plane == "coronal":
        return image[::-1, index, :]  # (D, W)
    return image[::-1, :, index]  # (D, H)


def spread(count: int, size: int) -> list[int]:
    """At most `count` positions out of `size`, evenly spread, none on the very edge unless all are taken."""
    count = min(count, size)
    return [int((position + 0.5) * size / count) for position in range(count)]
