"""Small images with known geometry, written in every format, for the tests beside this file."""

from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

# LPS order: index runs to the patient's left, back and head, in RAS mm
LPS_AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2.0, 0, 40], [0, 0, 4.0, -50], [0, 0, 0, 1]])
SHAPE = (40, 36, 10)  # x, y, z


def body(shape: tuple[int, int, int] = SHAPE, centre: tuple[int, int] = (20, 18)) -> NDArray[np.int16]:
    """Air with an elliptic body of 40 HU, brighter to the patient's left, back and head."""
    x, y, z = np.indices(shape)
    inside = ((x - centre[0]) / 8) ** 2 + ((y - centre[1]) / 6) ** 2 <= 1
    return np.where(inside, 40 + x + 2 * y + 3 * z, -1000).astype(np.int16)


def write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64] = LPS_AFFINE) -> Path:
    """Write an array (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_nrrd(path: Path, array: NDArray[Any], affine: NDArray[np.float64] = LPS_AFFINE) -> Path:
    """Write an array (x, y, z); NRRD keeps LPS mm."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    nrrd.write(str(path), array, header)
    return path


def write_dicom(
    folder: Path,
    array: NDArray[Any],
    affine: NDArray[np.float64] = LPS_AFFINE,
    *,
    syntax: UID = ExplicitVRLittleEndian,
    suffix: str = ".dcm",
    skip: tuple[int, ...] = (),
    patient_id: str = "",
    series: str | None = None,
    prefix: str = "",
) -> list[Path]:
    """Write an array (x, y, z) of HU as a CT series, its slices numbered and named in a shuffled order."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    across, down = (lps[:3, :2] / steps[:2]).T
    series = series or generate_uid()
    order = np.random.default_rng(0).permutation(array.shape[2])
    files = []
    for number, z in enumerate(order):
        if z in skip:
            continue
        dataset = pydicom.Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.Modality, dataset.PatientID = series, "CT", patient_id
        dataset.InstanceNumber = number + 1
        dataset.Rows, dataset.Columns = array.shape[1], array.shape[0]
        dataset.ImageOrientationPatient = [*across, *down]
        dataset.ImagePositionPatient = list((lps @ [0, 0, z, 1])[:3])
        dataset.PixelSpacing, dataset.SliceThickness = [steps[1], steps[0]], steps[2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, -1024
        stored = ((array[:, :, z].T.astype(float) + 1024) * 2).astype(np.uint16)  # (rows, columns)
        dataset.PixelData = stored.tobytes()
        if syntax != ExplicitVRLittleEndian:
            dataset.compress(syntax, generate_instance_uid=False)
        file = folder / f"{prefix}{number:03d}{suffix}"
        dataset.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def write_report(file: Path) -> Path:
    """Write a DICOM structured report, which has no pixels."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.88.33")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID = "SR", generate_uid()
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def images_config(**changes: Any) -> dict[str, Any]:
    """Settings that fit the small images: every millimetre counts, no augmentation."""
    return {
        "name": "test",
        "source": "folder",
        "path": None,
        "held_out": ["b"],
        "window": [-200, 300],
        "field_of_view_mm": [48, 48, 40],
        "slice_step_mm": 4,
        "min_coverage": 0.5,
        "augment": {"copies_2d": 1, "copies_3d": 1, "rotate_degrees": 8, "scale": 0.1, "shift_mm": 4},
        "seed": 0,
    } | changes
