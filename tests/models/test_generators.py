"""Stages of the published generators at toy sizes: sequences, codebooks, sides that do not divide, presets, slabs."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from models import checkpoint
from models.autoencode import (
    crop_of,
    encode_latents,
    level_depths,
    load_autoencoder,
    reconstruction_error,
    train_autoencoder,
)
from models.networks.autoencoder import SliceWise
from models.networks.control import Controlled
from models.padding import crop_to, pad_to, padded
from models.sample import generate_samples
from models.train import load_denoiser, train_diffusion
from tests.models.config_files import default_config

CONFIG = default_config()
TRAINING = CONFIG["training"] | {"precision": "fp32"}
AUTOENCODER = CONFIG["autoencoder"] | {
    "kind": "vq",
    "channels": {"2d": [8, 8], "3d": [8, 8]},
    "latent_channels": {"2d": 4, "3d": 4},
    "codes": 16,
    "codebook_decay": 0.9,
    "discriminator": {"channels": 8, "layers": 1, "kernel": 4, "rate": 0.5, "warmup": 0.2},
    "images": {"2d": 8, "3d": 8},
    "batch_size": {"2d": 4, "3d": 4},
    "crop": {"2d": 8, "3d": 8},
    "learning_rate": {"2d": 1e-3, "3d": 1e-3},
}
DIFFUSION = CONFIG["diffusion"] | {
    "timesteps": 20,
    "images": {"2d": 8, "3d": 8},
    "batch_size": {"2d": 4, "3d": 4},
    "warmup_images": 4,
    "ema_decay": 0.9,
}
SLICES_BY_FRAMES = (3, 16, 16, 8)  # (D, H, W, T)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps one state per process, and in the study every stage is a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


class Study:
    """A cohort of noise with its autoencoder and latents; models are trained and sampled on it."""

    def __init__(self, folder, shape, frames, **autoencoder):
        self.folder, self.settings = folder, {**AUTOENCODER, **autoencoder}
        rng = np.random.default_rng(0)
        for split, number in (("train", 6), ("heldout", 2)):
            np.save(folder / f"{split}.npy", rng.uniform(-1, 1, (number, 1, *shape)).astype(np.float32))
        (folder / "cohort.json").write_text(json.dumps({"cohort": "c"}))
        dims = len(shape) - bool(frames)
        self.plan = {"autoencoder": "ae", "spatial_dims": dims, "resolution": 16, "frames": frames, "model": "m"}
        self.plan |= {"devices": 1, "seed": 0, "run": "r", "sampler": "ddim", "steps": 2, "samples": 3}

    def encode(self, **training):
        work = train_autoencoder(
            self.plan,
            self.settings,
            {**TRAINING, **training},
            self.folder,
            self.folder / "ae.pt",
            self.folder / "ae.json",
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        encode_latents(self.folder, self.folder / "ae.pt", self.folder / "latents.pt")
        return work

    def train(self, family, size, training=TRAINING, **diffusion):
        self.plan |= {"family": family, "size": size}
        paths = (self.folder / "latents.pt", self.folder / "m.pt", self.folder / "m.json")
        return train_diffusion(self.plan, {**DIFFUSION, **diffusion}, training, *paths)

    def samples(self, slab_gb=None, **plan):
        paths = (self.folder / name for name in ("m.pt", "ae.pt", "s.npy", "s.json"))
        generate_samples({**self.plan, **plan}, 2, slab_gb, "fp32", *paths)
        return np.load(self.folder / "s.npy")


@pytest.mark.parametrize(
    ("shape", "frames", "latent"),
    [
        ((16, 16, 8), 8, (4, 4, 2)),  # a slice over time
        (SLICES_BY_FRAMES, 8, (3, 4, 4, 2)),  # a stack over time, whose slices are encoded one by one
        ((16, 16, 16), 0, (4, 4, 4)),
    ],
    ids=["2d+t", "3d+t", "3d"],
)
@pytest.mark.parametrize("family", ["unet", "dit"])
def test_every_kind_of_image_goes_through_all_stages(tmp_path, shape, frames, latent, family):
    study = Study(tmp_path, shape, frames)
    work = study.encode()
    assert work["voxels"] == 8 * 8 * 8 * (frames or 8)  # of a stack over time crops are of one slice
    assert checkpoint.load(tmp_path / "latents.pt")["latents"].shape == (6, 4, *latent)
    study.train(family, "nano", patch=[1, 2, 2, 1] if len(shape) == 4 else 2)
    samples = study.samples()
    assert samples.shape == (3, 1, *shape) and np.isfinite(samples).all() and samples.std() > 0


def test_slices_of_a_stack_are_encoded_without_each_other(tmp_path):
    study = Study(tmp_path, SLICES_BY_FRAMES, 8)
    study.encode()
    autoencoder, flops = load_autoencoder(tmp_path / "ae.pt")
    assert isinstance(autoencoder, SliceWise) and autoencoder.downsampling == (1, 4, 4, 4)
    x = torch.rand(2, 1, *SLICES_BY_FRAMES)
    with torch.inference_mode():
        latents = autoencoder.latents_of(x)  # (2, C, 3, 4, 4, 2)
        one_by_one = torch.stack([autoencoder.autoencoder.latents_of(x[:, :, d]) for d in range(3)], dim=2)
    assert torch.equal(latents, one_by_one)
    study_of_slices = Study(tmp_path, SLICES_BY_FRAMES[1:], 8)
    study_of_slices.encode()
    assert flops["decode"] == 3 * load_autoencoder(tmp_path / "ae.pt")[1]["decode"]


def test_the_slicewise_baseline_draws_slices_that_know_nothing_of_each_other(tmp_path):
    study = Study(tmp_path, SLICES_BY_FRAMES, 8)
    study.encode()
    study.train("unet-slices", "nano")
    network, _ = load_denoiser(tmp_path / "m.pt")
    merged = {}
    for family in ("unet-slices", "unet"):
        study.train(family, "nano")
        network, _ = load_denoiser(tmp_path / "m.pt")
        x = torch.randn(1, 4, 3, 4, 4, 2, requires_grad=True)
        network(x, torch.tensor([5.0]))[:, :, 0].sum().backward()
        merged[family] = x.grad.abs().sum((0, 1, 3, 4, 5)) > 0  # (D,) which slices the first one depends on
    assert merged["unet-slices"].tolist() == [True, False, False]
    assert merged["unet"].tolist() == [True, True, True]


def test_the_codebook_of_a_trained_autoencoder_is_used_and_decodes(tmp_path):
    study = Study(tmp_path, (16, 16), 0, images={"2d": 400}, codes=8)
    study.encode()
    info = json.loads((tmp_path / "ae.json").read_text())
    assert 0 < info["terms"]["l1"] < 0.6 and info["heldout_l1"] < 0.6  # of uniform noise: 0.5 by the middle value
    autoencoder, _ = load_autoencoder(tmp_path / "ae.pt")
    images = torch.from_numpy(np.load(tmp_path / "train.npy"))
    with torch.inference_mode():
        latents = autoencoder.latents_of(images)
        codes = autoencoder.quantiser.codebook if hasattr(autoencoder.quantiser, "codebook") else None
    assert len(torch.unique(latents.movedim(1, -1).reshape(-1, 4), dim=0)) <= 8
    assert codes is None or codes.shape == (8, 4)


def test_every_loss_of_the_published_autoencoders_is_trained(tmp_path):
    weights = {"perceptual_weight": 0.01, "spectral_weight": 0.1, "adversarial_weight": 0.1}
    study = Study(tmp_path, (16, 16, 16), 0, **weights)
    plain = Study(tmp_path, (16, 16, 16), 0)
    work, least = study.encode(), plain.encode()
    assert work["flops"] > 2 * least["flops"]  # a discriminator and an ImageNet network on top
    study.encode()
    terms = json.loads((tmp_path / "ae.json").read_text())["terms"]
    assert all(terms[name] > 0 for name in ("l1", "perceptual", "spectral", "discriminator"))


@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize("family", ["unet", "dit"])
def test_sides_that_do_not_divide_are_padded_and_cropped_back(tmp_path, caplog, kind, family):
    study = Study(tmp_path, (13, 14, 15), 0, kind=kind)
    with caplog.at_level("INFO"):
        study.encode()
        latent = {"vq": (4, 4, 4), "kl": (7, 7, 8)}[kind]  # of 16x16x16, of 14x14x16
        assert checkpoint.load(tmp_path / "latents.pt")["latents"].shape[2:] == latent
        study.train(family, "nano")
    said = [record.getMessage() for record in caplog.records if "padded" in record.getMessage()]
    assert said[0].startswith("ae: images of (13, 14, 15) are padded to")
    assert [line.startswith("m: latents of (7, 7, 8) are padded to (8, 8, 8)") for line in said[1:]] == (
        [True] if kind == "kl" else []
    )
    assert study.samples().shape == (3, 1, 13, 14, 15)


def test_padding_repeats_the_last_voxels_and_cropping_undoes_it():
    assert padded((5, 8, 1), (4, 4, 1)) == (8, 8, 1)
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    wide = pad_to(x, (4, 8))
    assert torch.equal(crop_to(wide, (3, 5)), x)
    assert torch.equal(wide[0, 0, 3, :5], x[0, 0, 2]) and torch.equal(wide[0, 0, 1, 5:], x[0, 0, 1, 4:].expand(3))
    assert pad_to(x, (3, 5)) is x


def test_slabs_give_what_decoding_at_once_gives(tmp_path):
    study = Study(tmp_path, (16, 16, 16), 0)
    study.encode()
    study.train("dit", "nano")
    whole = study.samples()
    assert np.abs(study.samples(slab_gb=1e-4) - whole).max() < 1e-5
    assert whole.std() > 0.01
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".pt", ".npy", ".json")]
    stacks = Study(tmp_path, SLICES_BY_FRAMES, 8)
    stacks.encode()
    stacks.train("dit", "nano", patch=[1, 2, 2, 1])
    whole = stacks.samples()
    assert np.abs(stacks.samples(slab_gb=1e-4) - whole).max() < 1e-5


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_activation_checkpointing_changes_nothing_but_the_work(tmp_path, family):
    study = Study(tmp_path, (16, 16, 16), 0)
    study.encode()
    results = {}
    for checkpointing in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        training = {**TRAINING, "activation_checkpointing": checkpointing}
        work = study.train(family, "nano", training)
        results[checkpointing] = (work["flops"], checkpoint.load(tmp_path / "m.pt")["weights"])
    assert results[True][0] == results[False][0] * 4 / 3
    for name, weights in results[False][1].items():
        assert torch.allclose(results[True][1][name], weights, atol=1e-5), name


def test_a_published_size_is_trained_by_its_name(tmp_path):
    study = Study(tmp_path, (16, 16, 16), 0)
    study.encode()
    study.train("dit", "voldit-XS/2", images={"3d": 4})
    network, state = load_denoiser(tmp_path / "m.pt")
    assert (network.patch, network.width, network.depth) == ((2, 2, 2), 384, 6)
    assert state["plan"]["size"] == "voldit-XS/2"
    assert not isinstance(network, Controlled)
    assert study.samples().shape == (3, 1, 16, 16, 16)


def test_a_model_of_another_network_is_refused(tmp_path):
    study = Study(tmp_path, (16, 16), 0)
    study.encode()
    study.train("dit", "nano")
    with pytest.raises(ValueError, match=r"m.pt: a model of size nano, and run r is of size tiny"):
        study.samples(size="tiny")
    state = checkpoint.load(tmp_path / "m.pt")
    state["plan"]["size"] = "tiny"
    checkpoint.save(state, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m.pt: holds the weights of another network than dit tiny; train it again"):
        study.samples(size="tiny")


def test_what_a_training_sees_at_once():
    assert crop_of((64, 64), 32, frames=False) == (32, 32)
    assert crop_of((24, 64, 64), 32, frames=False) == (24, 32, 32)
    assert crop_of((64, 64, 16), 32, frames=True) == (32, 32, 16)
    assert crop_of((6, 64, 64, 16), None, frames=True) == (1, 64, 64, 16)
    settings = {**AUTOENCODER, "strides": [[2, 2, 1], [1, 2, 2]]}
    assert level_depths((16, 16, 8), settings, "2d") == [16, 8, 8]
    assert level_depths((16, 16, 8), {**AUTOENCODER, "kind": "kl"}, "3d") == [16, 8]
    assert level_depths((16, 16), settings, "2d") == []


@pytest.mark.parametrize(
    ("shape", "frames", "kind"),
    [((16, 16, 16), 0, "vq"), ((16, 16, 16), 0, "kl"), (SLICES_BY_FRAMES, 8, "vq")],
    ids=["vq", "kl", "3d+t"],
)
def test_large_images_are_encoded_in_slabs_to_the_same_latents(tmp_path, monkeypatch, shape, frames, kind):
    study = Study(tmp_path, shape, frames, kind=kind)
    study.encode()
    at_once = checkpoint.load(tmp_path / "latents.pt")["latents"]
    error = json.loads((tmp_path / "ae.json").read_text())["heldout_l1"]
    monkeypatch.setattr("models.coding.LARGE_VOXELS", 1000)
    monkeypatch.setattr("models.coding.LARGE_SLAB_GB", 2e-4)
    encode_latents(tmp_path, tmp_path / "ae.pt", tmp_path / "latents.pt")
    assert torch.allclose(checkpoint.load(tmp_path / "latents.pt")["latents"], at_once, atol=1e-5)
    autoencoder, heldout = load_autoencoder(tmp_path / "ae.pt")[0], np.load(tmp_path / "heldout.npy")
    assert reconstruction_error(autoencoder, heldout, tmp_path) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_too_little_memory_is_told_before_a_training_begins(tmp_path, monkeypatch, devices):
    study = Study(tmp_path, (16, 16, 16), 0)
    study.encode()
    study.plan["devices"] = devices
    with pytest.raises(ValueError, match=r"training m: predicted to take .* GB .*; would fit: .+ \(.* GB\)"):
        study.train("dit", "nano", batch_size={"3d": 2**18})
    assert not (tmp_path / "m.pt").exists() and not list(tmp_path.glob("*.refused"))
