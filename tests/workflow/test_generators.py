"""Studies of the published generators, tiny: hearts over time, volumes that follow masks; from config to dashboard."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.workflow.snake import TINY, snakemake

pytestmark = pytest.mark.study

HEARTS = """
study: {name: hearts, title: Hearts}
images:
  {name: phantom, source: phantom, sequences: 6, frames: 4, slices: 3, field_of_view_mm: [140, 140, 72],
   slice_step_mm: 24, held_out: 0.34, window: null}
matrix: {family: [unet-slices], spatial_dims: [3], resolution: [16], include: []}
autoencoder: {kind: vq, channels: {3d: [16, 16]}, codes: 16}
diffusion: {patch: [1, 2, 2, 1]}
"""
MASKED = """
study: {name: masked, title: Masks}
images: {name: ct-masked, slices: 13}
matrix: {family: [dit], spatial_dims: [3], include: []}
autoencoder: {kind: vq, channels: {3d: [16, 16]}, codes: 16, adversarial_weight: 0.01,
  discriminator: {channels: 8, layers: 1}}
training: {activation_checkpointing: true}
sampling: {slab_gb: 0.01}
control: {labels: {soft: [-30, 130], bone: [130, null]}, images: {3d: 8}, samples: {3d: 3}, warmup_images: 4}
"""


def finished(folder: Path, text: str) -> Path:
    overlay = folder / "overlay.yaml"
    overlay.write_text(text)
    done = snakemake(folder, configs=(TINY, overlay))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "results"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results of both studies, which run side by side: starting jobs is most of their work."""
    folders = [tmp_path_factory.mktemp(name) for name in ("hearts", "masked")]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(finished, folders, (HEARTS, MASKED)))


@pytest.fixture
def hearts(both):
    return both[0]


@pytest.fixture
def masked(both):
    return both[1]


def test_hearts_are_generated_and_their_motion_audited(hearts):
    plan = pd.read_csv(hearts / "plan.csv")
    assert set(plan.frames) == {4}
    for run in plan.run:
        assert np.load(hearts / f"runs/{run}/samples.npy").shape == (2, 1, 3, 16, 16, 4)
        motion = json.loads((hearts / f"runs/{run}/motion.json").read_text())
        assert (motion["frames"], motion["sequences"], motion["heldout_sequences"]) == (4, 2, 2)
    ledger = pd.read_csv(hearts / "emissions/ledger.csv")
    assert (ledger[ledger.stage == "audit_motion"].energy_kwh > 0).sum() == len(plan)


def test_volumes_follow_masks_in_metered_stages_of_their_own(masked):
    (run,) = pd.read_csv(masked / "plan.csv").run
    volumes, masks = (np.load(masked / f"runs/{run}/{name}.npy") for name in ("controlled", "masks"))
    assert volumes.shape == masks.shape == (3, 1, 13, 16, 16) and set(np.unique(masks)) <= {0, 1, 2}
    report = json.loads((masked / f"runs/{run}/adherence.json").read_text())
    assert report["samples"] == 3 and set(report["labels"]) == {"soft", "bone"}
    ledger = pd.read_csv(masked / "emissions/ledger.csv").set_index("stage")
    for stage in ("train_control", "generate_controlled", "audit_adherence"):
        assert ledger.loc[stage, "energy_kwh"] > 0
    assert ledger.loc["train_control", "images_seen"] == 8
    assert ledger.loc["generate_controlled", "samples"] == 3


def test_volumes_that_are_no_cubes_are_padded_and_the_log_says_so(masked):
    (run,) = pd.read_csv(masked / "plan.csv").run
    assert np.load(masked / f"runs/{run}/samples.npy").shape == (2, 1, 13, 16, 16)
    (log,) = masked.glob("autoencoders/*/logs/train_autoencoder.log")
    assert "images of (13, 16, 16) are padded to (16, 16, 16), and cropped back" in log.read_text()
    info = json.loads(next(masked.glob("cohorts/*/cohort.json")).read_text())
    assert info["shape"] == [13, 16, 16]
    assert info["spacing_mm"] == pytest.approx([288 / 13, 380 / 16, 380 / 16], rel=1e-4)


def test_the_dashboards_show_what_is_special_in_them(hearts, masked):
    page = (hearts / "dashboard/index.html").read_text()
    assert "emporal coherence" in page and "U-Net" in page
    assert "bone" in (masked / "dashboard/index.html").read_text()
