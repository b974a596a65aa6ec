"""Cohorts: the images of a study, split by patient and made into arrays for one dimension and resolution."""

import json
import logging
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.readers import read_medmnist, read_volume
from models.data.sequences import Grid, write_sequences
from models.data.shapes import SEQUENCES, image_shape
from models.data.transforms import (
    PERCENTILES,
    Augment,
    Oriented,
    bend,
    draw_motions,
    orient,
    resample_pictures,
    resample_slices,
    resample_volume,
    slice_stride,
)
from models.files import atomic_path

log = logging.getLogger(__name__)

SPLITS = ("train", "heldout")
BATCH = 4096  # MedMNIST pictures handled at a time


@dataclass(frozen=True)
class Cohort:
    """A prepared cohort.

    Attributes:
        train: (N, 1, [D,] H, W[, T]) float32 in [-1, 1], memory-mapped; with frames if `info["frames"]` is not
            None. The first `info["images_train"]` are the images themselves; augmented copies of all of them, in the
            same order, follow.
        heldout: the same layout, never augmented, of other patients.
        info: cohort.json.
    """

    train: NDArray[np.float32]
    heldout: NDArray[np.float32]
    info: dict[str, Any]


def load_cohort(folder: str | Path) -> Cohort:
    """Open the cohort in `folder` without reading its arrays into memory.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged.
    """
    folder = Path(folder)
    info = json.loads((folder / "cohort.json").read_text(encoding="utf-8"))
    train, heldout = (np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS)
    return Cohort(train, heldout, info)


@dataclass(frozen=True)
class Recipe:
    """How the images of one cohort are made; see config/config.yaml for the meaning of each value."""

    spatial_dims: int
    resolution: int
    shape: tuple[int, ...]  # of an image
    window: tuple[float, float] | None
    field_of_view_mm: tuple[float, float, float] | None
    slice_step_mm: float
    min_coverage: float
    copies: int
    augment: Augment
    seed: int

    @classmethod
    def of(cls, images_config: dict[str, Any], spatial_dims: int, resolution: int) -> "Recipe":
        """Read the settings of `images` for one dimension and resolution.

        Raises:
            ValueError: as `models.data.shapes.image_shape`.
        """
        augment = images_config.get("augment") or {}
        limits = {key: float(value) for key, value in augment.items() if not key.startswith("copies_")}
        window, view = images_config.get("window"), images_config.get("field_of_view_mm")
        return cls(
            spatial_dims=spatial_dims,
            resolution=resolution,
            shape=image_shape(images_config, spatial_dims, resolution),
            window=None if window is None else (float(window[0]), float(window[1])),
            field_of_view_mm=None if view is None else (float(view[0]), float(view[1]), float(view[2])),
            slice_step_mm=float(images_config.get("slice_step_mm") or 0),
            min_coverage=float(images_config.get("min_coverage") or 0),
            copies=max(1, int(augment.get(f"copies_{spatial_dims}d", 1))),
            augment=Augment(**limits),
            seed=int(images_config.get("seed", 0)),
        )


def prepare_cohort(
    manifest_path: str | Path,
    images_config: dict[str, Any],
    spatial_dims: int,
    resolution: int,
    cohort: str,
    train_path: str | Path,
    heldout_path: str | Path,
    cohort_path: str | Path,
) -> dict[str, int]:
    """Make the arrays of one cohort from the manifest's images, a volume at a time.

    Args:
        manifest_path: what `fetch_images` wrote.
        images_config: `images` of the config.
        cohort: its key, written into cohort.json.
        train_path, heldout_path, cohort_path: where to write; see `Cohort`.

    Returns:
        Work done: `samples` (images written, copies included) and `voxels`.

    Raises:
        ValueError: an image is damaged, `images.held_out` names an unknown patient, or a side of the split is
            empty.
        OSError: a file is gone, or the disk is full; nothing half-written is left.
    """
    manifest = json.loads(Path(manifest_path).read_text(encoding="utf-8"))
    recipe = Recipe.of(images_config, spatial_dims, resolution)
    Path(train_path).parent.mkdir(parents=True, exist_ok=True)
    moving = manifest["source"] in SEQUENCES
    grid = Grid.of(images_config, spatial_dims, resolution) if moving else None
    with _Writer(Path(train_path).parent, recipe.shape) as writer:
        if grid:
            entries = manifest["volumes"]
            heldout = split_patients([e["patient"] for e in entries], images_config.get("held_out"), recipe.seed)
            about = write_sequences(entries, heldout, grid, recipe.copies, recipe.augment, recipe.seed, writer.add)
        elif manifest["source"] == "medmnist":
            about = _write_pictures(manifest, recipe, writer)
        else:
            about = _write_volumes(manifest, recipe, images_config.get("held_out"), writer)
        counts = {split: writer.number(split, copy=0) for split in SPLITS}
        _check_sides(cohort, counts, about["skipped"])
        for split, path in zip(SPLITS, (train_path, heldout_path), strict=True):
            writer.finish(split, path)
    rows = about["patients"]
    patients = {
        split: about.get(f"patients_{split}", len({r["patient"] for r in rows if r["split"] == split}))
        for split in SPLITS
    }
    info = {
        "cohort": cohort,
        "images": manifest["images"],
        "spatial_dims": spatial_dims,
        "resolution": resolution,
        "shape": list(recipe.shape),
        "frames": grid.frames if grid else None,
        "spacing_mm": about["spacing_mm"],
        "window": about["window"],
        "unit": about["unit"],
        "patients": rows,
        "patients_train": patients["train"],
        "patients_heldout": patients["heldout"],
        "images_train": counts["train"],
        "images_heldout": counts["heldout"],
        "copies": recipe.copies,
        "skipped": about["skipped"],
        "credit": manifest["credit"],
    }
    with atomic_path(cohort_path) as temporary:
        temporary.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    log.info(
        "%s: %d training images of %d patients (x %d copies), %d held-out images of %d patients",
        cohort, counts["train"], patients["train"], recipe.copies, counts["heldout"], patients["heldout"],
    )  # fmt: skip
    samples = counts["train"] * recipe.copies + counts["heldout"]
    return {"samples": samples, "voxels": samples * math.prod(recipe.shape)}


def split_patients(patients: Sequence[str], held_out: Sequence[str] | float | None, seed: int) -> set[str]:
    """The patients that are held out: those named, or a fraction of them drawn with `seed` (at least one).

    Raises:
        ValueError: a named patient does not exist, or nobody is left on one side.
    """
    everyone = sorted(set(patients))
    there = ", ".join(everyone[:20]) + (", ..." if len(everyone) > 20 else "")
    if len(everyone) < 2:
        raise ValueError(
            f"images: only one patient ({there}), but one must be held out: add a patient; files of several "
            f"patients belong straight into images.path, or into a sub-folder for each patient"
        )
    if isinstance(held_out, int | float):
        if not 0 < held_out < 1:
            raise ValueError(f"images.held_out: {held_out} is no fraction between 0 and 1")
        number = min(max(1, round(held_out * len(everyone))), len(everyone) - 1)
        return {str(p) for p in np.random.default_rng(seed).permutation(everyone)[:number]}
    chosen = {str(patient) for patient in held_out or []}
    if unknown := sorted(chosen - set(everyone)):
        raise ValueError(f"images.held_out: {', '.join(unknown)} is not among the patients ({there})")
    if not chosen or chosen == set(everyone):
        side = "nobody is" if not chosen else "everybody is"
        raise ValueError(f"images.held_out: {side} held out; name some of the patients ({there}), or give a fraction")
    return chosen


def _check_sides(cohort: str, counts: dict[str, int], skipped: list[dict[str, str]]) -> None:
    for split, side in zip(SPLITS, ("training", "held-out"), strict=True):
        if not counts[split]:
            why = "; ".join(f"{row['patient']}: {row['reason']}" for row in skipped) or "no image was read"
            raise ValueError(f"{cohort} has no {side} image ({why}): add patients or change images.held_out")


def _write_volumes(
    manifest: dict[str, Any], recipe: Recipe, held_out: Sequence[str] | float | None, writer: "_Writer"
) -> dict[str, Any]:
    """Cut every volume of the manifest; what cohort.json says of them."""
    entries = manifest["volumes"]
    heldout = split_patients([entry["patient"] for entry in entries], held_out, recipe.seed)
    rows, skipped, spacings, units = [], [], set(), set()
    for number, entry in enumerate(entries, start=1):
        patient = entry["patient"]
        split = "heldout" if patient in heldout else "train"
        volume = read_volume(entry)
        if volume.unit != "HU" and recipe.window is not None:
            log.warning("%s is no CT: does images.window %s fit it? null is its own", volume.file, recipe.window)
        oriented = orient(volume, recipe.window)
        view_mm = np.array(recipe.field_of_view_mm) if recipe.field_of_view_mm else oriented.extent_mm
        if reason := _too_short(oriented, recipe, view_mm):
            log.info("%s left out: %s", patient, reason)
            skipped.append({"patient": patient, "reason": reason})
            continue
        # drawn by name, so that a patient more leaves the copies of the others as they are
        name = zlib.crc32(f"{patient}/{volume.file.name}".encode())
        rng = np.random.default_rng([recipe.seed, name, recipe.spatial_dims])
        copies = recipe.copies if split == "train" else 1
        images = 0
        for copy, cut in enumerate(_cuts(oriented, recipe, view_mm, copies, rng)):
            writer.add(split, copy, cut)
            images = len(cut)
        file = volume.file.parent.name if entry["format"] == "dicom" else volume.file.name
        row = {
            "patient": patient,
            "split": split,
            "file": file,
            "images": images,
            "modality": volume.modality,
        }
        rows.append(row)
        spacings.add(tuple(float(step) for step in _spacing_mm(recipe, view_mm)[::-1].round(6)))
        units.add(volume.unit)
        log.info("%d of %d: %s, %d images (%s)", number, len(entries), patient, images, split)
    return {
        "patients": rows,
        "skipped": skipped,
        "spacing_mm": list(spacings.pop()) if len(spacings) == 1 else None,
        "window": None if recipe.window is None else list(recipe.window),
        "unit": "HU" if units == {"HU"} else "intensity",
    }


def _spacing_mm(recipe: Recipe, view_mm: NDArray[np.float64]) -> NDArray[np.float64]:  # (2,) or (3,) of x, y[, z]
    return np.asarray(view_mm[: recipe.spatial_dims] / recipe.shape[::-1])


def _too_short(volume: Oriented, recipe: Recipe, view_mm: NDArray[np.float64]) -> str:
    """Why a volume is left out of a 3D cohort; "" if it is not."""
    long_mm = volume.extent_mm[2]
    if recipe.spatial_dims == 2 or long_mm >= recipe.min_coverage * view_mm[2]:
        return ""
    return f"{long_mm:.0f} mm long, less than {recipe.min_coverage:.0%} of {view_mm[2]:.0f} mm"


def _cuts(
    volume: Oriented, recipe: Recipe, view_mm: NDArray[np.float64], copies: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float32]]:
    """The images of a volume (n, 1, ...) in [0, 1], then its augmented copies one after the other."""
    dims, spacing_mm = recipe.spatial_dims, _spacing_mm(recipe, view_mm)
    stride = slice_stride(volume, recipe.slice_step_mm)
    number = len(range(0, volume.image.shape[3], stride)) if dims == 2 else 1
    still = np.tile(np.eye(dims + 1), (number, 1, 1))
    moved = [draw_motions(rng, number, dims, recipe.augment) for _ in range(copies - 1)]
    motions = np.stack([still, *moved])  # (copies, n, dims+1, dims+1)
    if dims == 2:
        cuts = resample_slices(volume, recipe.resolution, spacing_mm, motions, stride)  # (copies, n, 1, H, W)
    else:
        cuts = resample_volume(volume, recipe.shape, spacing_mm, motions[:, 0])[:, None]  # (copies, 1, 1, D, H, W)
    yield cuts[0]
    for cut in cuts[1:]:
        yield bend(cut, rng, recipe.augment)


def _write_pictures(manifest: dict[str, Any], recipe: Recipe, writer: "_Writer") -> dict[str, Any]:
    """Resize the pictures of a MedMNIST file, split as the file is; each counts as a patient of its own."""
    file = Path(manifest["volumes"][0]["files"][0])
    pictures = read_medmnist(file, recipe.spatial_dims)
    log.info("%s: the file's own split is used, images.held_out, window and field of view are not", file.name)
    low, high = 0.0, 255.0
    if pictures["train"].dtype != np.uint8:
        low, high = (float(v) for v in np.percentile(pictures["train"].astype(np.float32), PERCENTILES))
    rows = []
    for split, source in zip(SPLITS, ("train", "test"), strict=True):
        rng = np.random.default_rng([recipe.seed, SPLITS.index(split), recipe.spatial_dims])
        for copy in range(recipe.copies if split == "train" else 1):
            for start in range(0, len(pictures[source]), BATCH):
                batch = pictures[source][start : start + BATCH].astype(np.float32)
                batch = ((batch - low) / max(high - low, 1e-6)).clip(0, 1)
                writer.add(split, copy, _resized(batch, recipe, rng if copy else None))
        number = len(pictures[source])
        rows.append(
            {
                "patient": f"{source}_images",
                "split": split,
                "file": file.name,
                "images": number,
                "modality": "",
            }
        )
    return {
        "patients": rows,
        "patients_train": len(pictures["train"]),
        "patients_heldout": len(pictures["test"]),
        "skipped": [],
        "spacing_mm": None,
        "window": [low, high],
        "unit": "intensity",
    }


def _resized(batch: NDArray[np.float32], recipe: Recipe, rng: np.random.Generator | None) -> NDArray[np.float32]:
    """Pictures (N, [D,] H, W) in [0, 1] at the recipe's resolution, moved at random if there is an `rng`."""
    dims, number = recipe.spatial_dims, len(batch)
    motions = np.tile(np.eye(dims + 1), (number, 1, 1))
    if rng is not None:
        motions = draw_motions(rng, number, dims, recipe.augment)
    resized = resample_pictures(torch.from_numpy(batch), recipe.shape, motions)
    return resized if rng is None else bend(resized, rng, recipe.augment)


class _Writer:
    """Collects images of unknown number on disk; writes them as .npy with the originals before the copies.

    Plain writes and no memory map: on a full disk a write raises, while a mapped page kills the process.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self._folder = folder
        self._shape = shape
        self._scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".cohort-")
        self._numbers: dict[tuple[str, int], int] = {}

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._scratch.cleanup()

    def _part(self, split: str, copy: int) -> Path:
        return Path(self._scratch.name) / f"{split}-{copy}"

    def number(self, split: str, copy: int) -> int:
        """How many images were added."""
        return self._numbers.get((split, copy), 0)

    def add(self, split: str, copy: int, images: NDArray[np.float32]) -> None:
        """Append images (n, 1, *shape) in [0, 1]; they are kept in [-1, 1]."""
        scaled = np.ascontiguousarray(images.clip(0, 1) * 2 - 1, dtype=np.float32)
        try:
            with self._part(split, copy).open("ab") as part:
                part.write(scaled.data)
        except OSError as error:  # of the full disk; the part's own name would tell nobody anything
            raise OSError(error.errno, error.strerror, str(self._folder)) from error
        self._numbers[split, copy] = self.number(split, copy) + len(images)

    def finish(self, split: str, path: str | Path) -> None:
        """Write the split's images to `path`, copy after copy."""
        keys = sorted(key for key in self._numbers if key[0] == split)
        total = sum(self._numbers[key] for key in keys)
        header = {"descr": "<f4", "fortran_order": False, "shape": (total, 1, *self._shape)}
        with atomic_path(path) as temporary, temporary.open("wb") as target:
            np.lib.format.write_array_header_1_0(target, header)
            for key in keys:
                with self._part(*key).open("rb") as part:
                    shutil.copyfileobj(part, target, 1 << 20)
