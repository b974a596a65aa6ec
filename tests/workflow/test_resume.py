"""Training that is killed goes on from its checkpoint, and every joule and image of it is counted once."""

import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from emissions.records import read_journal, read_record
from tests.workflow.snake import TINY, snakemake, snakemake_command

pytestmark = pytest.mark.study

IMAGES = 6000
OVERLAY = f"""
matrix: {{family: [unet], spatial_dims: [2], include: []}}
diffusion: {{images: {{2d: {IMAGES}, 3d: 16}}, batch_size: {{2d: 8, 3d: 2}}}}
training: {{checkpoint_every_s: 0.2}}
metering: {{interval_s: 0.1}}
"""


def training_of(snakemake_pid: int) -> psutil.Process | None:
    """The process that trains, below a Snakemake."""
    for child in psutil.Process(snakemake_pid).children(recursive=True):
        try:
            if "python" in child.name() and any("train_diffusion" in word for word in child.cmdline()):
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def start_and_kill(folder: Path, overlay: Path, dice: random.Random) -> None:
    """Run the study until training has saved a checkpoint, and kill the training some time after."""
    checkpoint = folder / "results/models/unet-nano-ct-2d-16-x1-s0/checkpoint.pt"
    saved_before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    command, environment = snakemake_command(folder, "models", configs=(TINY, overlay))
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as run:
        deadline_s = time.monotonic() + 300
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == saved_before:
            assert run.poll() is None and time.monotonic() < deadline_s, run.stderr.read()[-2000:]
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 0.5))
        training = training_of(run.pid)
        assert training is not None, "training has ended too early to be killed: make IMAGES larger"
        training.kill()
        run.communicate(timeout=120)
    assert run.returncode != 0


def test_a_training_that_is_killed_twice_resumes_and_counts_every_image_once(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(OVERLAY)
    dice = random.Random(os.getpid())
    for _ in range(2):
        start_and_kill(tmp_path, overlay, dice)
    finished = snakemake(tmp_path, "models", configs=(TINY, overlay))
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = tmp_path / "results"
    record = read_record(results / "models/unet-nano-ct-2d-16-x1-s0/emissions/train_diffusion.json")
    attempts = [
        line for line in read_journal(results / "emissions/journal.jsonl") if line["stage"] == "train_diffusion"
    ]
    assert [line["outcome"] for line in attempts] == ["killed", "killed", "ok"]
    assert record["attempts"] == 3
    assert record["energy_kwh"] == pytest.approx(sum(line["energy_kwh"] for line in attempts))
    assert record["images_seen"] == IMAGES, "an image was counted twice, or not at all"
    assert 0 < record["images_resumed"] < IMAGES
    ended_early_kwh = attempts[0]["energy_kwh"] + attempts[1]["energy_kwh"]
    assert 0 < record["wasted_kwh"] < ended_early_kwh, (
        "work up to a checkpoint was kept, and what came after it was not"
    )
    assert "3 attempts" in finished.stderr
