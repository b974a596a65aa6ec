"""Masks from files: NIfTI label maps on the grid of a cohort, in the order of an array."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from models.data.readers import Volume, format_of, read_volume

SPACING_TOLERANCE = 0.01  # of a spacing: headers hold rounded numbers


def mask_files(folder: str | Path, count: int) -> list[Path]:
    """The first `count` NIfTI files of a folder, in the order of their names.

    Raises:
        ValueError: if there is no such folder, or it has too few.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"control.masks: there is no folder {folder}")
    files = sorted(file for file in path.iterdir() if format_of(file) == "nifti" and file.name[0] != ".")
    if len(files) < count:
        raise ValueError(
            f"control.masks: {folder} has {len(files)} NIfTI files, and control.samples asks for {count}, a file each"
        )
    return files[:count]


def read_mask(
    file: Path, shape: Sequence[int], spacing_mm: Sequence[float] | None, labels: Mapping[str, object]
) -> NDArray[np.uint8]:
    """A label map as an array of a cohort: a file's voxels, put in the cohort's order and never resampled.

    A cohort's axes run, from the first voxel to the last, to the patient's head, back and left: (D, H, W), or (H, W) of
    an axial slice. A NIfTI file tells by its affine which way its own (x, y, z) run, and is turned accordingly; a slice
    is a file of (x, y) or (x, y, 1). Where it lies in the scanner does not matter.

    Args:
        file: NIfTI, with 0 where there is no label, else 1, 2, ...
        shape: ([D,] H, W).
        spacing_mm: of the cohort, in the order of `shape`; None: of images without a scale, and any is right.
        labels: of the model, in the order of the labels 1, 2, ...

    Returns:
        (1, *shape).

    Raises:
        OSError: the file cannot be opened.
        ValueError: naming the file: it is damaged, or its size, spacing or labels are not those of the model.
    """
    volume = read_volume({"patient": "", "format": "nifti", "files": [str(file)]})
    array, found_mm = _in_order(volume)  # (D, H, W)
    if len(shape) == 2 and len(array) == 1:
        array, found_mm = array[0], found_mm[1:]
    if array.shape != tuple(shape):
        raise ValueError(
            f"{file}: is a mask of {_sides(array.shape)} voxels (x, y, z towards left, back and head), and this model "
            f"was trained on {_sides(shape)}"
        )
    if spacing_mm is not None and not np.allclose(found_mm, spacing_mm, rtol=SPACING_TOLERANCE, atol=0):
        raise ValueError(
            f"{file}: has a spacing of {_sides(found_mm)} mm (x, y, z), and this model was trained on "
            f"{_sides(spacing_mm)} mm"
        )
    values = np.unique(array)
    strange = values[(values < 0) | (values > len(labels)) | (values != values.round())]
    if len(strange):
        known = ", ".join(f"{label} {name}" for label, name in enumerate(labels, start=1))
        raise ValueError(f"{file}: has label {strange[0]:g}, and this model was trained on {known}, and 0 for no label")
    return array[None].astype(np.uint8)


def _in_order(volume: Volume) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Array (D, H, W) in a cohort's order, and its spacing (3,) along those axes."""
    orientations = nibabel.orientations
    own = orientations.io_orientation(volume.affine)
    turn = orientations.ornt_transform(own, orientations.axcodes2ornt(("L", "P", "S")))
    turned = orientations.apply_orientation(volume.array, turn)  # (x, y, z)
    spacing_mm = np.empty(3)
    spacing_mm[own[:, 0].astype(int)] = np.linalg.norm(volume.affine[:3, :3], axis=0)  # of x, y, z
    return np.ascontiguousarray(turned.transpose()), spacing_mm[::-1]


def _sides(numbers: Sequence[float] | NDArray[np.floating]) -> str:
    """As people write sizes: x first."""
    return " x ".join(f"{number:g}" for number in reversed(list(numbers)))
