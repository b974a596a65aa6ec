"""DICOM series: finding them in a tree of files, and reading one as a volume.

MONAI's and other generic readers order slices by InstanceNumber and stack them as they come. Here slices are
ordered by position along the normal, gaps are found and filled, and a tilted gantry keeps its shear, since a
wrong order or spacing would go unnoticed in a generated image.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.misc import is_dicom
from pydicom.pixels import apply_modality_lut

log = logging.getLogger(__name__)

SUFFIXES = (".dcm", ".dicom", ".ima")
GAP_TOLERANCE = 0.1  # of the median distance between slices
_HEADER = [
    "SeriesInstanceUID", "PatientID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames",
    "ImageOrientationPatient", "InstanceNumber",
]  # fmt: skip


@dataclass(frozen=True)
class Series:
    """The files of one DICOM series that form one volume."""

    files: tuple[Path, ...]
    patient_id: str
    modality: str


def looks_like_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its suffix or, without one that is known, by its preamble."""
    return path.suffix.lower() in SUFFIXES or is_dicom(path)


def find_series(files: list[Path]) -> list[Series]:
    """Group DICOM files into series, in the order of their first files.

    Slices belong together if they share series, size and orientation; where the series UID is blank the
    folder stands for it. Files without an image (reports, structures, directories) and localizers are left
    out with a log line.

    Raises:
        ValueError: none of the files holds an image, or one cannot be read as DICOM; names the file.
    """
    groups: dict[tuple[object, ...], list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    imageless = []
    for file in files:
        header = _header(file)
        if "Rows" not in header or "Columns" not in header:
            imageless.append(file)
            continue
        if "LOCALIZER" in (header.get("ImageType") or []):
            log.info("%s is a localizer: left out", file)
            continue
        direction = tuple(np.round([float(v) for v in header.get("ImageOrientationPatient") or []], 2))
        series = str(header.get("SeriesInstanceUID") or file.parent)
        # several frames in a file, or no position (a radiograph), make an image of its own
        alone = file if not direction or int(header.get("NumberOfFrames") or 1) > 1 else None
        groups[series, header.Rows, header.Columns, direction, alone].append((file, header))
    if imageless and not groups:
        raise ValueError(
            f"{imageless[0]}: DICOM without pixels (a report, structure or plan?), there is no image to use"
        )
    for file in imageless:
        log.info("%s is DICOM without pixels: left out", file)
    return [
        Series(
            files=tuple(file for file, _ in members),
            patient_id=str(members[0][1].get("PatientID") or "").strip(),
            modality=str(members[0][1].get("Modality") or ""),
        )
        for members in groups.values()
    ]


def read_series(files: list[Path]) -> tuple[NDArray[np.float32], NDArray[np.float64], str]:
    """Read one series as a volume in the units of its modality (HU for CT).

    Returns:
        array (x, y, z): columns, rows and slices, sorted along the normal; affine (4, 4) from index to RAS
        mm; modality.

    Raises:
        ValueError: a file is truncated, has no pixels, several frames or colours, or its compression cannot
            be decoded here.
    """
    slices = [_read_slice(file) for file in files]
    first = slices[0][0]
    across, down = np.array(first.get("ImageOrientationPatient") or [1, 0, 0, 0, 1, 0], float).reshape(2, 3)
    normal = np.cross(across, down)
    places = np.array([_position(dataset) for dataset, _ in slices])  # (slices, 3), LPS mm
    heights = places @ normal  # (slices,), mm along the normal
    order = np.argsort(heights, kind="stable")
    order = order[np.concatenate([[True], np.diff(heights[order]) > 1e-3])]
    if len(order) < len(slices):
        log.warning("%s: %d slices lie where others do: left out", files[0].parent, len(slices) - len(order))
    stack = np.stack([slices[i][1].T for i in order], axis=-1)  # (x, y, z)
    heights, places = heights[order], places[order]

    if len(order) > 1:
        gaps = np.diff(heights)
        spacing_mm = float(np.median(gaps))
        step = (places[-1] - places[0]) / (heights[-1] - heights[0]) * spacing_mm
        if np.abs(gaps - spacing_mm).max() > GAP_TOLERANCE * spacing_mm:
            log.warning(
                "%s: slices are missing or unevenly spaced (%.2f to %.2f mm, usually %.2f): interpolated",
                files[0].parent, gaps.min(), gaps.max(), spacing_mm,
            )  # fmt: skip
            stack = _even(stack, heights, spacing_mm)
    else:
        step = normal * float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)

    row_mm, column_mm = (float(v) for v in first.get("PixelSpacing") or first.get("ImagerPixelSpacing") or [1, 1])
    affine = np.eye(4)
    affine[:3] = np.stack([across * column_mm, down * row_mm, step, places[0]], axis=1)  # index to LPS mm
    return stack, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, str(first.get("Modality") or "")


def _header(file: Path) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=_HEADER, force=file.suffix.lower() in SUFFIXES
        )
    except (InvalidDicomError, EOFError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as DICOM ({_first_line(error)})") from error


def _read_slice(file: Path) -> tuple[pydicom.Dataset, NDArray[np.float32]]:
    """One file's dataset and its pixels (rows, columns) in the modality's units."""
    try:
        dataset = pydicom.dcmread(file, force=file.suffix.lower() in SUFFIXES)
        if "PixelData" not in dataset:
            raise ValueError("DICOM without pixels")
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise ValueError("several frames in one file are not read: convert it to NIfTI or single slices")
        if int(dataset.get("SamplesPerPixel") or 1) > 1:
            raise ValueError("colour images are not read")
        pixels = np.asarray(apply_modality_lut(dataset.pixel_array, dataset), dtype=np.float32)  # (rows, columns)
    except (
        InvalidDicomError,
        EOFError,
        ValueError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise ValueError(f"{file}: cannot be read as a DICOM image ({_first_line(error)})") from error
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":  # bright is low
        pixels = pixels.max() + pixels.min() - pixels
    return dataset, pixels


def _position(dataset: pydicom.Dataset) -> list[float]:
    return [float(v) for v in dataset.get("ImagePositionPatient") or [0, 0, 0]]


def _even(stack: NDArray[np.float32], heights: NDArray[np.float64], spacing_mm: float) -> NDArray[np.float32]:
    """Interpolate slices (x, y, z) at `heights` linearly to even distances."""
    wanted = np.arange(heights[0], heights[-1] + 0.5 * spacing_mm, spacing_mm)
    wanted = wanted[wanted <= heights[-1] + 1e-6]
    place = np.interp(wanted, heights, np.arange(len(heights)))
    below = np.minimum(place.astype(int), len(heights) - 2)
    part = (place - below).astype(np.float32)
    return stack[..., below] * (1 - part) + stack[..., below + 1] * part


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
