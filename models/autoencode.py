"""The stages of the autoencoder: train it, and encode a cohort once for all models that train on its latents."""

import json
import logging
import math
import operator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models import checkpoint
from models.adversarial import Adversarial, Objective
from models.coding import decoding, encoding, slab_of
from models.control import control_of
from models.data.cohort import load_cohort
from models.device import best_device
from models.files import atomic_path
from models.loop import Training, make_accelerator, train
from models.losses import PerceptualLoss
from models.networks.autoencoder import Autoencoder, build_autoencoder, of_images
from models.networks.denoiser import count_parameters
from models.networks.discriminator import Discriminator, DiscriminatorSize
from models.padding import crop_to, pad_to, padded
from models.room import room_for_autoencoder
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
        ValueError: if a crop is too small for the discriminator, or the memory for the training.
        StoppedError: if told to stop; a checkpoint is written.
    """
    dims = f"{plan['spatial_dims']}d"
    cohort = load_cohort(cohort_dir)
    images = padded_images(cohort.train, of_plan(plan, settings).downsampling, plan["autoencoder"])  # (N, 1, *image)
    crop = crop_of(tuple(images.shape[2:]), settings["crop"][dims], bool(plan["frames"]))
    seen = crop[-3:]  # of a stack over time, a slice
    network = adversarial(plan, settings, training["activation_checkpointing"], seen)
    room_for_autoencoder(plan, settings, training, network, tuple(images.shape), seen)
    accelerator = make_accelerator(training["precision"], level_depths(seen, settings, dims))
    length = Training(
        images=settings["images"][dims],
        batch_size=settings["batch_size"][dims],
        learning_rate=settings["learning_rate"][dims],
        warmup_images=settings["images"][dims] // 20,
        precision=training["precision"],
        checkpoint_every_s=training["checkpoint_every_s"],
    )

    def loss(prepared: nn.Module, batch: Tensor, noise: torch.Generator) -> Tensor:
        crops = torch.stack([random_crop(images[i], crop, noise) for i in batch.cpu()])  # (N, 1, *crop)
        value: Tensor = prepared(crops.reshape(len(batch), 1, *seen).to(accelerator.device), noise)
        return value

    resume_path = Path(autoencoder_path).with_name("checkpoint.pt")
    identity = checkpoint.identity_of(plan, settings, cohort.info, list(images.shape))
    key, control = plan["autoencoder"], control_of(control_path)
    result = train(network, loss, len(images), length, accelerator, resume_path, identity, key, control)

    kept: Any = result.network
    trained = of_images(kept.autoencoder, plan["spatial_dims"], bool(plan["frames"]))
    folder = Path(autoencoder_path).parent
    error = reconstruction_error(trained.to(accelerator.device), cohort.heldout, folder)
    info: dict[str, Any] = {
        "parameters": count_parameters(trained),
        "images_seen": result.images_seen,
        "images_resumed": result.images_resumed,
        "heldout_l1": error,
        "terms": kept.terms(),
        "losses": result.losses,
    }
    flops = flops_of(trained, tuple(images.shape[2:]), settings["latent_channels"][dims])
    weights = kept.autoencoder.cpu().state_dict()
    checkpoint.save({"plan": plan, "settings": settings, "flops": flops, "weights": weights}, autoencoder_path)
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
        "flops": result.images_seen * network.flops(seen, training["activation_checkpointing"]),
        "parameters": info["parameters"],
    }


def adversarial(
    plan: dict[str, Any], settings: dict[str, Any], checkpointing: bool, seen: tuple[int, ...]
) -> Adversarial:
    """The network that is trained: the autoencoder, and the losses that the config gives a weight.

    Args:
        plan: row with `spatial_dims` and `frames`.
        settings: the config's `autoencoder`.
        checkpointing: of activations.
        seen: shape of the crops that it sees.
    """
    judge = settings["discriminator"]
    objective = Objective(
        perceptual_weight=settings["perceptual_weight"],
        spectral_weight=settings["spectral_weight"],
        adversarial_weight=settings["adversarial_weight"],
        warmup_images=round(judge["warmup"] * settings["images"][f"{plan['spatial_dims']}d"]),
        discriminator_rate=judge["rate"],
    )
    size = DiscriminatorSize(judge["channels"], judge["layers"], judge["kernel"])
    return Adversarial(
        build_autoencoder(plan["spatial_dims"], settings, bool(plan["frames"]), checkpointing),
        Discriminator(len(seen), size, seen) if objective.adversarial_weight else None,
        objective,
        PerceptualLoss() if objective.perceptual_weight else None,
    )


def of_plan(plan: dict[str, Any], settings: dict[str, Any]) -> Autoencoder:
    """The untrained autoencoder of whole images of a plan row with `spatial_dims` and `frames`."""
    frames = bool(plan["frames"])
    return of_images(build_autoencoder(plan["spatial_dims"], settings, frames), plan["spatial_dims"], frames)


def padded_images(images: NDArray[np.float32], factors: tuple[int, ...], name: str) -> Tensor:
    """Images (N, 1, *image) in memory, padded to whole latents where they are not; says so."""
    shape = padded(images.shape[2:], factors)
    if shape != images.shape[2:]:
        logger.info("%s: images of %s are padded to %s, and cropped back", name, images.shape[2:], shape)
    return pad_to(torch.from_numpy(np.array(images)), shape)


def crop_of(image: tuple[int, ...], side: int | None, frames: bool) -> tuple[int, ...]:
    """Shape of training crops: at most `side` in space, all frames, and of a stack over time a single slice."""
    space = tuple(min(side or length, length) for length in (image[:-1] if frames else image))
    if not frames:
        return space
    return (*((1,) if len(space) == 3 else ()), *space[-2:], image[-1])


def flops_of(network: Autoencoder, image: tuple[int, ...], latent_channels: int) -> dict[str, int]:
    """Operations of one image, for the stages that follow."""
    latent = (side // factor for side, factor in zip(image, network.downsampling, strict=True))
    return {
        "encode": count_flops(network, (1, 1, *image), method="latents_of"),
        "decode": count_flops(network, (1, latent_channels, *latent), method="images_of"),
    }


def encode_latents(cohort_dir: str | Path, autoencoder_path: str | Path, latents_path: str | Path) -> Work:
    """Encode the training images of a cohort once, one by one: batches of volumes would fill a memory.

    Writes `latents`, (N, C, *latent) as float32 and of unit deviation, `scale`, which made it so: 1 / deviation of all
    latents (Rombach et al. 2022, appendix G), and `image_shape`, of images before they were padded.
    """
    cohort = load_cohort(cohort_dir)
    autoencoder, flops = load_autoencoder(autoencoder_path)
    device = best_device()
    autoencoder = autoencoder.to(device)
    shape = padded(cohort.train.shape[2:], autoencoder.downsampling)
    encode = encoding(autoencoder, slab_of(shape), Path(latents_path).parent)
    with torch.inference_mode():
        encoded = [encode(pad_to(torch.from_numpy(np.array(image[None])), shape)) for image in cohort.train]
    latents = torch.cat(encoded)
    scale = 1 / float(latents.std())
    image_shape = list(cohort.train.shape[2:])
    checkpoint.save({"latents": latents * scale, "scale": scale, "image_shape": image_shape}, latents_path)
    return {
        "samples": len(cohort.train),
        "voxels": int(cohort.train.size),
        "flops": len(cohort.train) * flops["encode"],
        "parameters": count_parameters(autoencoder),
    }


def level_depths(seen: tuple[int, ...], settings: dict[str, Any], dims: str) -> list[int]:
    """Length of the first axis of what a 3D autoencoder sees, at each of its levels; none for 2D."""
    if len(seen) != 3:
        return []
    levels = len(settings["channels"][dims])
    if settings["kind"] == "kl":
        return [seen[0] // 2**level for level in range(levels)]
    halved = accumulate((level[0] for level in settings["strides"] or [[2]] * levels), operator.mul)
    return [seen[0], *(seen[0] // factor for factor in halved)]


def load_autoencoder(path: str | Path) -> tuple[Autoencoder, dict[str, int]]:
    """The trained autoencoder in a file, and the operations that it takes to `encode` and to `decode` an image.

    Raises:
        ValueError: naming the file, if it is not readable.
    """
    state = checkpoint.load(path)
    plan = state["plan"]
    network = build_autoencoder(plan["spatial_dims"], state["settings"], bool(plan["frames"]))
    network.load_state_dict(state["weights"])
    return of_images(network, plan["spatial_dims"], bool(plan["frames"])).eval(), state["flops"]


def random_crop(image: Tensor, crop: tuple[int, ...], generator: torch.Generator) -> Tensor:  # (C, *) -> (C, *crop)
    """A crop at a random place."""
    starts = [
        int(torch.randint(size - side + 1, (), generator=generator))
        for size, side in zip(image.shape[1:], crop, strict=True)
    ]
    return image[(slice(None), *(slice(start, start + side) for start, side in zip(starts, crop, strict=True)))]


@torch.inference_mode()
def reconstruction_error(autoencoder: Autoencoder, images: NDArray[np.float32], folder: str | Path) -> float:
    """Mean absolute error of images (N, 1, *image), one at a time to spare memory; `folder` as in `encoding`."""
    image = tuple(images.shape[2:])
    shape = padded(image, autoencoder.downsampling)
    encode, decode = (code(autoencoder, slab_of(shape), folder) for code in (encoding, decoding))
    device, errors = next(autoencoder.parameters()).device, []
    for each in images:
        x = torch.from_numpy(np.array(each[None]))  # (1, 1, *image)
        errors.append(F.l1_loss(crop_to(decode(encode(pad_to(x, shape)).to(device)), image), x))
    return float(torch.stack(errors).mean())
