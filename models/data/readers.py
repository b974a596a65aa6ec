"""Medical images read into one form: a `Volume` with its geometry, or MedMNIST's stacks of small pictures.

NIfTI and NRRD go through MONAI's readers, DICOM through `models.data.dicom`.
"""

import logging
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from monai.data import NibabelReader, NrrdReader
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from models.data.dicom import read_series

log = logging.getLogger(__name__)

FORMATS = {".nii": "nifti", ".nii.gz": "nifti", ".nrrd": "nrrd", ".nhdr": "nrrd", ".npz": "medmnist"}
_NAMES = {"nifti": "NIfTI", "nrrd": "NRRD"}
_DAMAGED = (
    OSError, EOFError, StopIteration, ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error,
    nrrd.NRRDError, ImageFileError, HeaderDataError,
)  # fmt: skip

# CT numbers of air are near -1000 HU; few other images hold values below this
CT_BELOW = -200.0
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Volume:
    """One image in patient space.

    Attributes:
        array: (x, y, z) float32, in `unit`.
        affine: (4, 4) from voxel index to RAS mm.
        patient: whose image it is; what the split goes by.
        file: the file, or for DICOM the series' first file.
        modality: DICOM's code ("CT", "MR"), guessed from the values where the format has none; "" if unknown.
        unit: "HU" for CT, else "intensity".
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    patient: str
    file: Path
    modality: str
    unit: str


def format_of(path: Path) -> str | None:
    """The format a file's name tells ("nifti", "nrrd", "medmnist"), or None."""
    name = path.name.lower()
    return next((form for suffix, form in FORMATS.items() if name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """A file's name without the suffixes of its format: `scan7` of `scan7.nii.gz`."""
    name = path.name
    suffix = next((s for s in sorted(FORMATS, key=len, reverse=True) if name.lower().endswith(s)), path.suffix)
    return name[: len(name) - len(suffix)]


def read_volume(entry: dict[str, Any]) -> Volume:
    """Read a manifest's entry (`patient`, `format`, `files`).

    Raises:
        OSError: a file is gone or cannot be opened.
        ValueError: it is truncated or damaged, not three-dimensional, or of a format that is not known; names
            the file.
    """
    files = [Path(file) for file in entry["files"]]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is gone since it was listed: list the images again (--forcerun fetch_images)"
            )
    if entry["format"] == "dicom":
        array, affine, modality = read_series(files)
    else:
        array, affine = _read_file(files[0], entry["format"])
        modality = "CT" if array.min() <= CT_BELOW else ""
    return Volume(
        array=array,
        affine=affine,
        patient=entry["patient"],
        file=files[0],
        modality=modality,
        unit="HU" if modality == "CT" else "intensity",
    )


def _read_file(file: Path, form: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    reader = {"nifti": NibabelReader, "nrrd": NrrdReader}[form]()
    try:
        values, meta = reader.get_data(reader.read(file))
        array = np.asarray(values, dtype=np.float32)
        affine = np.asarray(meta["affine"], dtype=np.float64)
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # not the content: no permission, no such disk
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file}: cannot be read as {_NAMES[form]}, truncated or damaged? ({reason})") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise ValueError(f"{file}: has shape {array.shape}; give one three-dimensional image per file")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{file}: its header has no usable geometry (affine {affine.tolist()})")
    finite = np.isfinite(array)
    if not finite.any():
        raise ValueError(f"{file}: holds no finite value")
    if not finite.all():
        log.warning("%s: %d values are not finite: set to the lowest", file, array.size - int(finite.sum()))
        array = np.where(finite, array, array[finite].min())
    return array, affine


def read_medmnist(file: Path, spatial_dims: int) -> dict[str, NDArray[np.generic]]:
    """The train and test pictures of a MedMNIST file; its validation pictures are used for neither.

    Colour is turned to grey. The arrays keep their type (uint8 in all published sets).

    Returns:
        {"train": (N, H, W) or (N, D, H, W), "test": the same}

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged, has no `train_images` or `test_images`, or pictures of another dimension;
            names the file.
    """
    splits = {}
    try:
        with np.load(file) as arrays:
            for split in ("train", "test"):
                splits[split] = arrays[f"{split}_images"]
    except KeyError as error:
        raise ValueError(f"{file}: has no {split}_images, so it is not a MedMNIST file") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a MedMNIST .npz, truncated or damaged? ({error})") from error
    for split, pictures in splits.items():
        if pictures.ndim >= 4 and pictures.shape[-1] == 3:
            splits[split] = pictures = (pictures.astype(np.float32) @ LUMA).astype(pictures.dtype)
        if pictures.ndim != spatial_dims + 1 or not len(pictures):
            raise ValueError(
                f"{file}: {split}_images has shape {pictures.shape}, which are not {spatial_dims}D pictures; "
                f"set matrix.spatial_dims to fit the file"
            )
    return splits
