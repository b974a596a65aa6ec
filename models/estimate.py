"""Memory of the stages of a generator, published or of a study, as built from their settings."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from models.adversarial import Adversarial, Objective
from models.autoencode import adversarial, crop_of, of_plan
from models.estimate_stages import AutoencoderTraining, DiffusionTraining, Generation, Shape, Stage, shape_text
from models.networks.autoencoder import build_autoencoder
from models.networks.denoiser import build_denoiser, build_preset, multiples
from models.networks.discriminator import DISCRIMINATOR_SIZES, Discriminator
from models.networks.presets import RECIPES, STAGE_ONES, SYSTEMS, preset_named
from models.networks.vqgan import VQGAN, VQGAN_SIZES
from models.padding import padded
from models.plan import check_autoencoder, check_network
from models.streaming import decoder_of

STAGES = ("autoencoder", "diffusion", "generation")


@dataclass(frozen=True)
class Generator:
    """What is trained and sampled."""

    name: str
    image: Shape
    stages: dict[str, Stage]  # by their names in `STAGES`


def published(name: str, image: Shape | None = None) -> Generator:
    """A preset, at its published size or another; its autoencoder only sees the crops that it was trained on.

    Raises:
        ValueError: if there is no such preset, or the image does not go with it.
    """
    preset = preset_named(name)
    system, recipe, stage_one = SYSTEMS[preset.system], RECIPES[preset.system], STAGE_ONES[preset.system]
    shape = image or system.image
    factors = tuple(i // z for i, z in zip(system.image, system.latent, strict=True))
    latent = (system.latent_channels, *divided(shape, factors))
    size = VQGAN_SIZES[preset.system]
    by_slice = len(shape) > len(size.strides[0])  # CardioDiT's is of slices over time
    crop = tuple(min(sides) for sides in zip(stage_one.crop or shape, shape, strict=True))[by_slice:]

    def network() -> nn.Module:
        discriminator = Discriminator(len(crop), DISCRIMINATOR_SIZES[preset.system], crop)
        objective = Objective(spectral_weight=stage_one.spectral, adversarial_weight=stage_one.adversarial)
        return Adversarial(VQGAN(size), discriminator, objective)

    denoiser = partial(build_preset, name, latent[1:])
    stages: dict[str, Stage] = {
        "autoencoder": AutoencoderTraining(
            network=network,
            image=shape[by_slice:],
            slices=shape[0] if by_slice else 1,
            crop=crop,
            batch=stage_one.batch_size,
            whole=False,
            timed=by_slice,
        ),
        "diffusion": DiffusionTraining(denoiser, latent, recipe.batch_size),
        "generation": Generation(
            denoiser=denoiser,
            decoder=lambda: decoder_of(VQGAN(size)),
            latent=latent,
            decoded=(latent[0], *latent[1 + by_slice :]),
            slices=1,
            image=shape,
            batch=1,
        ),
    }
    return Generator(name, shape, stages)


def of_study(config: dict[str, Any], family: str, size: str, image: Shape) -> Generator:
    """A denoiser of a study's matrix with the study's autoencoder, at an image size.

    Args:
        config: the whole config.
        family: of the matrix.
        size: of the family, or the name of a published generator.
        image: shape of an image, volume or sequence.

    Raises:
        ValueError: if the network or the autoencoder does not take such images.
    """
    frames = bool(config["images"]["frames"])
    spatial_dims = len(image) - frames
    if spatial_dims not in (2, 3):
        axes = "2 or 3 axes, and time" if frames else "2 or 3 axes"
        raise ValueError(f"--shape: {shape_text(image)} has {len(image)} axes, the study's images have {axes}")
    row = {"family": family, "size": size, "spatial_dims": spatial_dims, "frames": frames}
    check_network(row, image, config)
    check_autoencoder(spatial_dims, image, config)
    return Generator(f"{family} {size}", image, stages_of(config, row, image))


def stages_of(config: dict[str, Any], row: dict[str, Any], image: Shape) -> dict[str, Stage]:
    """The stages of a row of the plan for images of a shape, which are padded as they are there."""
    dims, frames, diffusion = f"{row['spatial_dims']}d", bool(row["frames"]), config["diffusion"]
    settings = config["autoencoder"] | {"perceptual_weight": 0}  # its network is small, and would be read from a file
    with torch.device("meta"):
        factors = of_plan(row, settings).downsampling
    seen = padded(image, factors)
    encoded = tuple(side // factor for side, factor in zip(seen, factors, strict=True))
    latent = padded(encoded, multiples(row, len(image), diffusion["patch"]))
    channels = settings["latent_channels"][dims]
    slices = seen[0] if len(seen) == 4 else 1
    crop = crop_of(seen, settings["crop"][dims], frames)[-3:]
    return {
        "autoencoder": AutoencoderTraining(
            network=partial(adversarial, row, settings, False, crop),
            image=seen[-3:],
            slices=slices,
            crop=crop,
            batch=settings["batch_size"][dims],
            whole=True,
            timed=frames,
        ),
        "diffusion": DiffusionTraining(
            network=partial(build_denoiser, row, latent, channels, diffusion["patch"]),
            latent=(channels, *latent),
            batch=diffusion["batch_size"][dims],
        ),
        "generation": Generation(
            denoiser=partial(build_denoiser, row, latent, channels, diffusion["patch"]),
            decoder=lambda: decoder_of(build_autoencoder(row["spatial_dims"], settings, frames)),
            latent=(channels, *latent),
            decoded=(channels, *encoded[-3:]),
            slices=slices,
            image=image,
            batch=config["sampling"]["batch_size"][dims],
            held=config["sampling"]["samples"][dims],
        ),
    }


def divided(shape: Shape, factors: Shape) -> Shape:
    """Shape of the latent.

    Raises:
        ValueError: if there is another number of axes, or the downsampling does not divide one.
    """
    if len(shape) != len(factors):
        raise ValueError(f"--shape: {shape_text(shape)} has {len(shape)} axes, the generator has {len(factors)}")
    if any(side % factor or side < factor for side, factor in zip(shape, factors, strict=True)):
        raise ValueError(f"--shape: {shape_text(shape)} does not divide by the downsampling, {shape_text(factors)}")
    return tuple(side // factor for side, factor in zip(shape, factors, strict=True))
