"""Whether memory suffices, asked before a stage begins."""

import json
import logging
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from models.autoencode import adversarial, crop_of
from models.estimate_stages import DiffusionTraining, Saving, Settings, fitting
from models.memory import RUNTIME_GB, Machine, like
from models.networks.autoencoder import of_images
from models.networks.denoiser import build_denoiser, multiples
from models.padding import padded
from models.room import (
    Room,
    bound_of,
    check_room,
    group_free_bytes,
    keys_of,
    room_for_autoencoder,
    room_for_diffusion,
    room_for_generation,
    room_here,
)

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
TRAINING = {"precision": "fp32", "activation_checkpointing": False}
CPU = Machine("cpu", "fp32", keeps_in_memory=False)
JUDGE = {"channels": 64, "layers": 2, "kernel": 3, "rate": 1.0, "warmup": 0.2}
VQ = CONFIG["autoencoder"] | {
    "kind": "vq",
    "channels": {"2d": [32, 64], "3d": [32, 64]},
    "crop": {"2d": None, "3d": 32},
    "adversarial_weight": 0.1,
    "spectral_weight": 1.0,
    "discriminator": JUDGE,
}


class Study:
    """A row of a plan with its networks, untrained."""

    def __init__(self, family, size, image, frames=0, settings=CONFIG["autoencoder"]):
        dims = len(image) - bool(frames)
        self.plan = {
            "autoencoder": "ae", "model": "m", "run": "r", "family": family, "size": size, "spatial_dims": dims,
            "frames": frames, "devices": 1, "samples": 4,
        }  # fmt: skip
        self.settings, self.image = settings, image
        self.crop = crop_of(image, settings["crop"][f"{dims}d"], bool(frames))[-3:]
        self.network = adversarial(self.plan, settings, False, self.crop)
        self.autoencoder = of_images(self.network.autoencoder, dims, bool(frames)).eval()
        encoded = tuple(s // f for s, f in zip(image, self.autoencoder.downsampling, strict=True))
        self.latent = (settings["latent_channels"][f"{dims}d"], *padded(encoded, multiples(self.plan, len(encoded), 2)))
        self.denoiser = build_denoiser(self.plan, self.latent[1:], self.latent[0], 2)
        self.state = {
            "latent_channels": self.latent[0],
            "latent_shape": list(self.latent[1:]),
            "encoded_shape": list(encoded),
            "image_shape": list(image),
        }

    def ask(self, folder, slab_gb=None, batch_size=4):
        """All three questions."""
        room_for_autoencoder(self.plan, self.settings, TRAINING, self.network, (40, 1, *self.image), self.crop)
        room_for_diffusion(self.plan, CONFIG["diffusion"], TRAINING, self.denoiser, (40, *self.latent))
        given = self.plan, self.state, self.denoiser, self.autoencoder, batch_size, slab_gb, "fp32", folder
        room_for_generation(*given)


STUDIES = {
    "slices": ("unet", "nano", (64, 64)),
    "volumes": ("dit", "tiny", (40, 40, 40)),
    "flat volumes, larger U-Net": ("unet", "XS", (32, 64, 64), 0, VQ),
    "sequences": ("unet-slices", "nano", (4, 64, 64, 8), 8, VQ),
    "a published transformer": ("dit", "voldit-S/2", (32, 32, 32), 0, VQ),
}


@pytest.mark.parametrize("given", STUDIES.values(), ids=STUDIES)
def test_nothing_is_predicted_to_exceed_its_bound(given, tmp_path, monkeypatch):
    """Predictions run the networks without data, the bound knows the widest layer and how many there are."""
    found = {}

    def compare(task, stage, asked, room, bound_gb, keys):
        memory = stage.memory(asked)
        found[task] = memory.total_gb
        assert memory.total_gb <= bound_gb + RUNTIME_GB["cpu"], (task, memory)

    monkeypatch.setattr("models.room.check_room", compare)
    Study(*given).ask(tmp_path)
    assert list(found) == ["training ae", "training m", "generating r"]


def test_small_stages_are_cleared_in_milliseconds(tmp_path):
    """Three questions at 20 ms each; a prediction takes several hundred."""
    study = Study("dit", "nano", (64, 64))
    study.ask(tmp_path)
    began = time.process_time()
    study.ask(tmp_path)
    assert time.process_time() - began < 0.06


def test_what_is_advised_is_what_the_memory_allows():
    """In a process of little address space: refused as asked, and rightly; accepted as advised, and carried out."""
    given = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.models.limited"]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["said"].startswith("training dit-nano: predicted to take ")
    assert "its address space (RLIMIT_AS) has" in told["said"]
    assert "; would fit: training.activation_checkpointing: true" in told["said"]
    assert "\n" not in told["said"]
    assert "can't allocate memory" in told["as_asked_fails"]
    assert told["said_of_advice"] == told["advice_fails"] == ""


def refused(room_gb, stage, keys, **settings):
    with pytest.raises(ValueError, match=r"a task: predicted to take .* and this test has") as caught:
        check_room("a task", stage, Settings(CPU, **settings), Room(room_gb, "this test has"), 1e9, keys)
    return str(caught.value)


def stage_of(batch):
    network = build_denoiser({"family": "dit", "size": "nano"}, (16, 16, 16), 4, 2)
    return DiffusionTraining(like(network), (4, 16, 16, 16), batch)


def test_a_batch_is_advised_in_the_words_of_the_config():
    stage = stage_of(16)
    fits_gb = stage.memory(Settings(CPU, checkpointing=True, batch=4)).total_gb
    keys = partial(keys_of, section="diffusion", dims="3d", processes=2)
    said = refused(fits_gb / 0.9 + 1e-6, stage, keys, checkpointing=True)
    assert "training.activation_checkpointing" not in said  # it is on
    assert "would fit: diffusion.batch_size.3d: 8 (" in said  # of two processes


def test_what_nothing_would_make_fit_is_told_with_the_least():
    stage = stage_of(2)
    least_gb = stage.memory(Settings(CPU, checkpointing=True, batch=1)).total_gb

    def keys(saving):
        return None if saving.field == "precision" else "a key"

    said = refused(least_gb / 2, stage, keys)
    assert said.endswith(f"with all that spares memory it takes {least_gb:.2f} GB: take a smaller resolution or model")


def test_what_needs_the_last_tenth_is_warned_of(caplog):
    stage = stage_of(8)
    room = Room(stage.memory(Settings(CPU)).total_gb / 0.95, "this test has")
    with caplog.at_level(logging.WARNING):
        check_room("a task", stage, Settings(CPU), room, 1e9, lambda saving: keys_of(saving, "diffusion", "3d"))
    (record,) = caplog.records
    assert "a task: predicted to take" in record.message


def test_savings_that_do_not_help_are_not_advised():
    """Of a batch that is too large, checkpointing spares nothing of what a larger memory holds anyway."""
    stage = stage_of(16)
    whole = stage.memory(Settings(CPU)).total_gb
    savings, memory = fitting(stage, Settings(CPU), 0.99 * whole, [Saving("precision", "bf16"), Saving("batch", 8)])
    assert savings == [Saving("precision", "bf16")]
    half = stage.memory(Settings(CPU, batch=8)).total_gb
    savings, memory = fitting(stage, Settings(CPU), half, [Saving("items", 0), Saving("batch", 8)])
    assert (savings, memory.total_gb) == ([Saving("batch", 8)], half)


@pytest.mark.parametrize(
    ("saving", "section", "words"),
    [
        (Saving("checkpointing", True), "diffusion", "training.activation_checkpointing: true"),
        (Saving("batch", 2), "autoencoder", "autoencoder.batch_size.3d: 2"),
        (Saving("batch", 1), "sampling", "sampling.batch_size.3d: 1"),
        (Saving("slab_gb", 0.25), "sampling", "sampling.slab_gb: 0.25"),
        (Saving("crop", (24, 64, 64)), "autoencoder", "autoencoder.crop.3d: 64"),
        (Saving("precision", "bf16"), "sampling", None),  # models would be trained anew
    ],
)
def test_words_are_keys_of_the_config(saving, section, words):
    assert keys_of(saving, section, "3d") == words
    if words:
        value = CONFIG
        for part in words.partition(":")[0].split("."):
            value = value[part]


def test_crops_over_time_are_named_by_their_side():
    assert keys_of(Saving("crop", (32, 32, 96)), "autoencoder", "2d", timed=True) == "autoencoder.crop.2d: 32"


def test_slabs_that_cannot_be_are_refused_before_denoising(tmp_path, monkeypatch):
    study = Study("dit", "nano", (40, 40, 40))
    study.ask(tmp_path, slab_gb=1.0)
    with pytest.raises(ValueError, match=r"sampling\.slab_gb: 1e-06 is too little, slabs of one row take"):
        study.ask(tmp_path, slab_gb=1e-6)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(ValueError, match=rf"{tmp_path}: 0\.0 GB are free"):
        study.ask(tmp_path, slab_gb=1.0)


def test_a_generation_that_does_not_fit_is_advised_slabs(tmp_path, monkeypatch):
    """A 256 x 256 x 128 volume, never made: denoised small, decoded large."""
    study = Study("dit", "nano", (32, 32, 32), settings=VQ | {"adversarial_weight": 0})
    state = study.state | {"encoded_shape": [32, 64, 64], "image_shape": [128, 256, 256]}
    given = study.plan, state, study.denoiser, study.autoencoder, 4
    monkeypatch.setattr("models.room.room_here", lambda *_: Room(1.3, "this test has"))
    with pytest.raises(
        ValueError, match=r"generating r: .* \(decoding\).* would fit: sampling\.slab_gb: [01]"
    ) as caught:
        room_for_generation(*given, None, "fp32", tmp_path)
    slab_gb = float(str(caught.value).partition("slab_gb: ")[2].split()[0].rstrip(","))
    room_for_generation(*given, slab_gb, "fp32", tmp_path)


def test_blank_copies_count_like_the_network():
    network = build_denoiser({"family": "unet", "size": "nano"}, (8, 8), 2, 2)
    memory = DiffusionTraining(like(network), (2, 8, 8), 1).memory(Settings(CPU))
    built = DiffusionTraining(
        lambda: build_denoiser({"family": "unet", "size": "nano"}, (8, 8), 2, 2), (2, 8, 8), 1
    ).memory(Settings(CPU))
    assert memory == built
    assert not any(math.isnan(value) for value in memory.parts().values())


def test_what_is_held_already_counts_as_room():
    free_gb = room_here("cpu", 0.0).gb
    assert room_here("cpu", 3.0).gb == pytest.approx(free_gb + 3, abs=0.5)
    assert room_here("cpu", 0.0, processes=2).gb - RUNTIME_GB["cpu"] == pytest.approx(
        (free_gb - RUNTIME_GB["cpu"]) / 2, abs=0.5
    )
    assert bound_of(torch.nn.Linear(1000, 10), 0) < 0.1


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("line", "group", "names"),
    [
        ("0::/job/step", "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/job/step",
            "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_control_groups_limit_their_processes(tmp_path, line, group, names):
    """Those around the own one, too; of what is used, caches of files are free."""
    limit_name, usage_name, cache_name = names
    write(tmp_path / "proc/self/cgroup", f"7:freezer:/job\n{line}\n")
    none = "max" if limit_name == "memory.max" else str(2**63 - 4096)
    for place, limit in (("", none), ("job", "5000"), ("job/step", "3000")):
        folder = tmp_path / group / place
        write(folder / limit_name, f"{limit}\n")
        write(folder / usage_name, "2500\n")
        write(folder / "memory.stat", f"anon 100\n{cache_name} 400\n")
    assert sorted(group_free_bytes(tmp_path)) == [900, 2900]
    assert list(group_free_bytes(tmp_path / "nowhere")) == []
