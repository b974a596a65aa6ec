"""Which images a study uses: found, named by patient, and written down in a manifest."""

import json
import logging
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.data.bundled import CREDIT, fetch_scans
from models.data.dicom import find_series, looks_like_dicom
from models.data.folder import list_files
from models.data.readers import format_of, stem_of
from models.data.sequences import CREDITS, IN_A_FOLDER, find_sequences
from models.data.shapes import SEQUENCES
from models.files import atomic_path

log = logging.getLogger(__name__)


def fetch_images(images_config: dict[str, Any], manifest_path: str | Path) -> dict[str, int]:
    """List the study's images in `manifest_path`, fetching the bundled ones.

    Returns:
        Work done: `samples`, the number of volumes.

    Raises:
        ValueError, OSError: as `find_images`.
    """
    manifest = find_images(images_config)
    with atomic_path(manifest_path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    log.info("%d volumes of %d patients", len(manifest["volumes"]), len(manifest["patients"]))
    return {"samples": len(manifest["volumes"])}


def find_images(images_config: dict[str, Any]) -> dict[str, Any]:
    """Find the images of `images.source`: bundled, folder, medmnist, or one of the heart sequences.

    Returns:
        {"images", "source", "credit", "patients": [names], "volumes": [{"patient", "format", "files",
        "size_bytes", "sha256" (bundled) or "modified_at"}]}. A MedMNIST file is one entry with patient "",
        since each of its pictures is a patient of its own.

    Raises:
        ValueError: `images.source` is unknown, `images.path` missing, or nothing there is an image.
        OSError: the path does not exist or cannot be read, or the bundled images cannot be fetched.
    """
    source = images_config["source"]
    known = ("bundled", "folder", "medmnist", *SEQUENCES)
    if source not in known:
        raise ValueError(f"images.source: {source!r} is not one of {', '.join(known)}")
    if source == "bundled":
        volumes, credit = _bundled(), CREDIT
    elif source in SEQUENCES:
        volumes = find_sequences(images_config)
        credit = f"images in {Path(images_config['path']).name}" if source in IN_A_FOLDER else CREDITS[source]
    else:
        if not images_config.get("path"):
            raise ValueError(f"images.path: say where the images are, as images.source is {source}")
        path = Path(images_config["path"]).expanduser().absolute()
        volumes = _folder(path) if source == "folder" else _medmnist(path)
        credit = f"images in {path.name}"
    return {
        "images": images_config["name"],
        "source": source,
        "credit": credit,
        "patients": sorted({volume["patient"] for volume in volumes}),
        "volumes": volumes,
    }


def _bundled() -> list[dict[str, Any]]:
    volumes = []
    for scan, path in fetch_scans():
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        entry = _entry(scan.patient, scan.format, files)
        del entry["modified_at"]  # the same image again is no reason to prepare the cohorts again
        volumes.append(entry | {"sha256": scan.sha256})
    return volumes


def _medmnist(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise FileNotFoundError(f"images.path: {path} is no MedMNIST .npz file")
    return [_entry("", "medmnist", [path])]


def _folder(root: Path) -> list[dict[str, Any]]:
    """One entry per NIfTI or NRRD file and per DICOM series; patients as `docs/images.md` tells."""
    volumes, slices, others = [], [], []
    for file in list_files(root):
        form = format_of(file)
        if form in ("nifti", "nrrd"):
            volumes.append(_entry(_patient(root, file) or stem_of(file), form, [file]))
        elif form is None and looks_like_dicom(file):
            slices.append(file)
        else:
            others.append(file)
    if slices:
        volumes += _dicom(root, slices, others_exist=bool(volumes))
    if others:
        suffixes = Counter(file.suffix or "no suffix" for file in others)
        log.info("%d files are no images: left out (%s)", len(others), ", ".join(sorted(suffixes)))
    if not volumes:
        what = f"none of the {len(others)} files in {root} is an image" if others else f"the folder {root} is empty"
        raise ValueError(f"images.path: {what}; put NIfTI (.nii, .nii.gz), NRRD or DICOM files there")
    return volumes


def _dicom(root: Path, files: list[Path], others_exist: bool) -> list[dict[str, Any]]:
    try:
        found = find_series(files)
    except ValueError:
        if not others_exist:
            raise
        log.warning("%d DICOM files in %s hold no image: left out", len(files), root, exc_info=True)
        return []
    volumes = []
    for number, series in enumerate(found, start=1):
        # in one folder only the header tells whose series it is; two of the same patient must not be split
        patient = _patient(root, series.files[0]) or series.patient_id
        patient = patient or (root.name if len(found) == 1 else f"series-{number}")
        volumes.append(_entry(patient, "dicom", list(series.files)))
    return volumes


def _patient(root: Path, file: Path) -> str:
    """The sub-folder of `root` that a file lies in, "" if it lies in `root` itself."""
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def _entry(patient: str, form: str, files: list[Path]) -> dict[str, Any]:
    states = [file.stat() for file in files]
    modified = datetime.fromtimestamp(max(state.st_mtime for state in states), UTC)
    return {
        "patient": patient,
        "format": form,
        "files": [str(file) for file in files],
        "size_bytes": sum(state.st_size for state in states),
        "modified_at": modified.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
