"""Which images are found in a folder, and whose they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from models.data.folder import source_state
from models.data.images import fetch_images, find_images
from tests.models.data.examples import body, images_config, write_dicom, write_nifti, write_nrrd, write_report


def found(path: Path) -> dict[str, list[str]]:
    volumes = find_images(images_config(path=str(path)))["volumes"]
    return {
        patient: [volume["format"] for volume in volumes if volume["patient"] == patient]
        for patient in sorted({volume["patient"] for volume in volumes})
    }


def test_files_and_series_in_the_folder_are_patients(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", body())
    write_nifti(tmp_path / "b.nii", body())
    write_nrrd(tmp_path / "c.nrrd", body())
    write_dicom(tmp_path, body(), patient_id="D", prefix="one-")
    write_dicom(tmp_path, body(), patient_id="D", prefix="two-", suffix="")  # of the same patient
    write_dicom(tmp_path, body(), prefix="three-")  # without a name
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.nii.gz").write_text("not an image either")
    whose = found(tmp_path)
    nameless = [patient for patient in whose if patient.startswith("series-")]
    assert len(nameless) == 1
    del whose[nameless[0]]
    assert whose == {"a": ["nifti"], "b": ["nifti"], "c": ["nrrd"], "D": ["dicom", "dicom"]}


def test_a_sub_folder_is_a_patient(tmp_path: Path) -> None:
    write_nifti(tmp_path / "p1" / "before.nii.gz", body())
    write_nifti(tmp_path / "p1" / "session2" / "after.nii.gz", body())
    write_dicom(tmp_path / "p2" / "study" / "series", body(), patient_id="somebody")
    write_report(tmp_path / "p2" / "study" / "report.dcm")
    assert found(tmp_path) == {"p1": ["nifti", "nifti"], "p2": ["dicom"]}


def test_the_manifest_is_written(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii.gz", body())
    write_nifti(tmp_path / "in" / "b.nii.gz", body())
    manifest = tmp_path / "out" / "manifest.json"
    assert fetch_images(images_config(path=str(tmp_path / "in")), manifest) == {"samples": 2}
    written = json.loads(manifest.read_text())
    assert (written["images"], written["source"], written["patients"]) == ("test", "folder", ["a", "b"])
    first = written["volumes"][0]
    assert first["files"] == [str(tmp_path / "in" / "a.nii.gz")]
    assert first["size_bytes"] == (tmp_path / "in" / "a.nii.gz").stat().st_size


def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a")
    report = write_report(tmp_path / "reports" / "report.dcm")
    picture = tmp_path / "pictures.npz"
    cases = [
        ({"path": str(empty)}, ValueError, f"images.path: the folder {empty} is empty"),
        ({"path": str(texts)}, ValueError, f"images.path: none of the 1 files in {texts} is an image"),
        ({"path": str(tmp_path / "no")}, OSError, f"images.path: there is no folder {tmp_path / 'no'}"),
        ({"path": str(report)}, OSError, f"images.path: {report} is a file"),
        ({"path": str(report.parent)}, ValueError, f"{report}: DICOM without pixels"),
        ({"path": None}, ValueError, "images.path: say where"),
        ({"source": "cloud"}, ValueError, "images.source: 'cloud' is not one of"),
        ({"source": "medmnist", "path": str(picture)}, OSError, f"images.path: {picture} is no MedMNIST"),
    ]
    for changes, kind, line in cases:
        with pytest.raises(kind) as caught:
            find_images(images_config(**changes))
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    def refused(path: object) -> object:  # permissions do not bind root, who runs tests in containers
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError, match=f"cannot read the folder {tmp_path}"):
        find_images(images_config(path=str(tmp_path)))


def test_the_state_of_a_folder_changes_with_its_files_only(tmp_path: Path) -> None:
    config = images_config(path=str(tmp_path))
    write_nifti(tmp_path / "a.nii", body())
    before = source_state(config)
    assert source_state(config) == before
    write_nifti(tmp_path / "sub" / "b.nii", body())
    after = source_state(config)
    assert after != before
    os.utime(tmp_path / "a.nii", (1, 1))
    assert source_state(config) not in (before, after)
    assert source_state(images_config(path=str(tmp_path / "no"))) != after
    assert source_state(images_config(source="bundled")) == ""


def test_medmnist_is_one_entry(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    np.savez(file, train_images=np.zeros((2, 28, 28), np.uint8))
    manifest = find_images(images_config(source="medmnist", path=str(file)))
    assert [(v["format"], v["files"]) for v in manifest["volumes"]] == [("medmnist", [str(file)])]
