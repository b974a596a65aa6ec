"""The stages of training and sampling, on arrays made here, one after the other."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from models import checkpoint
from models.autoencode import encode_latents, load_autoencoder, random_crop, train_autoencoder
from models.control import StoppedError
from models.loop import LOOK_EVERY_BATCHES
from models.sample import generate_samples
from models.train import train_diffusion, train_here
from tests.models.config_files import default_config

CONFIG = default_config()
AUTOENCODER = CONFIG["autoencoder"] | {
    "channels": {"2d": [16, 16], "3d": [16, 16]},
    "latent_channels": {"2d": 2, "3d": 2},
    "images": {"2d": 64, "3d": 16},
    "batch_size": {"2d": 8, "3d": 2},
    "crop": {"2d": None, "3d": 8},
    "learning_rate": {"2d": 1e-3, "3d": 1e-3},
}
DIFFUSION = CONFIG["diffusion"] | {
    "timesteps": 20,
    "images": {"2d": 64, "3d": 32},
    "batch_size": {"2d": 8, "3d": 8},
    "warmup_images": 8,
    "ema_decay": 0.9,
}
TRAINING = CONFIG["training"] | {"precision": "fp32"}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps one state per process, and in the study every stage is a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(params=[2, 3], ids=["2d", "3d"], scope="module")
def trained(request, tmp_path_factory):
    """A cohort with a trained autoencoder and cached latents; gives the folder and a plan row."""
    AcceleratorState._reset_state(reset_partial_state=True)
    dims, folder = request.param, tmp_path_factory.mktemp(f"{request.param}d")
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("heldout", 3)):
        np.save(folder / f"{split}.npy", rng.uniform(-1, 1, (number, 1, *(16,) * dims)).astype(np.float32))
    (folder / "cohort.json").write_text(json.dumps({"cohort": "c"}))
    plan = {"autoencoder": "ae", "spatial_dims": dims, "resolution": 16, "model": "m", "family": "unet", "size": "nano"}
    plan |= {"frames": 0}
    plan |= {"devices": 1, "seed": 0, "run": "r", "sampler": "ddim", "steps": 4, "samples": 3}
    work = train_autoencoder(plan, AUTOENCODER, TRAINING, folder, folder / "ae.pt", folder / "ae.json")
    encoded = encode_latents(folder, folder / "ae.pt", folder / "latents.pt")
    return folder, plan, work, encoded


def test_an_autoencoder_counts_its_work(trained):
    folder, plan, work, encoded = trained
    dims = plan["spatial_dims"]
    assert work["images_seen"] == AUTOENCODER["images"][f"{dims}d"]
    assert (work["images_resumed"], work["resumed_from"]) == (0, [])
    assert work["voxels"] == work["images_seen"] * (256 if dims == 2 else 512)  # 3D trains on crops of 8
    assert encoded["samples"] == 12
    assert encoded["voxels"] == 12 * 16**dims
    assert encoded["flops"] == 12 * load_autoencoder(folder / "ae.pt")[1]["encode"]
    assert not (folder / "checkpoint.pt").exists()


def test_latents_have_unit_deviation_and_decode_at_their_scale(trained):
    folder, plan, _, _ = trained
    cached = checkpoint.load(folder / "latents.pt")
    assert cached["latents"].shape == (12, 2, *(8,) * plan["spatial_dims"])
    assert float(cached["latents"].std()) == pytest.approx(1, rel=1e-4)
    autoencoder, _ = load_autoencoder(folder / "ae.pt")
    images = torch.from_numpy(np.load(folder / "train.npy"))
    with torch.inference_mode():
        assert torch.allclose(autoencoder.encode(images[:1])[0], cached["latents"][:1] / cached["scale"], atol=1e-4)


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_a_trained_model_generates(trained, family, tmp_path):
    folder, plan, _, _ = trained
    plan = {**plan, "family": family}
    work = train_diffusion(plan, DIFFUSION, TRAINING, folder / "latents.pt", tmp_path / "m.pt", tmp_path / "m.json")
    assert work["images_seen"] == DIFFUSION["images"][f"{plan['spatial_dims']}d"]
    paths = (tmp_path / "m.pt", folder / "ae.pt", tmp_path / "s.npy", tmp_path / "s.json")
    made = generate_samples(plan, 2, None, "fp32", *paths)
    samples = np.load(tmp_path / "s.npy")
    assert samples.shape == (3, 1, *(16,) * plan["spatial_dims"])
    assert made["samples"] == 3
    per_pass = checkpoint.load(tmp_path / "m.pt")["flops"]
    assert work["flops"] == 3 * per_pass * work["images_seen"]
    assert made["flops"] == 3 * (4 * per_pass + load_autoencoder(folder / "ae.pt")[1]["decode"])
    generate_samples(plan, 2, None, "fp32", *paths)
    assert np.array_equal(np.load(tmp_path / "s.npy"), samples)  # the seed decides


def test_a_killed_training_resumes_and_counts_no_image_twice(trained, tmp_path):
    folder, plan, _, _ = trained
    dims = f"{plan['spatial_dims']}d"
    images = {"2d": 3000, "3d": 1000}[dims]
    settings = {**DIFFUSION, "images": {dims: images}}
    arguments = {"plan": plan, "settings": settings, "training": {**TRAINING, "checkpoint_every_s": 0.01}}
    arguments |= {"latents_path": str(folder / "latents.pt"), "model_path": str(tmp_path / "m.pt")}
    arguments |= {"info_path": str(tmp_path / "m.json")}
    job = subprocess.Popen([sys.executable, "-m", "models.train", json.dumps(arguments)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    reached = checkpoint.load(tmp_path / "checkpoint.pt")
    assert 0 < reached["images_seen"] < images
    work = train_diffusion(**arguments)
    info = json.loads((tmp_path / "m.json").read_text())
    assert info["images_resumed"] == work["images_resumed"] == reached["images_seen"]
    assert work["resumed_from"] == [reached["saved_at"]]
    assert work["images_seen"] == images


class KilledError(Exception):
    """Stands for a job that ends in the middle of a step."""


def killed_in_batch(number, loss, stage, *arguments):
    """The checkpoint left by a stage that ends in this batch, the first being 0, when it calls this loss function."""
    calls, original = [], getattr(F, loss)

    def function(*args):
        calls.append(args)
        if len(calls) > number:
            raise KilledError
        return original(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(F, loss, function)
        stage(*arguments)
    return checkpoint.load(arguments[-1].with_name("checkpoint.pt"))


OFTEN = {**TRAINING, "checkpoint_every_s": 0}


def test_an_autoencoder_credits_all_images_after_resuming_twice(trained, tmp_path):
    folder, plan, whole, _ = trained
    arguments = (plan, AUTOENCODER, OFTEN, folder, tmp_path / "ae.pt", tmp_path / "ae.json")
    first = killed_in_batch(2, "l1_loss", train_autoencoder, *arguments)
    second = killed_in_batch(3, "l1_loss", train_autoencoder, *arguments)
    seen = 5 * AUTOENCODER["batch_size"][f"{plan['spatial_dims']}d"]
    resumed = {"images_resumed": seen, "resumed_from": [first["saved_at"], second["saved_at"]]}
    work = train_autoencoder(*arguments)
    assert work["checkpoints"] > 0 and work["checkpoint_s"] > 0
    written = {name: work[name] for name in ("checkpoints", "checkpoint_s")}  # by the last attempt
    assert work == {**whole, **resumed, **written}  # images, voxels and operations of all attempts


def test_a_denoiser_credits_all_images_after_resuming_twice(trained, tmp_path):
    folder, plan, _, _ = trained
    arguments = (plan, DIFFUSION, OFTEN, folder / "latents.pt", tmp_path / "m.pt", tmp_path / "m.json")
    first = killed_in_batch(1, "smooth_l1_loss", train_diffusion, *arguments)
    second = killed_in_batch(2, "smooth_l1_loss", train_diffusion, *arguments)
    work = train_diffusion(*arguments)
    assert work["images_seen"] == DIFFUSION["images"][f"{plan['spatial_dims']}d"]
    assert work["flops"] == 3 * checkpoint.load(tmp_path / "m.pt")["flops"] * work["images_seen"]
    assert (work["images_resumed"], work["resumed_from"]) == (3 * 8, [first["saved_at"], second["saved_at"]])


def test_several_processes_see_as_many_images_as_one(trained, tmp_path):
    folder, plan, _, _ = trained
    plan = {**plan, "devices": 2}
    work = train_diffusion(plan, DIFFUSION, TRAINING, folder / "latents.pt", tmp_path / "m.pt", tmp_path / "m.json")
    assert work["images_seen"] == DIFFUSION["images"][f"{plan['spatial_dims']}d"]
    assert (work["images_resumed"], work["resumed_from"]) == (0, [])
    assert checkpoint.load(tmp_path / "m.pt")["plan"]["devices"] == 2
    assert json.loads((tmp_path / "m.json").read_text())["processes"] == 2


def test_several_processes_resume_and_tell_from_where(trained, tmp_path):
    folder, plan, _, _ = trained
    plan = {**plan, "devices": 2}
    arguments = (plan, DIFFUSION, OFTEN, folder / "latents.pt", tmp_path / "m.pt", tmp_path / "m.json")
    reached = killed_in_batch(2, "smooth_l1_loss", train_here, *arguments)  # by one process: it can be killed here
    work = train_diffusion(*arguments)
    assert work["images_seen"] == DIFFUSION["images"][f"{plan['spatial_dims']}d"]
    assert (work["images_resumed"], work["resumed_from"]) == (2 * 8, [reached["saved_at"]])


@pytest.mark.parametrize("trained", [2], indirect=True, ids=["2d"])
@pytest.mark.parametrize("then", ["run", "stop"])
def test_several_processes_leave_together_and_go_on_or_stop_as_they_are_told(trained, tmp_path, then):
    folder, plan, _, _ = trained
    settings = {**DIFFUSION, "images": {"2d": 160, "3d": 160}}
    control, reached = tmp_path / "control.json", tmp_path / "checkpoint.pt"
    control.write_text(json.dumps({"state": "pause"}))

    def tell() -> None:
        while not reached.exists():
            time.sleep(0.05)
        control.write_text(json.dumps({"state": then, "reason": "budget"}))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    paths = (folder / "latents.pt", tmp_path / "m.pt", tmp_path / "m.json", control)
    if then == "stop":
        with pytest.raises(StoppedError, match=r"m: stopped \(budget\)"):
            train_diffusion({**plan, "devices": 2}, settings, TRAINING, *paths)
        assert checkpoint.load(reached)["images_seen"] == LOOK_EVERY_BATCHES * 8
    else:
        work = train_diffusion({**plan, "devices": 2}, settings, TRAINING, *paths)
        assert (work["images_seen"], work["images_resumed"]) == (160, LOOK_EVERY_BATCHES * 8)
        assert len(work["resumed_from"]) == 1


def test_a_crop_is_a_part_of_the_image():
    image = torch.arange(2 * 6 * 6.0).view(2, 6, 6)
    crop = random_crop(image, (4, 4), torch.Generator().manual_seed(1))
    assert crop.shape == (2, 4, 4)
    assert torch.equal(crop[1] - crop[0], torch.full((4, 4), 36.0))
    assert torch.equal(random_crop(image, (6, 6), torch.Generator()), image)
