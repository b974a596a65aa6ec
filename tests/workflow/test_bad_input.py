"""A mistake of the user's is one clear line that names the key or file, and nothing half-written counts as finished."""

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.workflow.snake import TINY, snakemake


def overlay(folder: Path, text: str) -> Path:
    path = folder / "overlay.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("carbn: {zone: DE}", "unknown key `carbn`; did you mean `carbon`?"),
        ("diffusion: {pach: 2}", "unknown key `diffusion.pach`; did you mean `patch`?"),
        ("carbon: {zone: GERMONY}", "GERMONY"),
        ("matrix: {size: [voldit-S/8]}", "matrix.size: voldit-S/8 is not one of nano"),
        ("matrix: {steps: ['3']}", "`matrix.steps.0`: '3' is not of type 'integer'"),
        ("control: {labels: {fat: [-250, -30]}}", "control.labels.fat"),
    ],
)
def test_a_wrong_config_is_told_before_anything_runs(tmp_path, text, told):
    finished = snakemake(tmp_path, configs=(TINY, overlay(tmp_path, text)))
    lines = [line for line in (finished.stdout + finished.stderr).splitlines() if told in line]
    assert finished.returncode != 0
    assert len(lines) == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "results").exists()


def volumes(folder: Path, *names: str) -> None:
    """Small NIfTI volumes with something body-like in them."""
    folder.mkdir()
    x, y, _ = np.mgrid[:40, :40, :24] - np.array([20, 20, 12])[:, None, None, None]
    for seed, name in enumerate(names):
        noise = np.random.default_rng(seed).normal(0, 20, x.shape)
        body = np.where((x / 15) ** 2 + (y / 12) ** 2 < 1, 40, -1000) + noise
        nibabel.save(nibabel.Nifti1Image(body.astype(np.int16), np.diag([8, 8, 10, 1])), folder / name)


OWN = """
images: {{name: own, source: folder, path: {path}, held_out: {held_out}}}
matrix: {{spatial_dims: [2], include: []}}
"""


def run_on(tmp_path: Path, held_out: str = "[c]") -> tuple[int, str]:
    text = OWN.format(path=tmp_path / "own", held_out=held_out)
    finished = snakemake(tmp_path, "cohorts", configs=(TINY, overlay(tmp_path, text)))
    return finished.returncode, finished.stdout + finished.stderr


def test_a_folder_never_seen_before_runs_by_config_alone(tmp_path):
    volumes(tmp_path / "own", "a.nii.gz", "b.nii", "c.nii.gz")
    status, output = run_on(tmp_path)
    assert status == 0, output
    assert len(np.load(tmp_path / "results/cohorts/own-2d-16/heldout.npy")) > 0


def told_in_one_line(output: str, *words: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in output
    return lines[0]


def test_a_truncated_volume_is_named(tmp_path):
    volumes(tmp_path / "own", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    broken = tmp_path / "own/b.nii.gz"
    broken.write_bytes(broken.read_bytes()[:3000])
    status, output = run_on(tmp_path)
    assert status != 0
    told_in_one_line(output, "prepare_cohort", "b.nii.gz")
    assert not list((tmp_path / "results/cohorts").glob("*/train.npy"))


def test_a_file_that_is_no_volume_is_named(tmp_path):
    volumes(tmp_path / "own", "a.nii.gz", "c.nii.gz")
    (tmp_path / "own/b.nii.gz").write_bytes(gzip.compress(b"no volume at all"))
    status, output = run_on(tmp_path)
    assert status != 0
    told_in_one_line(output, "b.nii.gz")


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "own").mkdir()
    status, output = run_on(tmp_path)
    assert status != 0
    told_in_one_line(output, str(tmp_path / "own"))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    status, output = run_on(tmp_path)
    assert status != 0
    told_in_one_line(output, str(tmp_path / "own"))


def test_a_patient_who_is_not_there_is_named(tmp_path):
    volumes(tmp_path / "own", "a.nii.gz", "b.nii.gz")
    status, output = run_on(tmp_path, "[nobody]")
    assert status != 0
    told_in_one_line(output, "images.held_out", "nobody", "a, b")


def test_a_mended_folder_goes_on(tmp_path):
    volumes(tmp_path / "own", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    shutil.copy(tmp_path / "own/a.nii.gz", tmp_path / "kept")
    (tmp_path / "own/a.nii.gz").write_bytes(b"")
    assert run_on(tmp_path)[0] != 0
    shutil.copy(tmp_path / "kept", tmp_path / "own/a.nii.gz")
    status, output = run_on(tmp_path)
    assert status == 0, output
