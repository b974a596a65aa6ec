"""The folders of ACDC and M&Ms-2, short-axis cine MR with labels at end diastole and end systole, for who has them.

Neither may be passed on, so nothing here fetches them. Layouts, as published:

    ACDC (Bernard et al. 2018)            .../patient001/  Info.cfg  patient001_4d.nii.gz
                                                           patient001_frame01_gt.nii.gz  patient001_frame12_gt.nii.gz
    M&Ms-2 (Martin-Isla et al. 2023)      MnM2/            dataset_information.csv
                                          MnM2/dataset/001/  001_SA_CINE.nii.gz  001_SA_ED.nii.gz  001_SA_ES.nii.gz
                                                             001_SA_ED_gt.nii.gz  001_SA_ES_gt.nii.gz

Info.cfg counts frames from 1. M&Ms-2's table has no frames in it: they are found by comparing the two still stacks
with the cine, unless the table has columns ED and ES (from 0, as that of M&Ms). ACDC numbers its labels right
ventricle, wall, left ventricle, M&Ms-2 the other way round; both come out as `models.data.cine.LABELS`.
"""

import csv
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from models.data.cine import Cine

log = logging.getLogger(__name__)

INFO, TABLE = "Info.cfg", "dataset_information.csv"
SUFFIXES = (".nii.gz", ".nii")
ACDC_LABELS = np.array([0, 1, 2, 3], np.uint8)
MNMS2_LABELS = np.array([0, 3, 2, 1], np.uint8)
PLAUSIBLE_FRAME_S = (0.005, 0.2)  # headers without a time between frames often say 0 or 1
_PER_S = {"sec": 1.0, "msec": 1e3, "usec": 1e6}
_DAMAGED = (EOFError, ValueError, KeyError, struct.error, zlib.error, ImageFileError, HeaderDataError, OSError)


def find_acdc(root: Path) -> list[Path]:
    """Folders of patients under `root`, in order: those with an Info.cfg.

    Raises:
        OSError: there is no such folder.
        ValueError: there is no patient in it.
    """
    return _found(root, sorted(path.parent for path in _folder(root).rglob(INFO)), f"patients with an {INFO} (ACDC)")


def find_mnms2(root: Path) -> list[Path]:
    """Folders of patients under `root`, in order: those with a short-axis cine.

    Raises:
        OSError: there is no such folder.
        ValueError: there is no patient in it.
    """
    folders = sorted({path.parent for path in _folder(root).rglob("*_SA_CINE.nii*")})
    return _found(root, folders, "patients with a _SA_CINE.nii.gz (M&Ms-2)")


def read_acdc(folder: Path) -> Cine:
    """One patient of ACDC; a patient without any label file (parts of the test set) has no labels.

    Raises:
        FileNotFoundError: Info.cfg, the cine or one of the two label files is missing; names it.
        ValueError: a file is damaged, or does not fit the others; names it.
    """
    name = folder.name
    info = _read_info(folder / INFO)
    array, spacing_mm, frame_s = _read_cine(_existing(folder, f"{name}_4d"))
    frames = []
    for key in ("ED", "ES"):
        text = info.get(key)
        if text is None or not text.isdigit() or not 1 <= int(text) <= array.shape[-1]:
            raise ValueError(
                f"{folder / INFO}: {key} must be a frame from 1 to {array.shape[-1]}, found {text or 'none'}"
            )
        frames.append(int(text) - 1)
    stems = [f"{name}_frame{frame + 1:02d}_gt" for frame in frames]
    labels = _read_labels(folder, dict(zip(frames, stems, strict=True)), array.shape[:-1], ACDC_LABELS)
    group = info.get("Group", "")
    return _cine(array, spacing_mm, frame_s, name, f"ACDC {name}", group, labels, frames)


def read_mnms2(folder: Path) -> Cine:
    """One patient of M&Ms-2, short axis.

    Raises:
        FileNotFoundError: one of the five files, or the table of all patients, is missing; names it.
        ValueError: a file is damaged, does not fit the others, or the table lacks the patient; names it.
    """
    name = folder.name
    row = _read_row(folder, name)
    array, spacing_mm, frame_s = _read_cine(_existing(folder, f"{name}_SA_CINE"))
    frames = []
    for key in ("ED", "ES"):
        if (text := (row.get(key) or "").strip()).isdigit():
            frame = int(text)
            if frame >= array.shape[-1]:
                raise ValueError(f"{TABLE}: {key} of {name} is {frame}, but its cine ends at {array.shape[-1] - 1}")
        else:
            frame = _matching_frame(array, _existing(folder, f"{name}_SA_{key}"))
        frames.append(frame)
    stems = {frame: f"{name}_SA_{key}_gt" for frame, key in zip(frames, ("ED", "ES"), strict=True)}
    labels = _read_labels(folder, stems, array.shape[:-1], MNMS2_LABELS)
    return _cine(array, spacing_mm, frame_s, name, f"M&Ms-2 {name}", row.get("DISEASE") or "", labels, frames)


def _cine(
    array: NDArray[np.float32], spacing_mm: tuple[float, ...], frame_s: float | None, patient: str, origin: str,
    group: str, labels: dict[int, NDArray[np.uint8]], frames: list[int],
) -> Cine:  # fmt: skip
    return Cine(
        array=array,
        spacing_mm=spacing_mm,
        frame_s=frame_s,
        patient=patient,
        modality="MR",
        synthetic=False,
        origin=f"{origin} ({group.strip()})" if group.strip() else origin,
        labels=labels,
        end_diastole=frames[0],
        end_systole=frames[1],
    )


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"images.path: there is no folder {root}")
    return root


def _found(root: Path, folders: list[Path], what: str) -> list[Path]:
    if not folders:
        raise ValueError(f"images.path: {root} holds no {what}")
    return folders


def _existing(folder: Path, stem: str) -> Path:
    for suffix in SUFFIXES:
        if (path := folder / f"{stem}{suffix}").is_file():
            return path
    raise FileNotFoundError(f"{folder / stem}{SUFFIXES[0]} is missing")


def _read_info(file: Path) -> dict[str, str]:
    """Lines of `key: value`."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _read_row(folder: Path, name: str) -> dict[str, str]:
    """The patient's row of the table, which lies in one of the folders above; spreadsheets drop leading zeros."""
    table = next((up / TABLE for up in list(folder.absolute().parents)[:2] if (up / TABLE).is_file()), None)
    if table is None:
        raise FileNotFoundError(f"{folder.absolute().parents[1] / TABLE} is missing")
    text = table.read_text(encoding="utf-8-sig", errors="replace")
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    rows = csv.DictReader(text.splitlines(), delimiter=delimiter)
    if "SUBJECT_CODE" not in (rows.fieldnames or []):
        raise ValueError(f"{table}: has no column SUBJECT_CODE")
    for row in rows:
        if (row["SUBJECT_CODE"] or "").strip().lstrip("0") == name.lstrip("0"):
            return row
    raise ValueError(f"{table}: has no row for {name}")


def _read_nifti(file: Path) -> tuple[NDArray[Any], Any]:
    """Values (x, y, z[, t]) and the header."""
    try:
        image = nib.load(file)
        return np.asarray(image.dataobj), image.header  # type: ignore[attr-defined]
    except _DAMAGED as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file}: cannot be read as NIfTI, truncated or damaged? ({reason})") from error


def _read_cine(file: Path) -> tuple[NDArray[np.float32], tuple[float, ...], float | None]:
    """A stack over time (D, H, W, T), the spacing of D, H, W, and the time between frames if the header tells."""
    values, header = _read_nifti(file)
    if values.ndim != 4 or values.shape[3] < 2:
        raise ValueError(f"{file}: has shape {values.shape}, a cine has four axes and several frames")
    if not np.isfinite(values).all():
        raise ValueError(f"{file}: holds values that are not finite")
    zooms = [float(zoom) for zoom in header.get_zooms()]
    if min(zooms[:3]) <= 0:
        raise ValueError(f"{file}: its header has no usable spacing {zooms[:3]}")
    unit = header.get_xyzt_units()[1]
    frame_s = zooms[3] / _PER_S[unit] if unit in _PER_S else None
    if frame_s is not None and not PLAUSIBLE_FRAME_S[0] <= frame_s <= PLAUSIBLE_FRAME_S[1]:
        frame_s = None
    array = np.ascontiguousarray(values.transpose(2, 1, 0, 3), dtype=np.float32)
    return array, (zooms[2], zooms[1], zooms[0]), frame_s


def _read_labels(
    folder: Path, stems: dict[int, str], shape: tuple[int, ...], order: NDArray[np.uint8]
) -> dict[int, NDArray[np.uint8]]:
    """Frame -> labels (D, H, W) renumbered by `order`; none if none of the files is there."""
    there = [any((folder / f"{stem}{suffix}").is_file() for suffix in SUFFIXES) for stem in stems.values()]
    if not any(there):
        log.info("%s: no labels", folder)
        return {}
    labels = {}
    for frame, stem in stems.items():
        file = _existing(folder, stem)
        values, _ = _read_nifti(file)
        if values.ndim != 3 or values.shape != shape[::-1]:
            raise ValueError(f"{file}: has shape {values.shape}, the cine's stacks {shape[::-1]}")
        numbers = np.rint(values).astype(int)
        if numbers.min() < 0 or numbers.max() >= len(order):
            raise ValueError(f"{file}: holds label {numbers.max()}, known are 0 to {len(order) - 1}")
        labels[frame] = np.ascontiguousarray(order[numbers].T)
    return labels


def _matching_frame(array: NDArray[np.float32], file: Path) -> int:
    """The frame of a cine (D, H, W, T) that a still stack is, or is nearest to."""
    values, _ = _read_nifti(file)
    still = np.squeeze(values).T if values.ndim == 4 else values.T
    if still.shape != array.shape[:-1]:
        raise ValueError(f"{file}: has shape {values.shape}, the cine's stacks {array.shape[-2::-1]}")
    differences = np.abs(array - still[..., None].astype(np.float32)).mean((0, 1, 2))  # (T,)
    best = int(np.argmin(differences))
    if differences[best] > 0:
        log.info("%s is no frame of its cine: nearest is %d", file.name, best)
    return best
