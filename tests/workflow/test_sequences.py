"""What a study of sequences goes through beside a study of still images."""

from pathlib import Path

import pytest

from tests.workflow.snake import TINY, jobs_of, snakemake

PHANTOMS = """
images: {name: phantom, source: phantom, sequences: 4, frames: 8, slices: 4, field_of_view_mm: [112, 112, 40],
         slice_step_mm: 10, held_out: 0.5, window: null}
matrix: {family: [unet], spatial_dims: [2, 3], include: []}
"""


@pytest.mark.parametrize(("overlay", "moving"), [("{}", False), (PHANTOMS, True)])
def test_motion_is_audited_where_there_are_frames(tmp_path: Path, overlay: str, moving: bool) -> None:
    (tmp_path / "overlay.yaml").write_text(overlay)
    configs = (TINY, tmp_path / "overlay.yaml")
    jobs = jobs_of(snakemake(tmp_path, "--dry-run", configs=configs))
    assert jobs.get("audit_motion", 0) == (jobs["audit_fidelity"] if moving else 0)
    table = snakemake(tmp_path, "results/emissions/motion.csv", "--dry-run", configs=configs)
    assert (table.returncode == 0) == moving
