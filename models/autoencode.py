"""The stages of the autoencoder: train it, and encode a cohort once for all models that train on its latents."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import checkpoint
from models.adversarial import Adversarial, Objective
from models.control import control_of
from models.data.cohort import load_cohort
from models.device import best_device
from models.files import atomic_path
from models.loop import Training, make_accelerator, train
from models.losses import PerceptualLoss
from models.networks.autoencoder import build_autoencoder
from models.networks.denoiser import count_parameters
from models.networks.discriminator import Discriminator, DiscriminatorSize
from models.work import Work, count_flops

logger = logging.getLogger(__name__)


def train_autoencoder(
    plan: dict[str, Any],
    settings: dict[str, Any],
    training: dict[str, Any],
    cohort_dir: str | Path,
    autoencoder_path: str | Path,
    info_path: str | Path,
    control_path: str | Path | None = None,
) -> Work:
    """Train the autoencoder of a cohort on its training images, whole or in random crops.

    The loss is the mean absolute error, the autoencoder's own regularisation (the divergence of its latents from a
    standard normal, or its commitment to the codebook), and what `settings` gives a weight of the perceptual, spectral
    and adversarial losses.

    Args:
        plan: row with `autoencoder` and `spatial_dims`.
        settings: the config's `autoencoder`.
        training: the config's `training`.
        cohort_dir: with train.npy and heldout.npy.
        autoencoder_path: the weights, and what rebuilds the network.
        info_path: JSON: parameters, losses, error on the held-out images.
        control_path: file that may tell it to pause or stop, see `models.control`.

    Raises:
        ValueError: if a crop is too small for the discriminator, or the downsampling does not divide an image.
        StoppedError: if told to stop; a checkpoint is written.
    """
    dims = f"{plan['spatial_dims']}d"
    cohort = load_cohort(cohort_dir)
    images = torch.from_numpy(np.array(cohort.train))  # (N, 1, *image)
    side = min(settings["crop"][dims] or images.shape[2], images.shape[2])
    crop = (side,) * plan["spatial_dims"]
    network = adversarial(plan["spatial_dims"], settings, crop)
    accelerator = make_accelerator(training["precision"], level_depths(side, settings, dims))
    length = Training(
        images=settings["images"][dims],
        batch_size=settings["batch_size"][dims],
        learning_rate=settings["learning_rate"][dims],
        warmup_images=settings["images"][dims] // 20,
        precision=training["precision"],
        checkpoint_every_s=training["checkpoint_every_s"],
    )

    def loss(prepared: nn.Module, batch: Tensor, noise: torch.Generator) -> Tensor:
        x = torch.stack([random_crop(images[i], side, noise) for i in batch.cpu()]).to(accelerator.device)  # (N, 1, *)
        value: Tensor = prepared(x, noise)
        return value

    resume_path = Path(autoencoder_path).with_name("checkpoint.pt")
    identity = checkpoint.identity_of(plan, settings, cohort.info, list(images.shape))
    key, control = plan["autoencoder"], control_of(control_path)
    result = train(network, loss, len(images), length, accelerator, resume_path, identity, key, control)

    trained = result.network.autoencoder
    heldout = torch.from_numpy(np.array(cohort.heldout))  # (N, 1, *image)
    error = reconstruction_error(trained.to(accelerator.device), heldout, accelerator.device)
    info = {
        "parameters": count_parameters(trained),
        "images_seen": result.images_seen,
        "images_resumed": result.images_resumed,
        "heldout_l1": error,
        "terms": result.network.terms(),
        "losses": result.losses,
    }
    state = {"plan": plan, "settings": settings, "flops": flops_of(trained, tuple(images.shape[2:]), settings, dims)}
    checkpoint.save({**state, "weights": trained.cpu().state_dict()}, autoencoder_path)
    with atomic_path(info_path) as temporary:
        temporary.write_text(json.dumps(info, indent=1))
    resume_path.unlink(missing_ok=True)
    return {
        "images_seen": result.images_seen,
        "images_resumed": result.images_resumed,
        "resumed_from": result.resumed_from,
        "checkpoints": result.checkpoints,
        "checkpoint_s": result.checkpoint_s,
        "voxels": result.images_seen * math.prod(crop),
        "flops": result.images_seen * network.flops(crop),
        "parameters": info["parameters"],
    }


def adversarial(spatial_dims: int, settings: dict[str, Any], crop: tuple[int, ...]) -> Adversarial:
    """The network that is trained: the autoencoder, and the losses that the config gives a weight."""
    dims = f"{spatial_dims}d"
    objective = Objective(
        perceptual_weight=settings["perceptual_weight"],
        spectral_weight=settings["spectral_weight"],
        adversarial_weight=settings["adversarial_weight"],
        warmup_images=settings["images"][dims] // 5,
    )
    return Adversarial(
        build_autoencoder(spatial_dims, settings),
        Discriminator(spatial_dims, DiscriminatorSize(), crop) if objective.adversarial_weight else None,
        objective,
        PerceptualLoss() if objective.perceptual_weight else None,
    )


def flops_of(network: nn.Module, image: tuple[int, ...], settings: dict[str, Any], dims: str) -> dict[str, int]:
    """Operations of one image, for the stages that follow."""
    latent = (side // factor for side, factor in zip(image, network.downsampling, strict=True))
    return {
        "encode": count_flops(network, (1, 1, *image), method="latents_of"),
        "decode": count_flops(network, (1, settings["latent_channels"][dims], *latent), method="images_of"),
    }


def encode_latents(
    cohort_dir: str | Path, autoencoder_path: str | Path, latents_path: str | Path, batch_size: int
) -> Work:
    """Encode the training images of a cohort once.

    Writes `latents`, (N, C, *latent) as float32 and of unit deviation, and `scale`, which made it so: 1 / deviation of
    all latents (Rombach et al. 2022, appendix G).
    """
    cohort = load_cohort(cohort_dir)
    autoencoder, flops = load_autoencoder(autoencoder_path)
    device = best_device()
    autoencoder = autoencoder.to(device)
    encoded = []
    with torch.inference_mode():
        for start in range(0, len(cohort.train), batch_size):
            x = torch.from_numpy(np.array(cohort.train[start : start + batch_size])).to(device)  # (N, 1, *image)
            encoded.append(autoencoder.latents_of(x).cpu())  # (N, C, *latent)
    latents = torch.cat(encoded)
    scale = 1 / float(latents.std())
    checkpoint.save({"latents": latents * scale, "scale": scale}, latents_path)
    return {
        "samples": len(cohort.train),
        "voxels": int(cohort.train.size),
        "flops": len(cohort.train) * flops["encode"],
        "parameters": count_parameters(autoencoder),
    }


def level_depths(depth: int, settings: dict[str, Any], dims: str) -> list[int]:
    """Depth of a volume at each level of the autoencoder; none for 2D."""
    levels = len(settings["channels"][dims]) + (settings["kind"] == "vq")  # there the first level halves, too
    return [depth // 2**level for level in range(levels)] if dims == "3d" else []


def load_autoencoder(path: str | Path) -> tuple[Any, dict[str, int]]:
    """The trained autoencoder in a file, and the operations that it takes to `encode` and to `decode` an image.

    Raises:
        ValueError: naming the file, if it is not readable.
    """
    state = checkpoint.load(path)
    network = build_autoencoder(state["plan"]["spatial_dims"], state["settings"])
    network.load_state_dict(state["weights"])
    return network.eval(), state["flops"]


def random_crop(image: Tensor, side: int, generator: torch.Generator) -> Tensor:  # (C, *image) -> (C, *side)
    """A crop at a random place."""
    starts = [int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape[1:]]
    return image[(slice(None), *(slice(start, start + side) for start in starts))]


@torch.inference_mode()
def reconstruction_error(autoencoder: nn.Module, images: Tensor, device: torch.device) -> float:
    """Mean absolute error of images (N, 1, *image), one at a time to spare memory."""
    errors = [F.l1_loss(autoencoder(x.to(device))[0], x.to(device)) for x in images.split(1)]
    return float(torch.stack(errors).mean())
