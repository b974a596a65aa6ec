"""Every format gives the same volume, and what is damaged is named in one line."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from models.data.dicom import find_series, read_series
from models.data.readers import Volume, format_of, read_medmnist, read_volume, stem_of
from tests.models.data.examples import LPS_AFFINE, body, write_dicom, write_nifti, write_nrrd, write_report

OBLIQUE = LPS_AFFINE @ np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def read(form: str, *files: Path) -> Volume:
    return read_volume({"patient": "p", "format": form, "files": [str(file) for file in files]})


@pytest.mark.parametrize("affine", [LPS_AFFINE, OBLIQUE, LPS_AFFINE @ np.diag([-1, 1, 1, 1.0])])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd"])
def test_a_file_keeps_values_and_geometry(tmp_path: Path, name: str, affine: np.ndarray) -> None:
    write = write_nrrd if name.endswith("nrrd") else write_nifti
    volume = read(str(format_of(tmp_path / name)), write(tmp_path / name, body(), affine))
    np.testing.assert_array_equal(volume.array, body())
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert (volume.array.dtype, volume.modality, volume.unit) == (np.float32, "CT", "HU")


@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_a_dicom_series_is_ordered_by_position_and_rescaled(tmp_path: Path, syntax, suffix: str) -> None:
    files = write_dicom(tmp_path, body(), OBLIQUE, syntax=syntax, suffix=suffix)
    volume = read("dicom", *files)
    np.testing.assert_array_equal(volume.array, body())
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert (volume.modality, volume.unit) == ("CT", "HU")


def test_a_tilted_gantry_keeps_its_shear(tmp_path: Path) -> None:
    tilted = LPS_AFFINE @ np.array([[1, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    _, affine, _ = read_series(write_dicom(tmp_path, body(), tilted))
    np.testing.assert_allclose(affine, tilted, atol=1e-5)


def test_a_missing_slice_is_reported_and_interpolated(tmp_path: Path, caplog) -> None:
    array, affine, _ = read_series(write_dicom(tmp_path, body(), skip=(4,)))
    assert "missing" in caplog.text
    np.testing.assert_allclose(array, body(), atol=1e-3)  # the body is linear in z, so interpolation is exact
    np.testing.assert_allclose(affine, LPS_AFFINE, atol=1e-6)


def test_slices_at_one_place_are_taken_once(tmp_path: Path, caplog) -> None:
    files = write_dicom(tmp_path, body()) + write_dicom(tmp_path, body(), prefix="again-")
    array, _, _ = read_series(files)
    assert array.shape == body().shape
    assert "10 slices" in caplog.text


def test_series_are_told_apart(tmp_path: Path) -> None:
    one = write_dicom(tmp_path, body(), prefix="one-", patient_id="A")
    two = write_dicom(tmp_path, body()[:32], prefix="two-", patient_id="B")
    found = find_series(sorted(one + two))
    assert [(set(series.files), series.patient_id) for series in found] == [(set(one), "A"), (set(two), "B")]


def test_dicom_without_pixels_is_named_when_alone_and_left_out_otherwise(tmp_path: Path, caplog) -> None:
    report = write_report(tmp_path / "report.dcm")
    with pytest.raises(ValueError, match=r"report\.dcm: DICOM without pixels"):
        find_series([report])
    with pytest.raises(ValueError, match=r"report\.dcm: .*without pixels"):
        read("dicom", report)
    caplog.set_level("INFO")
    assert len(find_series([report, *write_dicom(tmp_path / "ct", body())])) == 1
    assert "report.dcm is DICOM without pixels" in caplog.text


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd"])
@pytest.mark.parametrize("kept", [0.7, 0.05, 0.0])
def test_a_truncated_file_gives_one_line_that_names_it(tmp_path: Path, name: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, (24, 20, 10)).astype(np.int16)
    write = write_nrrd if name.endswith("nrrd") else write_nifti
    file = write(tmp_path / name, noise)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match="truncated or damaged") as caught:
        read(str(format_of(file)), file)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_a_truncated_slice_gives_one_line_that_names_it(tmp_path: Path, syntax) -> None:
    files = write_dicom(tmp_path, body(), syntax=syntax)
    whole = files[3].read_bytes()
    files[3].write_bytes(whole[: len(whole) - 200])
    with pytest.raises(ValueError, match=r"003\.dcm: cannot be read") as caught:
        read("dicom", *files)
    assert "\n" not in str(caught.value)


def test_no_series_of_volumes_in_time(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "cine.nii.gz", np.zeros((4, 4, 4, 3), np.int16))
    with pytest.raises(ValueError, match=r"cine\.nii\.gz: has shape \(4, 4, 4, 3\)"):
        read("nifti", file)


def test_values_that_are_not_finite_become_the_lowest(tmp_path: Path) -> None:
    array = body().astype(np.float32)
    array[0, 0, 0] = np.nan
    assert read("nifti", write_nifti(tmp_path / "a.nii", array)).array[0, 0, 0] == -1000


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"gone\.nii is gone"):
        read("nifti", tmp_path / "gone.nii")


def test_names() -> None:
    assert stem_of(Path("a/scan.7.NII.GZ")) == "scan.7"
    assert format_of(Path("x.nhdr")) == "nrrd"
    assert format_of(Path("x.dcm")) is None


@pytest.mark.parametrize(("shape", "dims"), [((6, 28, 28), 2), ((6, 28, 28, 3), 2), ((6, 12, 12, 12), 3)])
def test_medmnist_gives_its_train_and_test_pictures(tmp_path: Path, shape: tuple, dims: int) -> None:
    grey = np.random.default_rng(0).integers(0, 255, shape[: dims + 1]).astype(np.uint8)
    pictures = grey if len(shape) == dims + 1 else np.repeat(grey[..., None], 3, axis=-1)
    np.savez(tmp_path / "set.npz", train_images=pictures, val_images=pictures[:1], test_images=pictures[:2])
    found = read_medmnist(tmp_path / "set.npz", dims)
    assert np.abs(found["train"].astype(int) - grey).max() <= 1  # grey again after the luma weights
    assert (found["train"].dtype, len(found["test"])) == (np.uint8, 2)
    with pytest.raises(ValueError, match=r"set\.npz: train_images has shape .* not . ?D?"):
        read_medmnist(tmp_path / "set.npz", 5 - dims)


def test_medmnist_damaged_or_other_npz_is_named(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    np.savez(file, images=np.zeros(3))
    with pytest.raises(ValueError, match=r"set\.npz: has no train_images"):
        read_medmnist(file, 2)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"set\.npz: cannot be read"):
        read_medmnist(file, 2)
