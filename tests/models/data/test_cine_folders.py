"""ACDC and M&Ms-2, in tiny folders of the published layout."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.audit.cardiac import LV, ejection, label_volumes
from models.data.cine import LABELS, Cine
from models.data.cine_folders import find_acdc, find_mnms2, read_acdc, read_mnms2
from models.data.phantom import ShortAxisHeart, phantom

SPACING_MM = (10.0, 4.0, 4.0)
ED, ES = 0, 3


@pytest.fixture(scope="module")
def truth() -> Cine:
    return phantom(ShortAxisHeart(), 8, (10, 28, 32), SPACING_MM)


def save(file: Path, array: np.ndarray, frame_s: float = 0.04) -> None:
    """Write (z, y, x[, t]) as NIfTI (x, y, z[, t])."""
    image = nib.Nifti1Image(np.moveaxis(array, (0, 1, 2), (2, 1, 0)), np.diag([4.0, 4.0, 10.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    if array.ndim == 4:
        image.header.set_zooms((4.0, 4.0, 10.0, frame_s))
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)


def write_acdc(root: Path, truth: Cine) -> Path:
    folder = root / "training" / "patient001"
    save(folder / "patient001_4d.nii.gz", truth.array)
    for frame in (ED, ES):
        save(folder / f"patient001_frame{frame + 1:02d}.nii.gz", truth.array[..., frame])
        save(folder / f"patient001_frame{frame + 1:02d}_gt.nii.gz", truth.labels[frame])
    info = f"ED: {ED + 1}\nES: {ES + 1}\nGroup: DCM\nHeight: 184.0\nNbFrame: 8\nWeight: 95.0\n"
    (folder / "Info.cfg").write_text(info, encoding="utf-8")
    return folder


def write_mnms2(root: Path, truth: Cine, code: str = "001") -> Path:
    folder = root / "dataset" / "001"
    save(folder / "001_SA_CINE.nii.gz", truth.array)
    other_way_round = np.array([0, 3, 2, 1], np.uint8)  # 1 left ventricle, 2 wall, 3 right ventricle
    for key, frame in (("ED", ED), ("ES", ES)):
        save(folder / f"001_SA_{key}.nii.gz", truth.array[..., frame])
        save(folder / f"001_SA_{key}_gt.nii.gz", other_way_round[truth.labels[frame]])
    save(folder / "001_LA_CINE.nii.gz", truth.array[:1])
    table = f"SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n{code},HCM,Philips Medical Systems,Achieva,1.5\n"
    (root / "dataset_information.csv").write_text(table, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("write", "find", "read", "group"),
    [(write_acdc, find_acdc, read_acdc, "DCM"), (write_mnms2, find_mnms2, read_mnms2, "HCM")],
)
def test_a_patient_is_read_with_frames_labels_and_spacing(
    tmp_path: Path, truth: Cine, write: Callable, find: Callable, read: Callable, group: str
) -> None:
    folder = write(tmp_path, truth)
    assert find(tmp_path) == [folder]
    cine = read(folder)
    np.testing.assert_array_equal(cine.array, truth.array)
    assert (cine.end_diastole, cine.end_systole) == (ED, ES)
    assert sorted(cine.labels) == [ED, ES]
    for frame in (ED, ES):
        np.testing.assert_array_equal(cine.labels[frame], truth.labels[frame])
    assert cine.spacing_mm == SPACING_MM
    assert cine.frame_s == pytest.approx(0.04)
    assert (cine.patient, cine.synthetic, cine.modality) == (folder.name, False, "MR")
    assert group in cine.origin
    volumes = label_volumes(np.stack([cine.labels[ED], cine.labels[ES]], -1), cine.spacing_mm, LV)
    assert ejection(volumes).ejection_fraction == pytest.approx(0.6, abs=0.05)


def test_lost_zeros_semicolons_and_frames_in_the_table_are_understood(tmp_path: Path, truth: Cine) -> None:
    folder = write_mnms2(tmp_path, truth, code="1")
    assert read_mnms2(folder).end_systole == ES
    (tmp_path / "dataset_information.csv").write_text("SUBJECT_CODE;DISEASE;ED;ES\n001;HCM;1;5\n", encoding="utf-8")
    assert (read_mnms2(folder).end_diastole, read_mnms2(folder).end_systole) == (1, 5)


def test_a_placeholder_in_place_of_the_frame_time_is_unknown(tmp_path: Path, truth: Cine) -> None:
    folder = write_acdc(tmp_path, truth)
    save(folder / "patient001_4d.nii.gz", truth.array, frame_s=1.0)
    assert read_acdc(folder).frame_s is None


def test_a_patient_of_the_test_set_has_no_labels(tmp_path: Path, truth: Cine) -> None:
    folder = write_acdc(tmp_path, truth)
    for file in folder.glob("*_gt.nii.gz"):
        file.unlink()
    assert read_acdc(folder).labels == {}


@pytest.mark.parametrize(
    ("write", "read", "missing"),
    [
        (write_acdc, read_acdc, "Info.cfg"),
        (write_acdc, read_acdc, "patient001_4d.nii.gz"),
        (write_acdc, read_acdc, "patient001_frame04_gt.nii.gz"),
        (write_mnms2, read_mnms2, "001_SA_CINE.nii.gz"),
        (write_mnms2, read_mnms2, "001_SA_ES.nii.gz"),
        (write_mnms2, read_mnms2, "001_SA_ED_gt.nii.gz"),
        (write_mnms2, read_mnms2, "../../dataset_information.csv"),
    ],
)
def test_a_missing_file_is_named_in_one_line(
    tmp_path: Path, truth: Cine, write: Callable, read: Callable, missing: str
) -> None:
    folder = write(tmp_path, truth)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{Path(missing).name} is missing$") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def broken(folder: Path, truth: Cine, kind: str) -> None:
    """Spoil one file of an ACDC patient."""
    cine, info = folder / "patient001_4d.nii.gz", folder / "Info.cfg"
    label = folder / "patient001_frame01_gt.nii.gz"
    if kind == "truncated":
        cine.write_bytes(cine.read_bytes()[:400])
    elif kind == "no time":
        save(cine, truth.array[..., 0])
    elif kind == "no ED":
        info.write_text("Group: NOR\nES: 4\n", encoding="utf-8")
    elif kind == "late ES":
        info.write_text("ED: 1\nES: 12\n", encoding="utf-8")
    elif kind == "other grid":
        save(label, truth.labels[ED][:, :-1])
    else:
        save(label, truth.labels[ED] + np.uint8(5))


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("truncated", r"patient001_4d\.nii\.gz: cannot be read as NIfTI"),
        ("no time", r"patient001_4d\.nii\.gz: has shape \(32, 28, 10\), a cine has four axes"),
        ("no ED", r"Info\.cfg: ED must be a frame from 1 to 8, found none"),
        ("late ES", r"Info\.cfg: ES must be a frame from 1 to 8, found 12"),
        ("other grid", r"frame01_gt\.nii\.gz: has shape \(32, 27, 10\), the cine's stacks \(32, 28, 10\)"),
        ("labels", r"frame01_gt\.nii\.gz: holds label 8, known are 0 to 3"),
    ],
)
def test_a_broken_patient_gives_one_line_that_names_the_file(tmp_path: Path, truth: Cine, kind: str, line: str) -> None:
    folder = write_acdc(tmp_path, truth)
    broken(folder, truth, kind)
    with pytest.raises(ValueError, match=line) as caught:
        read_acdc(folder)
    assert "\n" not in str(caught.value)


def test_a_table_without_the_patient_or_the_column_is_named(tmp_path: Path, truth: Cine) -> None:
    folder = write_mnms2(tmp_path, truth, code="002")
    with pytest.raises(ValueError, match=r"dataset_information\.csv: has no row for 001"):
        read_mnms2(folder)
    (tmp_path / "dataset_information.csv").write_text("CODE,DISEASE\n001,HCM\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dataset_information\.csv: has no column SUBJECT_CODE"):
        read_mnms2(folder)


@pytest.mark.parametrize("find", [find_acdc, find_mnms2])
def test_a_folder_without_patients_is_named(tmp_path: Path, find: Callable) -> None:
    with pytest.raises(ValueError, match=r"images\.path: .* holds no patients"):
        find(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"images\.path: there is no folder"):
        find(tmp_path / "gone")


def test_the_label_numbers_are_those_of_acdc() -> None:
    assert LABELS == {"rv": 1, "myocardium": 2, "lv": 3}
